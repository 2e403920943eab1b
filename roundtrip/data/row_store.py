"""Lines on disk that can be read in any order: a text file, and where each row of it begins.

Neither writing nor reading holds rows in memory; to drop equal ones takes a byte for each.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

TextRow = tuple[str, ...]
# Bytes read at once; a longer row takes another read.
_PIECE = 512
# Numbers held before they go to disk.
_HELD = 1 << 16
# Keys that are compared at once.
_COMPARED = 1 << 18


class RowStore(Sequence[TextRow]):
    """Rows of one or two texts, read one at a time from disk; the corpus is never held in memory.

    A row is one line of the file, its columns parted by a tab. Cleaned text holds neither tabs nor line breaks.

    Raises:
        OSError: a file is not there.
        ValueError: they do not belong together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = [os.open(path, os.O_RDONLY), os.open(_index_path(path), os.O_RDONLY)]
        size = os.fstat(self._files[1]).st_size
        if size % 8:
            raise ValueError(f"{_index_path(path).name} is cut off")
        self._size = size // 8
        if len(self):
            self[-1]  # the end of the file is what the index says

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # `os` itself may be gone already when the interpreter ends.
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
        text, starts = self._files
        start = int.from_bytes(os.pread(starts, 8, 8 * (index % len(self))), "little")
        found = b""
        while (end := found.find(b"\n")) < 0:
            piece = os.pread(text, max(_PIECE, len(found)), start + len(found))
            if not piece:
                raise ValueError(f"{self.path.name} is cut off")
            found += piece
        return tuple(found[:end].decode("utf-8").split("\t"))

    def __iter__(self) -> Iterator[TextRow]:
        return (self[index] for index in range(len(self)))


def write(path: Path, rows: Iterable[TextRow]) -> RowStore:
    """Write rows to `path`, and where they begin to `path`.starts, and open them."""
    return _written(path, ((0, row) for row in rows), keyed=False)


def write_once(path: Path, rows: Iterable[tuple[int, TextRow]]) -> tuple[RowStore, int]:
    """Write rows but for those whose key an earlier one has.

    Args:
        rows: each with its key, of 64 bits.

    Returns:
        The rows that are left, and how many are not. (The text of these stays in the file; nothing leads to it.)
    """
    store = _written(path, rows, keyed=True)
    keys, starts = _keys_path(path), _index_path(path)
    first = _first_of_each(keys, len(store))
    kept = starts.with_name(f"{starts.name}.kept")
    with starts.open("rb") as source, kept.open("wb") as target:
        for at in range(0, len(first), _HELD):
            some = np.frombuffer(source.read(8 * _HELD), dtype="<u8")
            target.write(some[first[at : at + _HELD]].tobytes())
    kept.replace(starts)
    keys.unlink()
    return RowStore(path), len(first) - int(first.sum())


def _written(path: Path, rows: Iterable[tuple[int, TextRow]], *, keyed: bool) -> RowStore:
    starts, keys, at = array("Q"), array("Q"), 0
    with path.open("wb") as text, _index_path(path).open("wb") as index, _keys_path(path).open("wb") as marks:
        for key, row in rows:
            starts.append(at)
            at += text.write("\t".join(row).encode("utf-8") + b"\n")
            if keyed:
                keys.append(key)
            if len(starts) == _HELD:
                index.write(_little(starts))
                marks.write(_little(keys))
                starts, keys = array("Q"), array("Q")
        index.write(_little(starts))
        marks.write(_little(keys))
    if not keyed:
        _keys_path(path).unlink()
    return RowStore(path)


def _little(numbers: array[int]) -> bytes:
    return np.asarray(numbers, dtype="<u8").tobytes()


def _first_of_each(path: Path, size: int) -> np.ndarray:
    """Return whether each key of a file is there for the first time.

    Equal keys are of one part, and the parts, each in a file of its own, are compared one after the other.
    """
    first = np.zeros(size, dtype=bool)
    num_parts = max(1, -(-size // _COMPARED))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".keys-", suffix=".tmp") as folder:
        parts = [Path(folder) / str(number) for number in range(num_parts)]
        with path.open("rb") as file:
            at = 0
            while piece := file.read(8 * _HELD):
                keys = np.frombuffer(piece, dtype="<u8")
                part_of = keys % num_parts
                order = np.argsort(part_of, kind="stable")
                both = np.stack([keys[order], (at + order).astype("<u8")], 1)
                ends = np.searchsorted(part_of[order], np.arange(num_parts + 1))
                for part, start, end in zip(parts, ends, ends[1:], strict=False):
                    if end > start:
                        with part.open("ab") as target:
                            target.write(both[start:end].tobytes())
                at += len(keys)
        for part in parts:
            if part.exists():
                keys, places = np.fromfile(part, dtype="<u8").reshape(-1, 2).T
                _, earliest = np.unique(keys, return_index=True)
                first[places[earliest].astype(np.int64)] = True
    return first


def _index_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.starts")


def _keys_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.keys")
