"""Real text is encoded in a thread while the device trains, once, and the results stay the same."""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roundtrip.backtranslation import synthesis, token_rows
from roundtrip.runtime.prefetch import Prefetcher
from roundtrip.tokens.prompt_template import PromptTemplate
from tests.conftest import WriteRecipe
from tests.runs import assert_same, end_state, go


def test_work_is_done_once_in_a_thread() -> None:
    done: list[tuple[int, str]] = []
    prefetcher = Prefetcher()

    def work(number: int) -> Callable[[], None]:
        return lambda: done.append((number, threading.current_thread().name))

    prefetcher.wait()
    prefetcher.start(1, work(1))
    prefetcher.start(1, work(1))
    prefetcher.wait()
    prefetcher.start(2, work(2))
    prefetcher.wait()
    assert [number for number, _ in done] == [1, 2]
    assert all(name.startswith("prefetch") for _, name in done)


def test_an_error_of_the_thread_is_raised_where_the_work_is_needed() -> None:
    prefetcher = Prefetcher()

    def fail() -> None:
        raise ValueError("no such line")

    prefetcher.start(1, fail)
    with pytest.raises(ValueError, match="no such line"):
        prefetcher.wait()


def test_a_run_encodes_each_real_line_once_for_each_use_with_the_same_results(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: Counter[tuple[str, str]] = Counter()
    threads: Counter[str] = Counter()
    for name in ("_make_prompts", "_make_targets"):
        original = getattr(PromptTemplate, name)

        def spy(self: PromptTemplate, texts: Any, name: str = name, original: Any = original) -> Any:
            encoded.update((name, text) for text in texts)
            threads[threading.current_thread().name.partition("_")[0]] += bool(texts)
            return original(self, texts)

        monkeypatch.setattr(PromptTemplate, name, spy)
    started: list[tuple[int, bool]] = []
    needed = threading.Event()
    original_start, original_wait = Prefetcher.start, Prefetcher.wait

    def start(self: Prefetcher, key: int, work: Callable[[], None]) -> None:
        started.append((key, any(frame.function == "prepare" for frame in inspect.stack(0))))
        # As late as it can be: even a thread that has done nothing yet must not leave lines to be encoded twice.
        original_start(self, key, lambda: needed.wait(60) and work())

    def wait(self: Prefetcher) -> None:
        needed.set()
        original_wait(self)
        needed.clear()

    monkeypatch.setattr(Prefetcher, "start", start)
    monkeypatch.setattr(Prefetcher, "wait", wait)
    path = write_recipe(("count = 1", "count = 2"))
    monkeypatch.setattr(token_rows, "AUDIT_SHARE", 0.0)
    go(path, tmp_path / "ahead")
    # Two phases on pairs, then four of the rounds: the text of each round is encoded while the phase before it trains.
    assert {key for key, while_training in started if while_training} == {2, 3, 4, 5}
    assert threads["prefetch"] > 0
    texts = [(tmp_path / "ahead" / "data" / f"mono.{code}.txt").read_text(encoding="utf-8") for code in ("en", "es")]
    mono = {line for text in texts for line in text.splitlines()}
    for name in ("_make_prompts", "_make_targets"):
        times = [number for (kind, text), number in encoded.items() if kind == name and text in mono]
        assert times and max(times) == 1, name

    class NoPrefetcher(Prefetcher):
        def start(self, key: int, work: Callable[[], None]) -> None:
            pass

    monkeypatch.setattr(synthesis, "Prefetcher", NoPrefetcher)
    threads.clear()
    go(path, tmp_path / "plain")
    assert not threads["prefetch"]
    assert_same(end_state(tmp_path / "ahead"), end_state(tmp_path / "plain"))


def test_closing_cancels_what_has_not_started() -> None:
    prefetcher, held, ran = Prefetcher(), threading.Event(), []
    prefetcher.start(1, lambda: held.wait(5) and None)
    prefetcher.start(2, lambda: ran.append(2))
    prefetcher.close()
    held.set()
    prefetcher._thread.shutdown(wait=True)
    assert not ran
