"""Work for the next phase, done in a thread while the device works on this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Prefetcher:
    """One task that is started before its result is needed; has to be closed."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._started: tuple[int, Future[None]] | None = None

    def begin(self, number: int, work: Callable[[], None]) -> None:
        """Start the work of a phase, unless it has been started."""
        if self._started is None or self._started[0] != number:
            self._started = number, self._thread.submit(work)

    def need(self, number: int, work: Callable[[], None]) -> None:
        """Wait for the work of a phase; starts it where it has not been started.

        Raises:
            Exception: of the work.
        """
        self.begin(number, work)
        assert self._started is not None
        self._started[1].result()

    def close(self) -> None:
        """Drop work that has not started; running work ends in the background."""
        self._thread.shutdown(wait=False, cancel_futures=True)
