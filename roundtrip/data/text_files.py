"""Reads text files, plain or gzipped, by line; invalid bytes are reported with file and line."""

import codecs
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from roundtrip.runtime.errors import TextError
from roundtrip.runtime.special_files import SPECIAL_CURE, special_kind

# A longer line is not a sentence, and would have to be held in memory.
MAX_LINE_BYTES = 8 << 20
# Text compresses about ten times. A file that expands more than MAX_GROWTH times, past FREE_BYTES, is a bomb.
MAX_GROWTH = 300
FREE_BYTES = 100 * 10**6
# The first bytes of files that are often taken for text, what they are, and what to do.
_UTF_16 = "Convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW."
_BINARY = (
    (b"\x1f\x8b", "it is compressed with gzip", "Give it a name that ends in .gz (if it has one: gunzip it once)."),
    (b"PAR1", "it is a parquet file", "Give it a name that ends in .parquet, or set `format` in the recipe."),
    (b"PK\x03\x04", "it is a zip archive, or an office document", "Unpack it, or export the text, and name that file."),
    (b"BZh", "it is compressed with bzip2", "Unpack it: bunzip2 FILE."),
    (b"\xfd7zXZ\0", "it is compressed with xz", "Unpack it: unxz FILE."),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd", "Unpack it: unzstd FILE."),
    (b"%PDF", "it is a PDF", "Export its text, one sentence or paragraph per line, and name that file."),
    (b"\xd0\xcf\x11\xe0", "it is an office document", "Export its text, and name that file."),
    (codecs.BOM_UTF32_LE, "it is UTF-32", "Convert it: iconv -f UTF-32 -t UTF-8 FILE > NEW."),
    (codecs.BOM_UTF16_LE, "it is UTF-16", _UTF_16),
    (codecs.BOM_UTF16_BE, "it is UTF-16", _UTF_16),
)
_CARRIAGE_RETURNS = "its lines end in a carriage return alone", "Convert it: tr '\\r' '\\n' < FILE > NEW."
_BROKEN_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)


