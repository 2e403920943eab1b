"""Matching of language codes (`en_us` is `en-US`, and `en` matches either), and properties of languages."""

from collections.abc import Callable, Sequence

_CHINESE = {"zh", "yue"}
_SPACELESS = _CHINESE | {"ja", "th", "lo", "km", "my", "bo"}


def match_codes(wanted: Sequence[str], codes: Sequence[str]) -> tuple[int | None, ...]:
    """Return the position of each wanted language among the codes of a file, None where it is missing.

    Codes are compared without regard to case. A language without an exact match takes the first code with its
    primary subtag that no other wanted language has taken, so `pt-BR` and `pt-PT` never share one text.
    """
    positions = [next(iter(_positions(_normal, code, codes)), None) for code in wanted]
    for index, code in enumerate(wanted):
        if positions[index] is None:
            related = _positions(_primary, code, codes)
            positions[index] = next((other for other in related if other not in positions), None)
    return tuple(positions)


def all_matching(wanted: str, codes: Sequence[str]) -> list[int]:
    """Return the positions of all codes equal to this one; if there are none, of all with its primary subtag."""
    return _positions(_normal, wanted, codes) or _positions(_primary, wanted, codes)


def is_spaceless(code: str) -> bool:
    """Return whether a language is written without spaces between words."""
    return _primary(code) in _SPACELESS


def _positions(form: Callable[[str], str], wanted: str, codes: Sequence[str]) -> list[int]:
    return [index for index, code in enumerate(codes) if form(code) == form(wanted)]


def _normal(code: str) -> str:
    return code.strip().replace("_", "-").lower()


def _primary(code: str) -> str:
    return _normal(code).partition("-")[0]


def bleu_tokenizer(code: str) -> str:
    """Return the sacreBLEU tokenizer that fits a language."""
    if _primary(code) in _CHINESE:
        return "zh"
    # 13a would treat a sentence without spaces as one word.
    return "char" if is_spaceless(code) else "13a"
