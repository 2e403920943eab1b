"""Work for the next phase, done in a thread while the device is busy with this one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Prefetcher:
    """One piece of work that is started before its result is needed."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._started: tuple[int, Future[None]] | None = None

    def start(self, key: int, work: Callable[[], None]) -> None:
        """Start a piece of work, unless the one with this key is started already."""
        if self._started is None or self._started[0] != key:
            self._started = key, self._thread.submit(work)

    def wait(self) -> None:
        """Return when the work that was started last is done; raise what it has raised."""
        if self._started is not None:
            self._started[1].result()

    def close(self) -> None:
        """Cancel what has not started; what is running ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)
