"""Translating for many clients with one model: requests wait in a queue, and one thread translates them in batches."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from roundtrip.engine.checked_translation import CheckedTranslation
from roundtrip.engine.request import Callbacks
from roundtrip.runtime.errors import quantity
from roundtrip.runtime.interrupts import StopRequest

# Seconds after which the working thread looks whether a stop was requested.
_POLL_SECONDS = 0.2
STOPPING = "the server is stopping"

# Translates texts in a direction, which is named.
TranslateTexts = Callable[[str, Sequence[str], Callbacks], list[CheckedTranslation]]


@dataclass(frozen=True)
class Limits:
    """What clients may ask for."""

    max_chars: int = 10_000  # of all texts of a request
    max_texts: int = 100  # of a request
    max_waiting: int = 256  # requests in the queue
    seconds: float = 60.0  # from reading a request to its answer
    batch_chars: int = 8_000  # of the requests that are translated together


class QueueError(Exception):
    """The queue takes no request at present; the message is for the client, who may try again."""


class _AbandonedError(Exception):
    """Nobody waits for the running batch any more."""


@dataclass(eq=False)
class QueuedRequest:
    """Texts that wait for their translations, or are being translated."""

    direction: str
    texts: Sequence[str]
    result: Future[list[CheckedTranslation]] = field(default_factory=Future)
    is_abandoned: bool = False  # set where nobody waits for the result any more

    def __post_init__(self) -> None:
        self.num_chars, self.longest = sum(map(len, self.texts)), max(map(len, self.texts))


class TranslationQueue:
    """Requests in the order in which they came; `submit` is for all threads, `work` for the one that owns the models.

    Args:
        stop: ends `work` after the running batch; what waits then is refused.
        on_error: called with what `translate` raises, and with other faults of the server.
    """

    def __init__(
        self,
        translate: TranslateTexts,
        limits: Limits,
        stop: StopRequest,
        on_error: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self._translate, self._limits, self._stop, self.on_error = translate, limits, stop, on_error
        self._waiting: list[QueuedRequest] = []
        self._changed = threading.Condition()

    def submit(self, direction: str, texts: Sequence[str]) -> QueuedRequest:
        """Add a request; its `result` has the translations later, or what was raised instead.

        Raises:
            QueueError: the queue is full, or the server is stopping.
        """
        request = QueuedRequest(direction, texts)
        with self._changed:
            if self._stop.requested:
                raise QueueError(STOPPING)
            self._waiting = [each for each in self._waiting if not each.is_abandoned]
            if len(self._waiting) >= self._limits.max_waiting:
                raise QueueError(f"{quantity(len(self._waiting), 'request')} waiting already")
            self._waiting.append(request)
            self._changed.notify()
        return request

    def work(self) -> None:
        """Translate what waits, batch after batch, until a stop is requested."""
        while not self._stop.requested:
            if batch := self._take():
                self._run(batch)
        with self._changed:
            waiting, self._waiting = self._waiting, []
        for request in waiting:
            if request.result.set_running_or_notify_cancel():
                request.result.set_exception(QueueError(STOPPING))

    def _take(self) -> list[QueuedRequest]:
        """Take the oldest request, and of the same direction those most similar in length, as many as a batch holds."""
        with self._changed:
            if not self._waiting:
                self._changed.wait(_POLL_SECONDS)
            waiting = [each for each in self._waiting if not each.is_abandoned]
            batch: list[QueuedRequest] = []
            if waiting:
                first = waiting[0]
                alike = [each for each in waiting if each.direction == first.direction]
                room = max(first.num_chars, self._limits.batch_chars)
                for request in sorted(alike, key=lambda each: abs(each.longest - first.longest)):
                    room -= request.num_chars
                    if room < 0:
                        break
                    batch.append(request)
            self._waiting = [each for each in waiting if each not in batch]
        return [each for each in batch if each.result.set_running_or_notify_cancel()]

    def _run(self, batch: Sequence[QueuedRequest]) -> None:
        def stop_if_abandoned(*_: int) -> None:
            if all(each.is_abandoned for each in batch):
                raise _AbandonedError

        texts = list(dict.fromkeys(text for each in batch for text in each.texts))
        try:
            stop_if_abandoned()
            translated = self._translate(batch[0].direction, texts, Callbacks(on_progress=stop_if_abandoned))
        except _AbandonedError:
            return
        except Exception as error:
            if len(batch) > 1:
                # One of them may be the reason; the others get their translations.
                for each in batch:
                    self._run([each])
                return
            self.on_error(error)
            batch[0].result.set_exception(error)
            return
        known = dict(zip(texts, translated, strict=True))
        for each in batch:
            each.result.set_result([known[text] for text in each.texts])
