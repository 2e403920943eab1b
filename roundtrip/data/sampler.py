"""The order in which rows are read: a pure function of (seed, epoch, index), so that a cursor is two integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from roundtrip.runtime.seeding import permuted_index

T = TypeVar("T")


@dataclass(frozen=True)
class Cursor:
    """How far a stream has been read: `index` rows of pass number `epoch`."""

    epoch: int = 0
    index: int = 0


def take_rows(rows: Sequence[T], cursor: Cursor, number: int, seed: int) -> tuple[list[T], Cursor]:
    """Read the next rows of an endless, reshuffled stream.

    Returns:
        The rows and the cursor behind them; its epoch has grown by one for each time the rows started over.
        Nothing where `rows` is empty.
    """
    taken: list[T] = []
    epoch, index = cursor.epoch, cursor.index
    while len(taken) < number and len(rows):
        if index == len(rows):
            epoch, index = epoch + 1, 0
        taken.append(rows[permuted_index(index, len(rows), seed, epoch)])
        index += 1
    return taken, Cursor(epoch, index)
