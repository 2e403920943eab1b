"""Gettext catalogues, into which translations are written between the lines that stay as they are."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import polib

from roundtrip.data.documents.document import Document, Edit, Request, Unit, line_starts, read_text
from roundtrip.data.gettext_po import charset, header_fields, messages, parse, plural_rule, side_of_translations
from roundtrip.data.placeholders import first_intact
from roundtrip.runtime.errors import TextError

_NO_LANGUAGE = re.compile(r'^"Language:([ \t]*)\\n"[ \t]*\r?$', re.MULTILINE)
_MSGSTR = re.compile(r'(?:^[ \t]*msgstr[ \t]*(?:\[\d+\])?[ \t]*".*\n?(?:^[ \t]*".*\n?)*)+', re.MULTILINE)
_FLAGS = re.compile(r"^[ \t]*#,(.*?)(\r?\n)", re.MULTILINE)
_MESSAGE = re.compile(r"^[ \t]*(?:#\||msg)", re.MULTILINE)
# A line as it is written; the parser also takes others, without the invisible characters in them.
_LINE = re.compile(
    r'[ \t]*(?:#(?:[^\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff].*)?|(?:msg\w+(?:\[\d\])?[ \t]*)?".*|)\s*', re.DOTALL
)
# Of larger numbers the forms repeat.
_NUMBERS = (0, *range(2, 1001))


def read_catalogue(path: Path, request: Request) -> Document:
    """Read a catalogue whose translations are in the target language."""
    encoding = charset(path)
    text = read_text(path, encoding)
    lines = text.removeprefix("\ufeff").split("\n")
    catalogue = parse(path, lines)
    if odd := next((number for number, line in enumerate(lines, start=1) if not _LINE.fullmatch(line)), 0):
        cure = "remove them; `msgattrib -o NEW.po FILE` writes a catalogue anew"
        raise TextError("invisible characters outside of strings", place=f"{path}:{odd}", cure=cure)
    fields = header_fields(catalogue)
    if "charset=CHARSET" in fields.get("content-type", ""):
        cure = f"make a catalogue of it: msginit --no-translator -l {request.target} -i {path.name} -o NEW.po"
        raise TextError("a template, whose header names no charset", place=str(path), cure=cure)
    is_template = not any(entry.translated() for entry in catalogue)
    if not side_of_translations(path, fields, (request.source, request.target), is_template=is_template):
        problem = f"its translations are in {fields.get('language')!r}, not in {request.target!r}"
        raise TextError(problem, place=str(path), cure="name the other language with --to, or another catalogue")
    plural = plural_rule(path, fields.get("plural-forms", ""))
    starts = line_starts(text)
    num_forms = _num_forms(fields.get("plural-forms", ""))
    document = Document(path, text, [], encoding=encoding)
    first_lines = [max(entry.linenum - 1, 0) for entry in catalogue] + [len(starts) - 1]
    for entry, (first, end) in zip(catalogue, pairwise(first_lines), strict=True):
        place = _Entry(text, starts[first], starts[end], entry, request.mark)
        message = _MESSAGE.search(text, place.start, place.end)
        if entry.obsolete or message is None:
            continue
        line = first + 1 + text.count("\n", place.start, message.start())
        if place.msgstr() is None:
            cure = "correct it; `msgfmt --check-format -o /dev/null FILE` lists all errors"
            raise TextError("an entry that is obsolete in part", place=f"{path}:{line}", cure=cure)
        forms = _forms(entry, plural, num_forms)
        if forms is None:
            reason = "plural forms, and no Plural-Forms header says how many"
            document.left_alone.append((line, reason))
        else:
            document.units.append(_unit(place, line, forms))
    if (language := _NO_LANGUAGE.search(text, 0, starts[first_lines[0]])) is not None:
        document.edits.append((*language.span(1), f" {request.target.replace('-', '_')}"))
    return document


def _num_forms(header: str) -> int:
    match = re.search(r"nplurals\s*=\s*(\d)", header)
    return int(match[1]) if match else 0


@dataclass(frozen=True)
class _Entry:
    """An entry in the text of its catalogue."""

    text: str
    start: int
    end: int
    entry: Any
    mark: bool

    def msgstr(self) -> re.Match[str] | None:
        """Return where the translation is."""
        return _MSGSTR.search(self.text, self.start, self.end)

    def edits(self, forms: Sequence[str]) -> list[Edit]:
        """Return the edits that write all forms of the translation."""
        match = self.msgstr()
        assert match is not None, "such an entry has been refused"
        written = match.group().rstrip("\r\n")
        newline = "\r\n" if "\r\n" in match.group() else "\n"
        names = [f"msgstr[{index}]" for index in range(len(forms))] if self.entry.msgid_plural else ["msgstr"]
        lines = [line for name, form in zip(names, forms, strict=True) for line in _lines(name, form)]
        return [*self._flag_edits(newline), (match.start(), match.start() + len(written), newline.join(lines))]

    def _flag_edits(self, newline: str) -> list[Edit]:
        if self.entry.fuzzy == self.mark:
            return []
        for line in _FLAGS.finditer(self.text, self.start, self.end):
            flags = [flag.strip() for flag in line[1].split(",") if flag.strip()]
            if self.mark:
                return [(line.start(1), line.start(1), " fuzzy" + ("," if flags else ""))]
            if "fuzzy" in flags:
                flags.remove("fuzzy")
                return [(*line.span(1), f" {', '.join(flags)}") if flags else (*line.span(), "")]
        message = _MESSAGE.search(self.text, self.start, self.end)
        assert self.mark and message is not None, "an entry is fuzzy by its flags"
        return [(message.start(), message.start(), f"#, fuzzy{newline}")]


def _unit(place: _Entry, line: int, sources: dict[int, str]) -> Unit:
    """Return the unit of an entry, by the source of each form of its translation."""
    entry = place.entry
    existing = entry.msgstr_plural if entry.msgid_plural else {0: entry.msgstr}
    if entry.translated():
        return Unit(list(sources.values()), line, "translated", place.edits)
    if entry.fuzzy and all(existing.get(form) for form in sources):
        return Unit(list(sources.values()), line, "fuzzy", place.edits)
    empty = [form for form in sources if not existing.get(form)]

    def edits(translations: Sequence[str]) -> list[Edit]:
        new = dict(zip(empty, translations, strict=True))
        # The forms that stay are as fuzzy as before.
        marked = replace(place, mark=place.mark or (entry.fuzzy and len(empty) < len(sources)))
        return marked.edits([new.get(form) or existing[form] for form in sources])

    return Unit([sources[form] for form in empty], line, "untranslated", edits)


def _forms(entry: Any, plural: Callable[[int], int] | None, num_forms: int) -> dict[int, str] | None:
    """Return the source of each form: the singular for that of 1, the plural for all others; None where unknown.

    A form that serves other numbers too, as in Russian, has the plural as its source if the singular does not keep its
    placeholders, as "one file" for "%d files".
    """
    texts = messages(entry)
    if len(texts) == 1:
        return {0: texts[0]}
    if plural is None or not num_forms:
        return None
    singular = plural(1)
    serves_others = any(plural(n) == singular for n in _NUMBERS)
    if num_forms == 1 or (serves_others and first_intact(texts[1], [texts[0]]) is None):
        singular = -1
    return {form: texts[form != singular] for form in range(num_forms)}


def _lines(name: str, text: str) -> list[str]:
    """Return a translation as the lines of a catalogue, wrapped as gettext wraps."""
    # polib writes the field of an entry; of its other fields the first line is enough to leave them out.
    first, *rest = polib.POEntry(msgid="-", msgstr=text).__unicode__(wrapwidth=78).split("\n")[1:-1]
    return [first.replace("msgstr", name, 1), *rest]
