"""Lines on disk that can be read in any order: a text file and the byte offset of each line."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

Row = tuple[str, ...]


class Store(Sequence[Row]):
    """Rows of one or two texts, read one at a time from disk; the corpus is never held in memory.

    A row is one line of the file, its columns parted by a tab. Cleaned text holds neither tabs nor line breaks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets = np.load(_index_path(path), mmap_mode="r")
        with path.open("rb") as file:
            # An empty file cannot be mapped.
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if len(self) else b""

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start, end = (int(offset) for offset in self._offsets[index % len(self) :][:2])
        return tuple(self._bytes[start : end - 1].decode("utf-8").split("\t"))

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))


def write(path: Path, rows: Iterable[Row]) -> Store:
    """Write rows to `path` (and `path`.offsets.npy) and open them."""
    offsets = [0]
    with path.open("wb") as file:
        for row in rows:
            offsets.append(offsets[-1] + file.write("\t".join(row).encode("utf-8") + b"\n"))
    with _index_path(path).open("wb") as file:
        np.save(file, np.asarray(offsets, dtype=np.int64), allow_pickle=False)
    return Store(path)


def _index_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.offsets.npy")
