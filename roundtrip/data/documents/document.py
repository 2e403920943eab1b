"""A document: what is translated in it, and how translations are written into it without changing anything else.

A format is a module with one function that returns the `Document` of a file. Translations are written as edits of the
text of the file: nothing is serialized again.
"""

import codecs
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from roundtrip.data.text_files import decoded_lines, open_text
from roundtrip.runtime.errors import TextError

MAX_DOCUMENT_BYTES = 200 << 20
# `fuzzy` is translated, but marked as not reviewed.
Status = Literal["untranslated", "fuzzy", "translated"]
# The start and the end of what is replaced in the text of a document, and the replacement.
Edit = tuple[int, int, str]


@dataclass(frozen=True)
class Request:
    """What is to be translated: from which language into which, and where a table has the texts.

    Attributes:
        mark: mark translations as machine-made, where the format can: fuzzy in gettext, the state in XLIFF.
    """

    source: str
    target: str
    from_column: str | int | None = None
    to_column: str | int | None = None
    mark: bool = True


@dataclass(frozen=True)
class Unit:
    """Texts that are translated together: an entry, a cue, a line, a row.

    Attributes:
        sources: the texts, which may have several lines.
        line: its number in the file, from 1.
        edits: how translations of all sources are written. Raises TextError where they cannot be.
    """

    sources: Sequence[str]
    line: int
    status: Status
    edits: Callable[[Sequence[str]], list[Edit]]


@dataclass(frozen=True)
class Document:
    """A file that is translated.

    Attributes:
        text: all of it, with its line ends and byte order mark.
        errors: what encoding does with characters that the encoding does not have, as in `str.encode`.
        left_alone: line and reason of what cannot be translated.
        edits: what is changed besides the units where a translation is written, such as the language in a header.
    """

    path: Path
    text: str
    units: list[Unit]
    left_alone: list[tuple[int, str]] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    encoding: str = "utf-8"
    errors: str = "strict"

    def unit_edits(self, unit: Unit, translations: Sequence[str]) -> list[Edit]:
        """Return the edits of a unit.

        Raises:
            TextError: the translations cannot be written there.
        """
        edits = unit.edits(translations)
        try:
            "".join(text for _, _, text in edits).encode(self.encoding, self.errors)
        except UnicodeEncodeError as error:
            character = error.object[error.start]
            problem = f"its translation has {character!r}, which {self.encoding} cannot encode"
            raise TextError(problem, place=f"{self.path}:{unit.line}", cure="convert the file to UTF-8") from error
        return edits

    def write(self, translations: Mapping[int, Sequence[str]]) -> bytes:
        """Return the bytes of the file with the translations of units, by their index."""
        edits = [edit for index in translations for edit in self.unit_edits(self.units[index], translations[index])]
        parts, end = [], 0
        # Stable: at one position the edits of the document come first.
        for start, stop, text in sorted(self.edits + edits if edits else [], key=lambda edit: edit[0]):
            assert start >= end, "edits do not overlap"
            parts += [self.text[end:start], text]
            end = stop
        return "".join([*parts, self.text[end:]]).encode(self.encoding, self.errors)


def read_bytes(path: Path) -> bytes:
    """Return a file whole, if it is of a size that a document has."""
    with open_text(path) as handle:
        data = handle.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        problem = f"a file of more than {MAX_DOCUMENT_BYTES >> 20} MiB, which would have to be read whole"
        raise TextError(problem, place=str(path), cure="split it")
    return data


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Return the text of a file of lines, with its line ends and its byte order mark."""
    data = read_bytes(path)
    mark = "\ufeff" if codecs.lookup(encoding).name == "utf-8" and data.startswith(codecs.BOM_UTF8) else ""
    text = mark + "".join(decoded_lines(io.BytesIO(data), str(path), encoding))
    if text.encode(encoding) != data:
        problem = f"encoding its text again as {encoding} gives other bytes"
        raise TextError(problem, place=str(path), cure=f"convert it: iconv -f {encoding} -t UTF-8 FILE > NEW")
    return text


def line_starts(text: str) -> list[int]:
    """Return where each line begins, and where the last one ends; only a line feed ends a line."""
    starts = [0]
    while (end := text.find("\n", starts[-1])) >= 0:
        starts.append(end + 1)
    return starts if starts[-1] == len(text) else [*starts, len(text)]


def replace_span(start: int, end: int) -> Callable[[Sequence[str]], list[Edit]]:
    """Return the `edits` of a unit whose only translation replaces a part of the text."""
    return lambda translations: [(start, end, translations[0])]


def status_of(target: str) -> Status:
    """Return the status of a translation in a format that has no marks."""
    return "translated" if target.strip() else "untranslated"
