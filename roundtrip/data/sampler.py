"""Shuffled reading of rows: the order is a pure function of (seed, epoch, index), so a cursor is two integers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from roundtrip.runtime.seeding import permuted_index

T = TypeVar("T")


@dataclass(frozen=True)
class Cursor:
    """The position in a stream: `index` rows of epoch `epoch` have been read."""

    epoch: int = 0
    index: int = 0


def take_rows(rows: Sequence[T], cursor: Cursor, num_rows: int, seed: int) -> tuple[list[T], Cursor]:
    """Return the next rows of an endless, reshuffled stream, none where `rows` is empty, and the cursor after them.

    Its epoch counts how often the rows were read completely.
    """
    taken: list[T] = []
    epoch, index = cursor.epoch, cursor.index
    while len(taken) < num_rows and len(rows):
        if index == len(rows):
            epoch, index = epoch + 1, 0
        taken.append(rows[permuted_index(index, len(rows), seed, epoch)])
        index += 1
    return taken, Cursor(epoch, index)
