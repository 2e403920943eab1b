"""Files on disk, plain or gzip, as lines of text; a byte that does not belong is met with file and line."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from roundtrip.errors import TextError

_BROKEN_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, through gzip if its name ends in `.gz`.

    Raises:
        TextError: the file cannot be read, or its gzip stream is broken (also while the caller reads).
    """
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as handle:
            yield cast(BinaryIO, handle)
    except _BROKEN_GZIP as error:
        raise _broken_gzip(str(path), error) from error
    except OSError as error:
        raise TextError(f"cannot be read: {error.strerror or error}", place=str(path)) from error


def lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """Yield the lines of a file, line ends kept; only a line feed ends a line, as in `wc -l`.

    Raises:
        TextError: a line is not in this encoding, or the file is unreadable; the place is FILE:LINE.
    """
    number = 0
    with opened(path) as handle:
        try:
            for number, raw in enumerate(handle, start=1):
                text = _decode(raw, encoding, path, number)
                # A byte order mark would hide the opening quote of a csv and the first name of a header.
                yield text.removeprefix("\ufeff") if number == 1 else text
        except _BROKEN_GZIP as error:
            raise _broken_gzip(f"{path}:{number + 1}", error) from error


def _decode(raw: bytes, encoding: str, path: Path, number: int) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        name = codecs.lookup(encoding).name.upper()
        raise TextError(
            f"not {name} (byte 0x{raw[error.start]:02x})",
            place=f"{path}:{number}",
            cure=f"Convert the file: iconv -f ISO-8859-1 -t {name} (-f: what it really is in).",
        ) from error


def _broken_gzip(place: str, error: Exception) -> TextError:
    return TextError(
        f"the gzip stream is broken ({error})",
        place=place,
        cure="Fetch the file again; `gzip -t` says whether a copy is whole.",
    )
