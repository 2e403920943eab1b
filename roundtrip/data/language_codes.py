"""Language codes: which mean the same (`en_us` is `en-US`, and `en` will do for either), and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence


def match_codes(wanted: Sequence[str], found: Sequence[str]) -> tuple[int | None, ...]:
    """Find each wanted language among the codes that a file uses.

    Codes are compared without regard to case. A language without an exact match takes the first code with its
    primary subtag that no other wanted language has taken, so `pt-BR` and `pt-PT` never share one text.

    Returns:
        The position in `found` of each wanted language, None where it is not there.
    """
    positions = [next(iter(_exact(code, found)), None) for code in wanted]
    for number, code in enumerate(wanted):
        if positions[number] is None:
            positions[number] = next((at for at in _related(code, found) if at not in positions), None)
    return tuple(positions)


def all_matching(wanted: str, found: Sequence[str]) -> list[int]:
    """Return the positions of all codes that are exactly this one, else of all with its primary subtag."""
    return _exact(wanted, found) or _related(wanted, found)


def is_chinese(code: str) -> bool:
    """Return whether a code is of a Chinese language."""
    return _normal(code).partition("-")[0] in {"zh", "yue"}


def is_spaceless(code: str) -> bool:
    """Return whether a language is written without spaces between words."""
    return is_chinese(code) or _normal(code).partition("-")[0] in {"ja", "th", "lo", "km", "my", "bo"}


def _exact(wanted: str, found: Sequence[str]) -> list[int]:
    return [at for at, code in enumerate(found) if _normal(code) == _normal(wanted)]


def _related(wanted: str, found: Sequence[str]) -> list[int]:
    primary = _normal(wanted).partition("-")[0]
    return [at for at, code in enumerate(found) if _normal(code).partition("-")[0] == primary]


def _normal(code: str) -> str:
    return code.strip().replace("_", "-").lower()


def bleu_tokenizer(code: str) -> str:
    """Return the sacreBLEU tokenizer that fits a language."""
    # sacreBLEU's 13a would take a sentence without spaces for one word.
    spaceless = "zh" if is_chinese(code) else "char"
    return spaceless if is_spaceless(code) else "13a"
