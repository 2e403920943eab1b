"""Stopping in good order: a first signal asks, a second one ends at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from roundtrip.runtime.errors import Interrupted

# Seconds in which further signals are the first one again: a shell, a launcher and a scheduler may all pass it on.
SAME = 1.0
_AT_ONCE = "\x1b[?25hstopped at once by a second signal; the last checkpoint is whole, a run goes on with --resume\n"


class StopRequest:
    """Whether somebody asked us to stop; the work looks at it where it can be left."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    @property
    def requested(self) -> bool:
        return self.signal_number is not None

    def request(self, number: int = signal.SIGTERM) -> None:
        """Ask to stop, as a signal does; the first to ask is remembered."""
        if self.signal_number is None:
            self.signal_number = number

    def raise_interrupted(self) -> NoReturn:
        """End the work.

        Raises:
            Interrupted: always.
        """
        assert self.signal_number is not None
        raise Interrupted(self.signal_number, f"stopped by {signal.Signals(self.signal_number).name}")

    def raise_if_requested(self) -> None:
        """End the work if a signal came."""
        if self.requested:
            self.raise_interrupted()


@contextmanager
def catch_signals(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Catch Ctrl-C, SIGTERM and the hangup of a terminal for a while; outside of the main thread nothing is caught.

    Args:
        say: shows the person that the signal was heard.
    """
    stop = StopRequest()
    first = [0.0]

    def heard(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not stop.requested:
            stop.request(number)
            first[0] = now
            # The terminal may be gone, or in the middle of a line of its own.
            with suppress(OSError, RuntimeError):
                say("stopping at the next step; a second signal stops at once")
        elif now - first[0] > SAME:
            # Not by an exception, which whoever is at work may catch, or which may wait for a thread.
            try:
                sys.stdout.flush()
                text = _AT_ONCE if sys.stderr.isatty() else _AT_ONCE.removeprefix("\x1b[?25h")
                os.write(2, text.encode())
            finally:
                os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    heeded = [signal.SIGINT, signal.SIGTERM]
    # Who started us with nohup does not want to hear of hangups.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        heeded.append(signal.SIGHUP)
    before = {number: signal.signal(number, heard) for number in heeded}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
