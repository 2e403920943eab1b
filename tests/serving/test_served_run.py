"""Which direction a request means, and when its work is dropped."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from roundtrip.engine.request import Callbacks
from roundtrip.recipe.plan import Direction
from roundtrip.recipe.schema import Generate
from roundtrip.runtime.interrupts import StopRequest
from roundtrip.serving.served_run import ServedRun, find_direction
from roundtrip.serving.translation_queue import Limits, QueuedRequest, TranslationQueue


@pytest.mark.parametrize(
    ("languages", "source", "target", "position"),
    [
        ("en es", "en", "es", 0),
        ("en es", "es", "en", 1),
        ("en es", "eng", "es_MX", 0),
        ("en es", "auto", "EN", 1),
        ("en es", "en", "en", None),
        ("en es", "en", "de", None),
        ("en es", "auto", "auto", None),
        ("en es", "en", "\x1b", None),
        ("en qaa", "qaa", "en", 1),
        ("en qaa", "en", "qab", None),
        ("zh-Hans zh-Hant", "zh", "zh_TW", 0),
        ("zh-Hans zh-Hant", "zh-Hant", "zh-CN", 1),
        ("zh-Hans zh-Hant", "zh", "zh", None),
        ("pt pt-BR", "pt", "pt-BR", 0),
        ("pt pt-BR", "auto", "pt-BR", 0),
        ("pt-PT pt-BR", "pt", "pt", None),
        ("pt-PT pt-BR", "pt", "pt-BR", 0),
    ],
)
def test_codes_of_a_request_find_the_direction(languages: str, source: str, target: str, position: int | None) -> None:
    first, second = languages.split()
    both = [Direction(first, second), Direction(second, first)]
    assert find_direction(both, source, target) == (None if position is None else both[position])


class Stub:
    """A translator that loses placeholders, so that all texts are translated again, and records its batches."""

    def __init__(self, source: str, target: str, after_batch: Callable[[str], None]) -> None:
        self.direction, self.after_batch = Direction(source, target), after_batch

    def can_translate(self, texts: list[str], settings: Generate) -> list[bool]:
        return [True for _ in texts]

    def translate(self, texts: list[str], settings: Generate, seed: int, callbacks: Callbacks) -> SimpleNamespace:
        for text in texts:
            self.after_batch(f"{settings.num_candidates} of {text}")
            callbacks.on_progress(1, 1)
        num = len(texts) * settings.num_candidates
        return SimpleNamespace(texts=["lost"] * num, finished=[True] * num)

    def likelihoods(self, pairs: Any, max_tokens: int, on_progress: Callable[[int, int], None]) -> list[float]:
        for _ in range(2):
            self.after_batch("scores")
            on_progress(1, 1)
        return [0.0 for _ in pairs]


@pytest.mark.parametrize("last", range(1, 5))
def test_no_batch_is_computed_after_the_one_in_which_the_last_client_went(last: int) -> None:
    batches: list[str] = []
    stop = StopRequest()
    requests: list[QueuedRequest] = []

    def after_batch(name: str) -> None:
        batches.append(name)
        stop.request()
        requests[0].is_abandoned = True
        requests[1].is_abandoned = len(batches) >= last

    translators: Any = {"en-es": Stub("en", "es", after_batch), "es-en": Stub("es", "en", after_batch)}
    queue = TranslationQueue(ServedRun(translators, Generate(temperature=0.0)).translate, Limits(), stop)
    requests += [queue.submit("en-es", ["a %s"]), queue.submit("en-es", ["b %s"])]
    queue.work()
    assert batches == ["1 of a %s", "1 of b %s", "8 of a %s", "8 of b %s", "scores", "scores"][:last]
    assert not any(each.result.done() for each in requests)
