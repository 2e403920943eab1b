"""Real text is encoded while the device works on something else, once, and it changes nothing."""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from roundtrip.backtranslation import trainer
from roundtrip.runtime.prefetch import Prefetcher
from roundtrip.tokens.prompt_template import PromptTemplate
from tests.conftest import WriteRecipe
from tests.runs import assert_same, end_state, go


def test_work_is_done_once_in_a_thread_or_when_it_is_needed() -> None:
    done: list[tuple[int, str]] = []
    prefetcher = Prefetcher()

    def work(number: int) -> Any:
        return lambda: done.append((number, threading.current_thread().name))

    prefetcher.begin(1, work(1))
    prefetcher.begin(1, work(1))
    prefetcher.need(1, work(1))
    prefetcher.need(2, work(2))
    assert [number for number, _ in done] == [1, 2]
    assert all(name.startswith("prefetch") for _, name in done)


def test_what_goes_wrong_there_is_raised_where_it_is_needed() -> None:
    prefetcher = Prefetcher()

    def wrong() -> None:
        raise ValueError("no such line")

    prefetcher.begin(1, wrong)
    with pytest.raises(ValueError, match="no such line"):
        prefetcher.need(1, wrong)


def test_a_run_encodes_each_real_line_once_for_each_use_and_learns_the_same(
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
    begun: list[tuple[int, int]] = []
    original_begin = Prefetcher.begin

    def begin(self: Prefetcher, number: int, work: Any) -> None:
        depth = sum(frame.function == "training" for frame in inspect.stack())
        begun.append((number, depth))
        original_begin(self, number, work)

    monkeypatch.setattr(Prefetcher, "begin", begin)
    path = write_recipe(("count = 1", "count = 2"))
    settings = ("tokens.audit=0.0",)
    go(path, tmp_path / "ahead", overrides=settings)
    # Two phases on pairs, then four of the rounds: each but the first two is begun while the one before trains.
    assert {number for number, depth in begun if depth} == {2, 3, 4, 5}
    assert threads["prefetch"] > 0
    texts = [(tmp_path / "ahead" / "data" / f"mono.{code}.txt").read_text(encoding="utf-8") for code in ("en", "es")]
    mono = {line for text in texts for line in text.splitlines()}
    shown = {
        name: [times for (kind, text), times in encoded.items() if kind == name and text in mono]
        for name in ("_make_prompts", "_make_targets")
    }
    assert shown["_make_targets"] and max(shown["_make_targets"]) == 1
    assert shown["_make_prompts"] and max(shown["_make_prompts"]) == 1

    class Never(Prefetcher):
        def begin(self, number: int, work: Any) -> None:
            pass

        def need(self, number: int, work: Any) -> None:
            pass

    monkeypatch.setattr(trainer, "Prefetcher", Never)
    threads.clear()
    go(path, tmp_path / "plain", overrides=settings)
    assert not threads["prefetch"]
    assert_same(end_state(tmp_path / "ahead"), end_state(tmp_path / "plain"))


def test_closing_drops_what_has_not_started() -> None:
    prefetcher, held, ran = Prefetcher(), threading.Event(), []
    prefetcher.begin(1, lambda: held.wait(5) and None)
    prefetcher.begin(2, lambda: ran.append(2))
    prefetcher.close()
    held.set()
    prefetcher._thread.shutdown(wait=True)
    assert not ran
