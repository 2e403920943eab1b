"""Language codes of recipes, file headers and columns: one normal form, matching, and properties of languages.

Codes are compared as normalized tags (BCP 47 with CLDR's aliases and likely subtags, https://www.unicode.org/reports/tr35):
`iw` is `he`, `cmn-Hans` is `zh-CN`, `nob` is `no`, gettext's `sr@latin` is `sr-Latn`, and a plain `sr` is Cyrillic.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import langcodes

# gettext names a script behind an @; what is not here is a variant, except for the currency.
_MODIFIERS = {
    "latin": "Latn",
    "iqtelif": "Latn",
    "cyrillic": "Cyrl",
    "devanagari": "Deva",
    "arabic": "Arab",
    "hebrew": "Hebr",
    "euro": "",
}
# By script: a sentence has no spaces between its words.
_CHINESE = ("Hans", "Hant", "Hani")
_SPACELESS = (*_CHINESE, "Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Yiii")


@dataclass(frozen=True)
class LanguageTag:
    """A normalized code: its language, its script (the likely one where the code has none), and what narrows it."""

    language: str
    script: str
    region: str
    likely_region: str
    variants: frozenset[str]


@lru_cache(maxsize=4096)
def parse_code(code: str) -> LanguageTag | None:
    """Return the normalized form of a code as people write it, None where it is not a language code.

    Example:
        >>> parse_code("sr@latin") == parse_code("sr_Latn") == parse_code("sh")
        True
    """
    match = re.fullmatch(r"([A-Za-z0-9_-]+)(?:\.[^@]*)?(?:@([A-Za-z0-9]+))?", code.strip())
    if match is None:
        return None
    modifier = (match[2] or "").lower()
    script = _MODIFIERS.get(modifier)
    variants = {modifier} if modifier and script is None else set()
    try:
        tag = langcodes.Language.get(langcodes.standardize_tag(match[1], macro=True))
        if not tag.is_valid() or tag.language is None:
            return None
        if script:
            tag = tag.update_dict({"script": script})
        likely = tag.maximize()
    except ValueError:
        return None
    # CLDR's data has `no` for Bokmål; Nynorsk is a language of its own.
    language = "no" if tag.language == "nb" else str(tag.language)
    variants |= {*(tag.variants or ()), *(tag.extensions or ()), *filter(None, [tag.private])}
    return LanguageTag(language, likely.script or "", tag.territory or "", likely.territory or "", frozenset(variants))


def standard_code(code: str) -> str | None:
    """Return a code in the form of BCP 47, as `zh-Hant` for `zh_hant`; None where it is not a language code."""
    return langcodes.standardize_tag(re.split("[.@]", code.strip())[0]) if parse_code(code) else None


def match_rank(wanted: str, code: str) -> int | None:
    """Return how well the code of a text fits a wanted language, None where it does not.

    0: the same; 1: the same with the likely region of the one that has none; 2: one of them has a region that is not
    the likely one, or the text is in a variant. Other scripts, other regions and missing variants do not fit.
    """
    ours, theirs = parse_code(wanted), parse_code(code)
    if ours is None or theirs is None or (ours.language, ours.script) != (theirs.language, theirs.script):
        return None
    if not ours.variants <= theirs.variants or (ours.region and theirs.region and ours.region != theirs.region):
        return None
    if ours.variants != theirs.variants:
        return 2
    if ours.region == theirs.region:
        return 0
    return 1 if ours.likely_region == theirs.likely_region else 2


def match_codes(wanted: Sequence[str], codes: Sequence[str]) -> tuple[int | None, ...]:
    """Return the position of each wanted language among the codes of a file, None where it is missing.

    The best match is made first, and each text serves one language: `zh-Hans` and `zh-Hant` find `zh-TW` and `zh-CN`
    in whatever order they stand.
    """
    ranks = [(match_rank(language, code), i, j) for i, language in enumerate(wanted) for j, code in enumerate(codes)]
    positions: list[int | None] = [None] * len(wanted)
    for _, i, j in sorted((rank, i, j) for rank, i, j in ranks if rank is not None):
        if positions[i] is None and j not in positions:
            positions[i] = j
    return tuple(positions)


def all_matching(wanted: str, codes: Sequence[str]) -> list[int]:
    """Return the positions of all codes equal to this one; if there are none, of all that fit."""
    ranks = [match_rank(wanted, code) for code in codes]
    exact = [index for index, rank in enumerate(ranks) if rank == 0]
    return exact or [index for index, rank in enumerate(ranks) if rank is not None]


def is_spaceless(code: str) -> bool:
    """Return whether a language is written without spaces between words."""
    tag = parse_code(code)
    return tag is not None and tag.script in _SPACELESS


def bleu_tokenizer(code: str) -> str:
    """Return the sacreBLEU tokenizer that fits a language."""
    tag = parse_code(code)
    if tag is not None and tag.script in _CHINESE:
        return "zh"
    # 13a would treat a sentence without spaces as one word.
    return "char" if is_spaceless(code) else "13a"


UNKNOWN = "Unknown language"


def language_name(code: str, names: Mapping[str, str]) -> str:
    """Return the name of a language in `names`, else its English name, such as `Portuguese (Brazil)` for `pt-BR`.

    It begins with `UNKNOWN` where neither has one.
    """
    return names.get(code) or str(langcodes.Language.get(code).display_name("en"))
