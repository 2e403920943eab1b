"""Work for the next phase, done in a thread while the device is busy with this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Prefetcher:
    """One piece of work that is begun before it is needed; close it in the end."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._begun: tuple[int, Future[None]] | None = None

    def begin(self, number: int, work: Callable[[], None]) -> None:
        """Begin the work of a phase, unless it is under way."""
        if self._begun is None or self._begun[0] != number:
            self._begun = number, self._thread.submit(work)

    def need(self, number: int, work: Callable[[], None]) -> None:
        """Return when the work of a phase is done; where it was not begun before it is begun now.

        Raises:
            Whatever the work has raised.
        """
        self.begin(number, work)
        assert self._begun is not None
        self._begun[1].result()

    def close(self) -> None:
        """Wait for nothing: what has not begun is dropped, what is under way comes to its end unseen."""
        self._thread.shutdown(wait=False, cancel_futures=True)