@contextmanager
def open_text(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, through gzip if its name ends in `.gz`.

    Raises TextError where it cannot be read or its gzip stream is broken, also while the caller reads, and for a pipe
    or device, which may have no end.
    """
    if kind := special_kind(path):
        raise TextError(f"{kind}, not a file", place=str(path), cure=SPECIAL_CURE)
    try:
        if path.suffix.lower() != ".gz":
            with path.open("rb") as handle:
                yield handle
        else:
            with _LimitedGzip(path) as unpacked, io.BufferedReader(cast(io.RawIOBase, unpacked)) as reader:
                yield cast(BinaryIO, reader)
    except _BROKEN_GZIP as error:
        raise _broken_gzip(str(path), error) from error
    except OSError as error:
        cure = "Check that the file exists and that you may read it."
        raise TextError(f"cannot be read: {error.strerror or error}", place=str(path), cure=cure) from error


class _LimitedGzip(gzip.GzipFile):
    """A gzip file, up to the size that text can have."""

    def readinto(self, buffer: Any) -> int:
        size = self.readinto1(buffer)
        if self.tell() > max(FREE_BYTES, MAX_GROWTH * os.fstat(self.fileno()).st_size):
            problem = f"it grows more than {MAX_GROWTH} times when it is unpacked"
            raise TextError(problem, place=str(self.name), cure="Unpack it yourself if you trust it.")
        return size


class HasLines(Protocol):
    """What lines are read from: a binary file."""

    def readline(self, size: int, /) -> bytes: ...


def raw_lines(handle: HasLines) -> Iterator[bytes]:
    """Yield the lines of a file as bytes; a line over the limit in several parts."""
    return iter(lambda: handle.readline(MAX_LINE_BYTES + 1), b"")


def read_text_lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """Yield the lines of a file, see `decoded_lines`."""
    with open_text(path) as handle:
        yield from decoded_lines(handle, str(path), encoding)


def read_sentences(path: Path) -> Iterator[str]:
    """Yield the lines of a file that has one text per line."""
    for number, line in enumerate(read_text_lines(path), start=1):
        # In text that was crawled there may be a stray one.
        if line.rstrip("\r\n").count("\r") > 1:
            raise TextError(_CARRIAGE_RETURNS[0], place=f"{path}:{number}", cure=_CARRIAGE_RETURNS[1])
        yield line


def decoded_lines(handle: HasLines, place: str, encoding: str = "utf-8") -> Iterator[str]:
    """Yield lines of text, line ends kept; only a line feed ends a line, as in `wc -l`.

    Raises TextError at PLACE:LINE where a line is not in this encoding, or unreadable, or the file is not one of lines.
    """
    number = 0
    try:
        for number, raw in enumerate(raw_lines(handle), start=1):
            if number == 1 and (not_lines := _not_text_lines(raw, encoding)):
                raise TextError(not_lines[0], place=place, cure=not_lines[1])
            if len(raw) > MAX_LINE_BYTES:
                cure = "Text has one sentence or paragraph per line; check that this is a text file."
                raise TextError(f"a line of more than {MAX_LINE_BYTES >> 20} MiB", place=f"{place}:{number}", cure=cure)
            text = raw.decode(encoding)
            # A byte order mark would become part of the first quote of a csv, or of the first name of a header.
            yield text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError as error:
        name = codecs.lookup(encoding).name.upper()
        problem = f"not {name} (byte 0x{error.object[error.start]:02x})"
        cure = (
            f"Convert the file if it is in another encoding: iconv -f WINDOWS-1252 -t {name} FILE > NEW, with the "
            "name that `file -i FILE` shows; if only this line is damaged, correct it."
        )
        raise TextError(problem, place=f"{place}:{number}", cure=cure) from error
    except _BROKEN_GZIP as error:
        raise _broken_gzip(f"{place}:{number + 1}", error) from error
    except OSError as error:
        cure = "Name a file or a pipe that is open for reading."
        raise TextError(f"cannot be read: {error.strerror or error}", place=place, cure=cure) from error


def markup_kind(line: str) -> str | None:
    """Return what a file is whose first line is not text: XML, HTML, JSON, or another; None where it may be text."""
    start = line.strip().lower()
    if start.startswith(("<!doctype html", "<html")):
        return "HTML"
    # Text may begin with a tag, but a line that is nothing else is none.
    if start.startswith(("<?xml", "<xliff", "<tmx")) or re.fullmatch(r"<[a-z!][^<>]*>", start):
        return "XML"
    if start.startswith(("webvtt", 'msgid "')):
        return "subtitles" if start[0] == "w" else "a gettext catalogue"
    stripped = line.strip()
    return "JSON" if stripped in ("[", "{") or re.match(r'[\[{]\s*[{\["]', stripped) and _is_json(stripped) else None


def without_markup(lines: Iterator[str], refusal: Callable[[str], TextError]) -> Iterator[str]:
    """Yield lines; raise the refusal of a `markup_kind` that the first line with text in it has."""
    for line in lines:
        if kind := markup_kind(line):
            raise refusal(kind)
        yield line
        if line.strip():
            break
    yield from lines


def _is_json(line: str) -> bool:
    """Return whether a line is JSON, or the start of it: some text begins with a bracket too."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line)
    except RecursionError:
        return True
    return True


def _not_text_lines(first: bytes, encoding: str) -> tuple[str, str] | None:
    """Return the problem and the cure of a file whose first line shows that it does not hold lines of text."""
    for magic, kind, cure in _BINARY:
        if first.startswith(magic):
            return f"not text: {kind}", cure
    if b"\0" in first and not codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        # Of a letter of Latin script the first byte is zero in big-endian order.
        order = "BE" if first.index(b"\0") % 2 == 0 else "LE"
        cure = f"If it is UTF-16: iconv -f UTF-16{order} -t UTF-8 FILE > NEW."
        return "not text: it has NUL bytes, as UTF-16 has and binary files", cure
    return _CARRIAGE_RETURNS if not first.endswith(b"\n") and b"\r" in first.rstrip(b"\r") else None


def _broken_gzip(place: str, error: Exception) -> TextError:
    cure = "Download the file again; `gzip -t` tests a copy."
    return TextError(f"the gzip stream is broken ({error})", place=place, cure=cure)
