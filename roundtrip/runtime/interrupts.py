"""Stopping on signals: the first one requests a stop at the next step, a second one ends the process."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from roundtrip.runtime.errors import Interrupted

# Seconds in which further signals count as the first one: a shell, a launcher and a scheduler may all forward it.
SAME_SIGNAL_SECONDS = 1.0
_STOPPING = "stopping at the next step; a second signal ends the process"
_ENDED = "ended by a second signal; the last checkpoint is complete, --resume continues the run"


class StopRequest:
    """Whether a stop was requested; read where the work can be interrupted."""

    signal_number: int | None = None

    @property
    def requested(self) -> bool:
        return self.signal_number is not None

    def request(self, number: int = signal.SIGTERM) -> None:
        """Request a stop, as a signal does; the first signal is remembered."""
        self.signal_number = self.signal_number or number

    def raise_if_requested(self) -> None:
        """End the work by `Interrupted` if a stop was requested."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)


@contextmanager
def catch_signals(say: Callable[[str], None], stopping: str = _STOPPING, ended: str = _ENDED) -> Iterator[StopRequest]:
    """Catch Ctrl-C, SIGTERM and the hangup of a terminal, and say so; outside of the main thread nothing is caught.

    Args:
        stopping: what is said at the first signal.
        ended: what a second one writes to standard error before it ends the process.
    """
    stop = StopRequest()
    first = 0.0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal first
        if not stop.requested:
            stop.request(number)
            first = time.monotonic()
            # The terminal may be gone, or printing at this moment.
            with suppress(OSError, RuntimeError):
                say(stopping)
        elif time.monotonic() - first > SAME_SIGNAL_SECONDS:
            # Not by an exception, which the running code may catch, or which may wait for a thread.
            try:
                sys.stdout.flush()
                show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
                os.write(2, f"{show_cursor}{ended}\n".encode())
            finally:
                os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    caught = [signal.SIGINT, signal.SIGTERM]
    # nohup ignores hangups on purpose.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        caught.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
