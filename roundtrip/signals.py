"""Stopping in good order: a first signal asks, a second one ends at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from roundtrip.errors import Interrupted


class Stop:
    """Whether somebody asked us to stop; the work looks at it where it can be left."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    @property
    def requested(self) -> bool:
        return self.signal_number is not None

    def leave(self) -> NoReturn:
        """End the work.

        Raises:
            Interrupted: always.
        """
        assert self.signal_number is not None
        raise Interrupted(self.signal_number, f"stopped by {signal.Signals(self.signal_number).name}")

    def leave_if_asked(self) -> None:
        """End the work if a signal came."""
        if self.requested:
            self.leave()


@contextmanager
def listening(say: Callable[[str], None]) -> Iterator[Stop]:
    """Catch Ctrl-C and SIGTERM for a while.

    Args:
        say: shows the person that the signal was heard.
    """
    stop = Stop()

    def heard(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise Interrupted(number, "stopped at once by a second signal; the last checkpoint is whole")
        stop.signal_number = number
        say("stopping at the next step; a second signal stops at once")

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
