"""Rows on disk with random access: a text file, and an index of the byte offset and a checksum of each row.

A run reads rows for days: each is compared with its checksum, so that no damaged row is ever trained on. Neither
writing nor reading holds rows in memory; dropping duplicates takes one byte of memory per row.
"""

import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import overload

import numpy as np

from roundtrip.runtime.atomic_io import TEMPORARY
from roundtrip.runtime.errors import TextError

TextRow = tuple[str, ...]
# Bytes per read; a longer row takes more reads.
_READ_BYTES = 512
# Of an entry of the index, 8 bytes, those of the checksum; the others are the offset, below a terabyte.
_CHECKSUM_BITS = 24
# Entries that are read at once.
_BUFFER_ITEMS = 1 << 16
# Parts of the keys, which are compared in memory one after the other.
_NUM_PARTS = 64


class RowStore(Sequence[TextRow]):
    """Rows of one or two texts, read one at a time from disk; the corpus is never held in memory.

    A row is one line of the file, its columns separated by a tab. Clean text contains neither tabs nor line breaks.
    Raises OSError where a file is missing, TextError where file and index do not match.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = [os.open(path, os.O_RDONLY), os.open(_index_path(path), os.O_RDONLY)]
        size = os.fstat(self._files[1]).st_size
        if size % 8:
            raise self._damaged(f"{_index_path(path).name} is truncated")
        self._size = size // 8
        if len(self):
            self[-1]  # fails unless the file is as long as the index says

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # `os` itself may already be gone at interpreter exit.
        for file in getattr(self, "_files", ()):
            close(file)

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> TextRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[TextRow]: ...
    def __getitem__(self, index: int | slice) -> TextRow | list[TextRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        text_file, index_file = self._files
        entry = int.from_bytes(os.pread(index_file, 8, 8 * (index % len(self))), "little")
        start = entry >> _CHECKSUM_BITS
        content = b""
        while (end := content.find(b"\n")) < 0:
            chunk = os.pread(text_file, max(_READ_BYTES, len(content)), start + len(content))
            if not chunk:
                raise self._damaged(f"{self.path.name} is truncated")
            content += chunk
        if entry != _entry(start, content[: end + 1]):
            raise self._damaged(f"row {index % len(self) + 1} of {self.path.name} has been changed")
        return tuple(content[:end].decode("utf-8").split("\t"))

    def __iter__(self) -> Iterator[TextRow]:
        return (self[index] for index in range(len(self)))

    def _damaged(self, problem: str) -> TextError:
        problem = f"the text of this run is damaged: {problem}"
        return TextError(problem, place=str(self.path.parent), cure="restore that file, or start a new run")


def write(path: Path, rows: Iterable[TextRow]) -> RowStore:
    """Write rows to `path` and their index to `path`.starts, and open the store."""
    offset = 0
    with path.open("wb") as text, _index_path(path).open("wb") as index:
        for row in rows:
            line = "\t".join(row).encode("utf-8") + b"\n"
            index.write(_entry(offset, line).to_bytes(8, "little"))
            offset += text.write(line)
    return RowStore(path)


def write_once(path: Path, rows: Iterable[tuple[int, TextRow]]) -> tuple[RowStore, int]:
    """Write rows except those with the key (of 64 bits) of an earlier row, and return how many these were.

    Their text stays in the file without an index entry.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".keys-", suffix=TEMPORARY) as folder:
        # Equal keys are in the same part.
        parts = [Path(folder) / str(number) for number in range(_NUM_PARTS)]
        with ExitStack() as stack:
            files = [stack.enter_context(part.open("wb")) for part in parts]

            def with_keys_written() -> Iterator[TextRow]:
                for number, (key, row) in enumerate(rows):
                    files[key % _NUM_PARTS].write(key.to_bytes(8, "little") + number.to_bytes(8, "little"))
                    yield row

            is_first = np.zeros(len(write(path, with_keys_written())), dtype=bool)
        for part in parts:
            keys, numbers = np.fromfile(part, dtype="<u8").reshape(-1, 2).T
            _, earliest = np.unique(keys, return_index=True)
            is_first[numbers[earliest].astype(np.int64)] = True
    index = _index_path(path)
    kept = index.with_name(f"{index.name}.kept")
    with index.open("rb") as source, kept.open("wb") as target:
        for start in range(0, len(is_first), _BUFFER_ITEMS):
            entries = np.frombuffer(source.read(8 * _BUFFER_ITEMS), dtype="<u8")
            target.write(entries[is_first[start : start + _BUFFER_ITEMS]].tobytes())
    kept.replace(index)
    return RowStore(path), len(is_first) - int(is_first.sum())


def _entry(offset: int, line: bytes) -> int:
    """Return the entry of a line in the index."""
    return offset << _CHECKSUM_BITS | zlib.crc32(line) & (1 << _CHECKSUM_BITS) - 1


def _index_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.starts")
