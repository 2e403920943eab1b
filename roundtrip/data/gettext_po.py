"""Gettext catalogues: each message and its translation.

A catalogue names the language of its translations in the `Language` header (Plone's older ones in `Language-Code`), and
some name that of the messages in `X-Source-Language`. Without the latter, messages are taken for the other language of
a pair, and for English where one language alone is read: what these rules do not decide is refused.
"""

import codecs
import gettext
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import polib

from roundtrip.data.normalize import clean
from roundtrip.data.text_files import open_text, raw_lines, read_text_lines
from roundtrip.recipe.language_codes import code_of_name, match_codes, match_rank, parse_code, standard_code
from roundtrip.runtime.errors import TextError

# A large application has a few millions; parsing takes twenty times as much memory.
MAX_CHARS = 50_000_000
# A large n: not so large that Spanish and French have a form of their own for it, as for millions.
_LARGE = 1000
_PLURAL_CURE = "Copy the Plural-Forms entry of the header from another catalogue in this language."
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_DEFAULT = re.compile(rf"^Default:\s*({_STRING.pattern}(?:\s*{_STRING.pattern})*)[ \t]*$", re.MULTILINE | re.DOTALL)
_KEYWORD = r"(?:#~\s*)?(?:msg\S+\s*)?"
_OPENS_STRING = re.compile(f'{_KEYWORD}"')
_WHOLE_STRING = re.compile(_KEYWORD + _STRING.pattern)
# What is counted of pairs whose messages are in a language that the catalogue does not name.
UNNAMED_SOURCE = "with messages whose language no X-Source-Language header names"
_CHARSET = re.compile(rb"Content-Type:.*charset=([\w.:-]+)", re.IGNORECASE)


def read_po(path: Path, languages: tuple[str, ...], count: Counter[str]) -> Iterator[tuple[str, ...]]:
    """Yield the pairs of a catalogue, or one side of it for one language.

    Obsolete entries are skipped, and so are fuzzy and untranslated ones, except where only the messages are read. A
    plural entry gives its singular with the form of n = 1 and its plural with that of a large n, by the catalogue's own
    `Plural-Forms`. Pairs are counted whose messages are taken for another language than English without a header that
    says so. The file is read whole.
    """
    catalogue = parse(path, read_text_lines(path, charset(path)))
    entries = [entry for entry in catalogue if not entry.obsolete]
    is_template = not any(entry.translated() for entry in entries)
    metadata = header_fields(catalogue)
    target_side = side_of_translations(path, metadata, languages, is_template=is_template)
    if len(languages) == 1 and target_side is None:
        yield from ((message,) for entry in entries for message in messages(entry))
        return
    num_forms = max((len(entry.msgstr_plural) for entry in entries if entry.translated()), default=0)
    forms = _plural_forms(path, metadata.get("plural-forms", ""), num_forms) if num_forms else None
    is_unnamed = (
        target_side is not None
        and len(languages) == 2
        and not metadata.get("x-source-language")
        and match_rank(languages[1 - target_side], "en") is None
    )
    for entry in entries:
        if entry.translated():
            for pair in _pairs(entry, forms):
                if is_unnamed:
                    count[UNNAMED_SOURCE] += 1
                yield pair[1:] if len(languages) == 1 else pair[:: 1 if target_side else -1]


def header_fields(catalogue: Any) -> dict[str, str]:
    """Return the fields of a catalogue's header by their names in lower case."""
    return {name.strip().lower(): value.strip() for name, value in catalogue.metadata.items()}


def side_of_translations(
    path: Path, metadata: dict[str, str], languages: tuple[str, ...], *, is_template: bool
) -> int | None:
    """Return which of the languages the translations are in; None where one alone is read and it is the messages'."""
    header = metadata.get("language") or metadata.get("language-code") or ""
    source = metadata.get("x-source-language") or ""
    names = {"Language": header, "X-Source-Language": source}
    for name, code in names.items():
        if code and parse_code(code) is None:
            raise _unplaced(path, f"its {name} header {code!r} is not a language code", languages)
    is_target = [match_rank(language, header) for language in languages]
    if len(languages) == 1:
        if is_target[0] is not None:
            return 0
        if not (header or source or is_template):
            raise _unplaced(path, "without a Language header it is unknown which side that is", languages)
        if match_rank(languages[0], source or "en") is None:
            messages = f"in {source!r}" if source else "English, unless an X-Source-Language header says otherwise"
            raise _unplaced(
                path, f"its translations are in {header or 'none'!r}, its messages {messages}", languages, header
            )
        return None
    if not header:
        is_source = [match_rank(language, source or "en") for language in languages]
        if sum(rank is not None for rank in is_source) != 1:
            raise _unplaced(path, "without a Language header it is unknown which side is which", languages)
        side = 0 if is_source[0] is None else 1
        for name in ("X-Poedit-Language", "Language-Team"):
            named = metadata.get(name.lower(), "").partition("<")[0].strip()
            tags = [parse_code(code) for code in (code_of_name(named), languages[side])]
            # Names, as "Spanish": a short one may be that of a project, as KDE.
            if len(named) > 3 and tags[0] and tags[1] and tags[0].language != tags[1].language:
                raise _unplaced(path, f"it has no Language header, and {named!r} as {name}", languages)
        return side
    if is_target[0] == is_target[1]:
        which = "neither" if is_target[0] is None else "either"
        raise _unplaced(
            path, f"its translations are in {header!r}, which is {which} of the languages", languages, header
        )
    side = match_codes(languages, [header]).index(0)
    other = languages[1 - side]
    if source and match_rank(other, source) is None:
        raise _unplaced(path, f"its messages are in {source!r}, not in {other!r}", languages)
    if not source and _is_variety_of_english(header) and match_rank("en", other) is None:
        raise _unplaced(path, f"it translates English into {header!r}; there is no {other!r} in it", languages)
    return side


