"""Reads text files, plain or gzipped, by line; invalid bytes are reported with file and line."""

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from roundtrip.runtime.errors import TextError

# A longer line is not a sentence, and would have to be held in memory.
MAX_LINE_BYTES = 8 << 20
# Text compresses about ten times. A file that expands more than MAX_GROWTH times, past FREE_BYTES, is a bomb.
MAX_GROWTH = 300
FREE_BYTES = 100 * 10**6
_BROKEN_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)


@contextmanager
def open_text(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, through gzip if its name ends in `.gz`.

    Raises TextError where it cannot be read or its gzip stream is broken, also while the caller reads.
    """
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


def raw_lines(handle: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file as bytes; a line over the limit in several parts."""
    return iter(lambda: handle.readline(MAX_LINE_BYTES + 1), b"")


def read_text_lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """Yield the lines of a file, see `decoded_lines`."""
    with open_text(path) as handle:
        yield from decoded_lines(handle, str(path), encoding)


def decoded_lines(handle: BinaryIO, place: str, encoding: str = "utf-8") -> Iterator[str]:
    """Yield lines of text, line ends kept; only a line feed ends a line, as in `wc -l`.

    Raises TextError at PLACE:LINE where a line is not in this encoding, or unreadable.
    """
    number = 0
    try:
        for number, raw in enumerate(raw_lines(handle), start=1):
            if len(raw) > MAX_LINE_BYTES:
                cure = "Text has one sentence or paragraph per line; check that this is a text file."
                raise TextError(f"a line of more than {MAX_LINE_BYTES >> 20} MiB", place=f"{place}:{number}", cure=cure)
            text = raw.decode(encoding)
            # A byte order mark would become part of the first quote of a csv, or of the first name of a header.
            yield text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError as error:
        name = codecs.lookup(encoding).name.upper()
        problem = f"not {name} (byte 0x{error.object[error.start]:02x})"
        cure = f"Convert the file: iconv -f ISO-8859-1 -t {name} (-f: its actual encoding)."
        raise TextError(problem, place=f"{place}:{number}", cure=cure) from error
    except _BROKEN_GZIP as error:
        raise _broken_gzip(f"{place}:{number + 1}", error) from error


def _broken_gzip(place: str, error: Exception) -> TextError:
    cure = "Download the file again; `gzip -t` tests a copy."
    return TextError(f"the gzip stream is broken ({error})", place=place, cure=cure)
