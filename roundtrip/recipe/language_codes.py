"""Language codes of recipes, file headers and columns: one normal form, matching, and properties of languages.

Codes are compared as normalized tags (BCP 47 with CLDR's aliases and likely subtags, https://www.unicode.org/reports/tr35):
`iw` is `he`, `cmn-Hans` is `zh-CN`, `nob` is `no`, gettext's `sr@latin` is `sr-Latn`, and a plain `sr` is Cyrillic.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import langcodes
from langcodes.data_dicts import LIKELY_SUBTAGS

# gettext names a script behind an @, also as part of a longer word; what is left is a variant, except for the currency.
_MODIFIERS = {
    "latin": "Latn",
    "iqtelif": "Latn",
    "cyrillic": "Cyrl",
    "devanagari": "Deva",
    "arabic": "Arab",
    "hebrew": "Hebr",
    "euro": "",
}
# What no standard has: Microsoft's codes of Chinese, and old ones of Nynorsk.
_ALIASES = {"zh-chs": "zh-Hans", "zh-cht": "zh-Hant", "no-ny": "nn", "no@nynorsk": "nn", "no-no@nynorsk": "nn"}
# By script: a sentence has no spaces between its words.
_CHINESE = ("Hans", "Hant", "Hani")
_SPACELESS = (*_CHINESE, "Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Yiii")


@dataclass(frozen=True)
class LanguageTag:
    """A normalized code: its language, its script (the likely one where the code has none), and what narrows it.

    The script and the likely region are empty where CLDR does not know them.
    """

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
    read = _read(code, macro=True)
    if read is None:
        return None
    tag, variant = read
    # What CLDR does not know, it would take for American English.
    likely = tag.maximize() if tag.language in LIKELY_SUBTAGS else tag
    # CLDR's data has `no` for Bokmål; Nynorsk is a language of its own.
    language = "no" if tag.language == "nb" else str(tag.language)
    variants = {*(tag.variants or ()), *(tag.extensions or ()), *filter(None, [tag.private, variant])}
    return LanguageTag(language, likely.script or "", tag.territory or "", likely.territory or "", frozenset(variants))


def _read(code: str, *, macro: bool) -> tuple[langcodes.Language, str] | None:
    """Return a code without what gettext names behind an @, which is a script or else returned as a variant."""
    code = code.strip()
    code = _ALIASES.get(code.lower().replace("_", "-"), code)
    match = re.fullmatch(r"([A-Za-z0-9_-]+)(?:\.[^@]*)?(?:@([A-Za-z0-9]+))?", code)
    if match is None:
        return None
    script, variant = "", (match[2] or "").lower()
    for name, named in _MODIFIERS.items():
        if name in variant:
            script, variant = named, variant.replace(name, "")
    try:
        if len(variant) == 4 and langcodes.Language.make(script=variant.title()).is_valid():
            script, variant = variant.title(), ""
        tag = langcodes.Language.get(langcodes.standardize_tag(match[1], macro=macro))
        # Of an extended language only those are known that have become languages, as `zh-yue` is `yue`.
        if not tag.is_valid() or tag.language is None or tag.extlangs:
            return None
    except ValueError:
        return None
    return tag.update_dict({"script": script}) if script else tag, variant


def is_standard(code: str) -> bool:
    """Return whether a code is one of BCP 47, which recipes have; it becomes part of file and adapter names."""
    return bool(re.fullmatch("[A-Za-z0-9-]+", code)) and code.lower() not in _ALIASES and parse_code(code) is not None


def standard_code(code: str) -> str | None:
    """Return a code in the form of BCP 47, as `zh-Hant` for `zh_hant`; None where it is not a language code."""
    if (read := _read(code, macro=False)) is None:
        return None
    tag, variant = read
    with_variant = tag.update_dict({"variants": [variant]}) if variant else tag
    return str(with_variant if with_variant.is_valid() else tag)


def code_of_name(name: str) -> str:
    """Return the code of a language's name, as `es` for `Spanish`; the name itself where it is none, or a code."""
    if parse_code(name) is not None or not 3 < len(name) < 40 or not all(c.isalpha() or c in " ()" for c in name):
        return name
    try:
        code = str(langcodes.find(name))
    except LookupError:
        return name
    # Of `Serbian (Latin)` and `Portuguese Brazil` the library drops the script and the region.
    detail = re.fullmatch(r"(\w+) \(?(\w[\w ]*)\)?", name)
    if detail is None or "-" in code:
        return code
    for kind in ("territory", "script"):
        try:
            return str(langcodes.get(code).update(langcodes.find_name(kind, detail[2], "en")))
        except LookupError:
            pass
    return name if "(" in name and detail[2].lower() != "simplified" else code


def match_rank(wanted: str, code: str) -> int | None:
    """Return how well the code of a text fits a wanted language, None where it does not.

    0: the same; 1: the same with the likely region of the one that has none; 2: one of them has a region that is not
    the likely one, or a script where none is known, or the text is in a variant. Other scripts, other regions and
    missing variants do not fit.
    """
    ours, theirs = parse_code(wanted), parse_code(code)
    if ours is None or theirs is None or ours.language != theirs.language:
        return None
    if ours.script and theirs.script and ours.script != theirs.script:
        return None
    if not ours.variants <= theirs.variants or (ours.region and theirs.region and ours.region != theirs.region):
        return None
    if ours.variants != theirs.variants or ours.script != theirs.script:
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