def _is_variety_of_english(code: str) -> bool:
    tag = parse_code(code)
    return tag is not None and tag.language == "en" and bool(tag.region or tag.variants)


def _unplaced(path: Path, problem: str, languages: tuple[str, ...], header: str = "") -> TextError:
    wanted = " and ".join(map(repr, languages))
    named, tags = parse_code(header), [parse_code(code) for code in languages]
    if named is not None and any(tag is not None and tag.language == named.language for tag in tags):
        form = standard_code(header)
        cure = f"Name another catalogue, or use '{form}' in the recipe if that is what you want to translate."
    elif named is not None:
        cure = (
            "Name another catalogue, or correct the header of this one if it is wrong: Language is the language of the "
            "translations, X-Source-Language that of the messages."
        )
    else:
        example = next((code for code in languages if match_rank("en", code) is None), languages[0]).replace("-", "_")
        cure = (
            f'Name another catalogue, or correct the header entry of this one: "Language: {example}\\n" is the '
            'language of the translations, "X-Source-Language: en\\n" that of the messages.'
        )
    return TextError(f"{problem}; wanted: {wanted}", place=str(path), cure=cure)


def parse(path: Path, lines: Iterable[str]) -> Any:
    """Return the lines of a catalogue as polib parses them; the numbers of lines stay."""
    text: list[str] = []
    number = size = 0
    for number, line in enumerate(lines, start=1):
        size += len(line)
        if size > MAX_CHARS:
            problem = f"a catalogue of more than {MAX_CHARS:,} characters, which would have to be read whole"
            raise TextError(problem, place=f"{path}:{number}", cure="Split it, or convert it to tsv.")
        # Cleaned, because to the parser a raw form feed or U+2028 inside a string ends the line.
        text.append(clean(line))
        # The parser assumes without checking that the last character of a string is its closing quote.
        if _OPENS_STRING.match(text[-1]) and not _WHOLE_STRING.fullmatch(text[-1]):
            raise _broken(path, number, "a string does not end with the line")
    try:
        # polib treats a text without a line break as the name of a file.
        return polib.pofile("\n".join(text) + "\n")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        named = re.search(r"line (\d+)", str(error))
        raise _broken(path, int(named.group(1)) if named else number, str(error)) from error


def _broken(path: Path, number: int, problem: str) -> TextError:
    cure = "`msgfmt --check-format -o /dev/null FILE` lists all errors in it."
    return TextError(f"not a gettext catalogue: {problem}", place=f"{path}:{number}", cure=cure)


def charset(path: Path) -> str:
    """Return the charset that the header names; templates have the placeholder CHARSET and are UTF-8."""
    with open_text(path) as handle:
        header = next((match for line in raw_lines(handle) if (match := _CHARSET.search(line))), None)
    try:
        name = codecs.lookup(header.group(1).decode("ascii")).name if header else "utf-8"
        b"a".decode(name)
    except (LookupError, ValueError):  # unknown, or none in which the header could have been found
        return "utf-8"
    return name


def _plural_forms(path: Path, header: str, num_forms: int) -> tuple[int, int] | None:
    """Return the indices of the forms of n = 1 and of a large n by a header, None where it has none."""
    plural = plural_rule(path, header)
    if plural is None:
        if num_forms > 2:
            problem = f"{num_forms} plural forms, and no Plural-Forms header says which is that of 1"
            raise TextError(problem, place=str(path), cure=_PLURAL_CURE)
        return None
    return plural(1), plural(_LARGE)


def plural_rule(path: Path, header: str) -> Callable[[int], int] | None:
    """Return the function of n in a Plural-Forms header that gives the index of its form, None where it has none."""
    match = re.search(r"plural\s*=\s*([^;]+)", header)
    if match is None or "EXPRESSION" in header:  # a template
        return None
    try:
        plural = gettext.c2py(match[1].strip())
        plural(1), plural(_LARGE)
    except (ValueError, ZeroDivisionError, RecursionError) as error:
        problem = f"its Plural-Forms header is not an expression of n ({error})"
        raise TextError(problem, place=str(path), cure=_PLURAL_CURE) from error
    return plural


def _pairs(entry: Any, plural_forms: tuple[int, int] | None) -> Iterator[tuple[str, str]]:
    forms = entry.msgstr_plural or {0: entry.msgstr}
    singular, plural = plural_forms or (min(forms), max(forms))
    if not entry.msgid_plural:
        singular = plural = min(forms)
    return zip(messages(entry), (forms.get(singular, ""), forms.get(plural, "")), strict=False)


def messages(entry: Any) -> list[str]:
    """Return the message and its plural; where the message is only a key, the text of its `Default:` comment."""
    default = _DEFAULT.search(entry.comment)
    # Adjacent strings are one text, as in C; `clean` removes line breaks inside a string.
    strings = _STRING.findall(default.group(1)) if default else []
    message = polib.unescape("".join(string[1:-1] for string in strings)) or entry.msgid
    return [message, entry.msgid_plural] if entry.msgid_plural else [message]
