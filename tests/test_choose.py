"""Several sources of one real line: which are learnt from."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from roundtrip import choose as choosing
from roundtrip.choose import best, choose
from roundtrip.engine.generate import Hypotheses
from roundtrip.judge import Judged
from roundtrip.recipe import Generate
from roundtrip.translator import Translator, Written
from tests.conftest import WriteRecipe
from tests.test_run import assert_same, end_state, go


def test_the_best_of_each_line_the_first_of_equals() -> None:
    assert best([0, 0, 2, 3, 3, 3], [1.0, 2.0, -9.0, 4.0, 4.0, 1.0]) == [1, 2, 3]
    assert best([], []) == []


class Reader:
    """Holds a target the likelier the longer its source is."""

    def likelihoods(self, pairs: list[tuple[str, str]], tokens_per_forward: int) -> list[float]:
        return [float(len(source)) for source, _ in pairs]


@pytest.mark.parametrize(
    ("how", "kept"), [("dual", [1, 5]), ("own", [0, 4]), ("all", [0, 1, 4, 5])], ids=["dual", "own", "all"]
)
def test_each_way_to_choose(how: Any, kept: list[int]) -> None:
    """Two lines of three hypotheses; two were rejected, and they are not to be chosen however likely they are."""
    sizes, logprobs = torch.tensor([2, 9, 3, 3, 2, 9]), torch.tensor([-1.0, -9.0, 0.0, 0.0, -2.0, -20.0])
    finished = torch.ones(6, dtype=torch.bool)
    written = Written([""] * 6, [True] * 6, Hypotheses(torch.zeros(6, 9), sizes, finished, logprobs))
    pairs = [("a", "x"), ("aaaa", "x"), ("b", "y"), ("bbb", "y")]
    judged = Judged(pairs, [0, 1, 4, 5], {"empty": 2})
    reader: Any = Reader()
    found = choose(judged, written, Generate(samples=3, temperature=1.0, choose=how), reader)
    assert found.places == kept and found.rejected == {"empty": 2}
    assert found.pairs == [pairs[judged.places.index(place)] for place in kept]


@pytest.mark.parametrize("how", ["dual", "own", "all"])
def test_a_run_learns_from_what_was_chosen(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    scored: list[tuple[str, int]] = []
    original = Translator.likelihoods

    def spy(self: Translator, pairs: Any, tokens: int) -> list[float]:
        found = original(self, pairs, tokens)
        scored.append((self.direction.name, len(pairs)))
        assert all(value < 0 for value in found)
        return found

    monkeypatch.setattr(choosing.Translator, "likelihoods", spy)
    settings = ("generate.samples=3", "generate.temperature=0.9", f"generate.choose={how}")
    path = write_recipe()
    go(path, tmp_path / "run", overrides=settings)
    assert {name for name, _ in scored} == ({"en-es", "es-en"} if how == "dual" else set())
    for block in sorted((tmp_path / "run" / "blocks").glob("*round-1*")):
        rows = [json.loads(line) for line in block.read_text(encoding="utf-8").splitlines()]
        times = Counter(target for kind, _, target in rows if kind == "synthetic")
        assert times and max(times.values()) == (3 if how == "all" else 1)
    go(path, tmp_path / "again", overrides=settings)
    assert_same(end_state(tmp_path / "again"), end_state(tmp_path / "run"))
