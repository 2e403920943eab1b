"""Selection among several synthetic sources of one real line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from roundtrip.backtranslation.filtering import Candidate, FilteredCandidates, select_candidates
from roundtrip.backtranslation.synthesis import Synthesizer, TakenLines
from roundtrip.engine.hypotheses import Hypotheses
from roundtrip.engine.request import Callbacks
from roundtrip.engine.translator import Translator
from roundtrip.recipe.loader import load_recipe
from roundtrip.recipe.plan import Direction, Phase, num_steps
from roundtrip.recipe.schema import Generate, Recipe
from tests.conftest import WriteRecipe
from tests.runs import assert_same, end_state, go

# Two lines; of the first two candidates are left, of the second three.
CANDIDATES = [
    Candidate(0, "a", "x", logprob=-0.3),
    Candidate(0, "aaaa", "x", logprob=-0.9),
    Candidate(2, "b", "y", logprob=-0.5),
    Candidate(2, "bbb", "y", logprob=-0.2),
    Candidate(2, "ccc", "y", logprob=-0.2),
]


def test_the_best_of_each_line_is_selected_the_first_of_equals() -> None:
    selected = select_candidates(CANDIDATES, [1.0, 2.0, 4.0, 4.0, 1.0])
    assert [candidate.source for candidate in selected] == ["aaaa", "b"]
    assert select_candidates([], []) == []
    with pytest.raises(ValueError, match="shorter"):
        select_candidates(CANDIDATES, [1.0])


def selected_by(method: str, recipe: Recipe, forward: Any) -> list[str]:
    callbacks = Callbacks(on_progress=lambda rows, tokens: None)
    context: Any = SimpleNamespace(
        recipe=recipe, events=None, translators={"en-es": forward}, callbacks=lambda: callbacks
    )
    streams: Any = None
    taken = TakenLines([], streams, 0, Generate(num_candidates=3, temperature=0.7, candidate_selection=method))
    phase = Phase(0, "round-1", 1, Direction("en", "es"), False)
    selected = Synthesizer(context, []).select(phase, taken, FilteredCandidates(CANDIDATES, Counter()))
    return [candidate.source for candidate in selected.kept]


def test_likelihood_is_that_of_the_generating_model(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(str(write_recipe())).recipe
    assert selected_by("likelihood", recipe, None) == ["a", "bbb"]


def test_likelihood_is_per_token_so_that_short_sources_gain_nothing() -> None:
    """A stop id that is text in part is one of the tokens already: the third row has two tokens, not three."""
    sizes, stop_ids = torch.tensor([2, 9, 2, 0]), torch.tensor([1, 1, 0, 0])
    logprobs = torch.tensor([-1.5, -2.0, -1.0, 0.0])
    hypotheses = Hypotheses(torch.zeros(4, 9), sizes, torch.ones(4, dtype=torch.bool), sizes + stop_ids, logprobs)
    assert hypotheses.per_token() == pytest.approx([-0.5, -0.2, -0.5, 0.0])


def test_reverse_likelihood_is_that_of_the_real_line_by_the_forward_direction(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(str(write_recipe()), ["train.max_tokens_per_microbatch=64", "train.max_length=64"]).recipe

    class Forward:
        def likelihoods(self, pairs: list[tuple[str, str]], max_tokens: int, on_progress: Any) -> list[float]:
            assert max_tokens == 64 and {target for _, target in pairs} == {"x", "y"}
            return [float(len(source)) for source, _ in pairs]

    assert selected_by("reverse_likelihood", recipe, Forward()) == ["aaaa", "bbb"]


@pytest.mark.parametrize("method", ["reverse_likelihood", "likelihood", "all"])
def test_a_run_trains_on_what_was_selected(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    scored: list[tuple[str, int]] = []
    original = Translator.likelihoods

    def spy(self: Translator, pairs: Any, *arguments: Any) -> list[float]:
        scores = original(self, pairs, *arguments)
        scored.append((self.direction.name, len(pairs)))
        assert all(value < 0 for value in scores)
        return scores

    monkeypatch.setattr(Translator, "likelihoods", spy)
    overrides = ["generate.num_candidates=3", "generate.temperature=0.9", "rounds.monolingual_lines=12"]
    overrides.append(f"generate.candidate_selection={method}")
    path = write_recipe()
    go(path, tmp_path / "run", overrides=tuple(overrides))
    # Each phase scores by the direction that will train.
    assert [name for name, _ in scored] == (["en-es", "es-en"] if method == "reverse_likelihood" else [])
    for file in sorted((tmp_path / "run" / "examples").glob("*round-1*")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        times = Counter(target for kind, _, target in rows if kind == "synthetic")
        assert times and max(times.values()) == (3 if method == "all" else 1)
    if method == "likelihood":
        go(path, tmp_path / "again", overrides=tuple(overrides))
        assert_same(end_state(tmp_path / "again"), end_state(tmp_path / "run"))


def test_num_steps_counts_all_candidates_where_all_are_kept(write_recipe: WriteRecipe) -> None:
    path = write_recipe()
    overrides = ["generate.num_candidates=4", "generate.temperature=0.7", "rounds.monolingual_lines=64"]
    one_kept, all_kept = (
        num_steps(load_recipe(str(path), [*overrides, f"generate.candidate_selection={method}"]).recipe, 0)
        for method in ("reverse_likelihood", "all")
    )
    assert all_kept == pytest.approx(4 * one_kept, rel=0.2)
