"""The formats of documents, by the endings of their names."""

from collections.abc import Callable
from pathlib import Path

from roundtrip.data.documents.catalogue import read_catalogue
from roundtrip.data.documents.document import Document, Request
from roundtrip.data.documents.exchange import read_exchange
from roundtrip.data.documents.lines import read_lines, read_subtitles
from roundtrip.data.documents.tables import read_csv_document, read_jsonl_document, read_tsv_document
from roundtrip.data.readers import format_of_name
from roundtrip.recipe.language_codes import match_rank
from roundtrip.runtime.errors import TextError

_READERS: dict[str, Callable[[Path, Request], Document]] = {
    "po": read_catalogue,
    "xliff": read_exchange,
    "tmx": read_exchange,
    "tsv": read_tsv_document,
    "csv": read_csv_document,
    "jsonl": read_jsonl_document,
    "srt": read_subtitles,
    "vtt": read_subtitles,
    "txt": read_lines,
}


def document_format(path: Path) -> str | None:
    """Return the format that the name of a file says it is in, None for that of no document."""
    name = format_of_name(path)
    return name if name in _READERS and path.suffix.lower() != ".gz" else None


def read_document(path: Path, request: Request) -> Document:
    """Read a document; one without an ending, or with that of the source language, is one of plain lines.

    Raises:
        TextError: the file is not in its format, holds other languages, or cannot be read.
    """
    if path.suffix.lower() == ".gz":
        raise TextError("it is compressed", place=str(path), cure="unpack it with gunzip, and name the result")
    name = format_of_name(path)
    if name not in (*_READERS, "", "text") and match_rank(request.source, name) is None:
        cure = f"convert it to one of {', '.join(f'.{each}' for each in _READERS)}"
        raise TextError(f"a .{name} file, which is not translated", place=str(path), cure=cure)
    return _READERS.get(name, read_lines)(path, request)
