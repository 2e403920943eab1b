"""Gettext catalogues: each message and its translation.

A catalogue names the language of its translations, in the `Language` header (Plone's older ones: in `Language-Code`).
The messages are assumed to be in the first language of the recipe, unless the header names that one.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import langcodes
import polib

from roundtrip.data.language_codes import match_codes
from roundtrip.data.normalize import clean
from roundtrip.data.text_files import open_text, raw_lines, read_text_lines
from roundtrip.runtime.errors import TextError

# A large application has a few millions; parsing takes twenty times as much memory.
MAX_CHARS = 50_000_000
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_DEFAULT = re.compile(rf"^Default:\s*({_STRING.pattern}(?:\s*{_STRING.pattern})*)[ \t]*$", re.MULTILINE | re.DOTALL)
_KEYWORD = r"(?:#~\s*)?(?:msg\S+\s*)?"
_OPENS_STRING = re.compile(f'{_KEYWORD}"')
_WHOLE_STRING = re.compile(_KEYWORD + _STRING.pattern)
_CHARSET = re.compile(rb"Content-Type:.*charset=([\w.:-]+)")


def read_po(path: Path, languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the pairs of a catalogue, or one side of it for one language.

    Obsolete entries are skipped, and so are fuzzy and untranslated ones, except where only the messages are read. A
    plural entry gives its singular with form 0 and its plural with the last form. The file is read whole. One side can
    be read only where the `Language` header tells the sides apart.
    """
    catalogue = _parse(path)
    entries = [entry for entry in catalogue if not entry.obsolete]
    pairs = (pair for entry in entries if entry.translated() for pair in _pairs(entry))
    header = catalogue.metadata.get("Language") or catalogue.metadata.get("Language-Code") or ""
    is_into_first = match_codes(languages, [header])[0] is not None
    if len(languages) == 2:
        if header and not any(_close(header, language) for language in languages):
            problem = f"its translations are in {header!r}, the languages of the recipe are {' and '.join(languages)}"
            cure = "Name the catalogue of the other language, or correct its Language header."
            raise TextError(problem, place=str(path), cure=cure)
        yield from (pair[:: -1 if is_into_first else 1] for pair in pairs)
    elif not header and any(entry.translated() for entry in entries):
        problem = f"without a Language header it is unknown which side is {languages[0]!r}"
        cure = 'Add the language of the translations to the header entry: "Language: es\\n".'
        raise TextError(problem, place=str(path), cure=cure)
    elif is_into_first:
        yield from ((target,) for _, target in pairs)
    else:
        yield from ((source,) for entry in entries for source in _messages(entry))


def _close(a: str, b: str) -> bool:
    """Return whether two codes may be names of one language, as `nb` and `no`."""
    try:
        return match_codes([b], [a])[0] is not None or langcodes.tag_distance(a.replace("_", "-"), b) < 10
    except ValueError:  # a header that is not a language code is no reason to refuse the file
        return True


def _parse(path: Path) -> Any:
    text: list[str] = []
    number = size = 0
    for number, line in enumerate(read_text_lines(path, _charset(path)), start=1):
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


def _charset(path: Path) -> str:
    """Return the charset that the header names; templates have the placeholder CHARSET and are UTF-8."""
    with open_text(path) as handle:
        header = next((match for line in raw_lines(handle) if (match := _CHARSET.search(line))), None)
    try:
        name = codecs.lookup(header.group(1).decode("ascii")).name if header else "utf-8"
        b"".decode(name)
    except LookupError:
        return "utf-8"
    return name


def _pairs(entry: Any) -> Iterator[tuple[str, str]]:
    forms = entry.msgstr_plural or {0: entry.msgstr}
    return zip(_messages(entry), (forms[min(forms)], forms[max(forms)]), strict=False)


def _messages(entry: Any) -> list[str]:
    """Return the message and its plural; where the message is only a key, the text of its `Default:` comment."""
    default = _DEFAULT.search(entry.comment)
    # Adjacent strings are one text, as in C; `clean` removes line breaks inside a string.
    strings = _STRING.findall(default.group(1)) if default else []
    message = polib.unescape("".join(string[1:-1] for string in strings)) or entry.msgid
    return [message, entry.msgid_plural] if entry.msgid_plural else [message]
