"""Batches of the queue: whose requests, in which order, and what becomes of those that fail or are given up."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roundtrip.engine.checked_translation import CheckedTranslation
from roundtrip.engine.request import Callbacks
from roundtrip.runtime.interrupts import StopRequest
from roundtrip.serving.translation_queue import Limits, QueuedRequest, QueueError, TranslationQueue


class Recorder:
    """Translates into upper case and records batches; stops the queue after a number of them, or of texts."""

    def __init__(self, num_batches: int = 1, num_texts: int = 0) -> None:
        self.batches: list[tuple[str, list[str]]] = []
        self.errors: list[Exception] = []
        self.stop = StopRequest()
        self.num_batches, self.num_texts = num_batches, num_texts

    def __call__(self, direction: str, texts: Sequence[str], callbacks: Callbacks) -> list[CheckedTranslation]:
        self.batches.append((direction, list(texts)))
        if self.num_batches == len(self.batches) or self.num_texts == sum(len(batch) for _, batch in self.batches):
            self.stop.request()
        callbacks.on_progress(len(texts), 1)
        if "fault" in texts:
            raise ZeroDivisionError
        return [CheckedTranslation(text.upper()) for text in texts]

    def queue(self, **limits: int) -> TranslationQueue:
        return TranslationQueue(self, Limits(**limits), self.stop, self.errors.append)


def texts_of(request: QueuedRequest) -> list[str]:
    return [each.text for each in request.result.result(timeout=0)]


def test_waiting_requests_of_a_direction_are_one_batch() -> None:
    record = Recorder(2)
    queue = record.queue()
    requests = [queue.submit(name, texts) for name, texts in (("a", ["x"]), ("b", ["y"]), ("a", ["z", "x"]))]
    queue.work()
    assert record.batches == [("a", ["x", "z"]), ("b", ["y"])]
    assert [texts_of(request) for request in requests] == [["X"], ["Y"], ["Z", "X"]]


def test_a_batch_has_the_oldest_request_and_those_most_similar_in_length() -> None:
    record = Recorder(3)
    queue = record.queue(batch_chars=12)
    for text in ("abcd", "abcdefghi", "x", "efghi", "wxyz"):
        queue.submit("a", [text])
    queue.work()
    assert record.batches == [("a", ["abcd", "wxyz"]), ("a", ["abcdefghi"]), ("a", ["x", "efghi"])]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 40)), min_size=1, max_size=30), st.integers(1, 60))
def test_every_request_is_translated_once_and_batches_keep_their_limit(
    asked: list[tuple[str, int]], batch_chars: int
) -> None:
    record = Recorder(0, len(asked))
    queue = record.queue(batch_chars=batch_chars)
    texts = [f"{number:02}".ljust(length, ".") for number, (_, length) in enumerate(asked)]
    requests = [queue.submit(name, [text]) for (name, _), text in zip(asked, texts, strict=True)]
    queue.work()
    assert [texts_of(each) for each in requests] == [[text.upper()] for text in texts]
    assert sorted(text for _, batch in record.batches for text in batch) == sorted(texts)
    assert all(len(batch) == 1 or sum(map(len, batch)) <= batch_chars for _, batch in record.batches)


def test_a_request_larger_than_a_batch_is_translated_alone() -> None:
    record = Recorder(1)
    queue = record.queue(batch_chars=3)
    queue.submit("a", ["abcdef"])
    queue.submit("a", ["abcdef"])
    queue.work()
    assert record.batches == [("a", ["abcdef"])]


def test_a_full_queue_refuses_requests_but_not_for_those_that_are_given_up() -> None:
    record = Recorder()
    queue = record.queue(max_waiting=2)
    given_up = queue.submit("a", ["x"])
    queue.submit("a", ["y"])
    with pytest.raises(QueueError, match="2 requests waiting already"):
        queue.submit("a", ["z"])
    given_up.is_abandoned = True
    queue.submit("a", ["z"])
    queue.work()
    assert record.batches == [("a", ["y", "z"])] and not given_up.result.done()


def test_a_batch_that_nobody_waits_for_stops() -> None:
    record = Recorder(2)
    queue = record.queue()
    requests: list[QueuedRequest] = []

    def translate(direction: str, texts: Sequence[str], callbacks: Callbacks) -> list[CheckedTranslation]:
        requests[0].is_abandoned = True
        return record(direction, texts, callbacks)

    queue = TranslationQueue(translate, Limits(), record.stop, record.errors.append)
    requests += [queue.submit("a", ["x"]), queue.submit("b", ["y"])]
    queue.work()
    assert not requests[0].result.done() and texts_of(requests[1]) == ["Y"] and not record.errors


def test_what_fails_in_a_batch_fails_alone() -> None:
    record = Recorder(3)
    queue = record.queue()
    good, bad = queue.submit("a", ["x"]), queue.submit("a", ["fault"])
    queue.work()
    assert record.batches == [("a", ["x", "fault"]), ("a", ["x"]), ("a", ["fault"])]
    assert texts_of(good) == ["X"] and isinstance(bad.result.exception(timeout=0), ZeroDivisionError)
    assert list(map(type, record.errors)) == [ZeroDivisionError]


def test_stopping_finishes_the_running_batch_and_refuses_what_waits() -> None:
    record = Recorder(1)
    queue = record.queue()
    running, waiting = queue.submit("a", ["x"]), queue.submit("b", ["y"])
    queue.work()
    assert texts_of(running) == ["X"]
    assert isinstance(waiting.result.exception(timeout=0), QueueError)
    with pytest.raises(QueueError, match="the server is stopping"):
        queue.submit("a", ["z"])
