"""Several sources of one real line: which are learnt from."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from roundtrip.backtranslation import candidate_selection as choosing
from roundtrip.backtranslation.candidate_selection import best_of_each, select_candidates
from roundtrip.backtranslation.filtering import FilteredCandidates
from roundtrip.engine.generate import Hypotheses
from roundtrip.engine.likelihood import log_likelihood
from roundtrip.engine.translator import Translations, Translator
from roundtrip.recipe import loader
from roundtrip.recipe.plan import num_steps
from roundtrip.recipe.schema import Generate, Train
from roundtrip.runtime.errors import ModelError
from roundtrip.tokens.batching import TokenDataset
from roundtrip.tokens.prompt_template import TokenRow
from tests.conftest import WriteRecipe
from tests.engine.test_decoding import model_of
from tests.engine.test_train_step import rows
from tests.runs import assert_same, end_state, go


def test_the_best_of_each_line_the_first_of_equals() -> None:
    assert best_of_each([0, 0, 2, 3, 3, 3], [1.0, 2.0, -9.0, 4.0, 4.0, 1.0]) == [1, 2, 3]
    assert best_of_each([], []) == []


class Reader:
    """Holds a target the likelier the longer its source is."""

    def likelihoods(self, pairs: list[tuple[str, str]], tokens: int, on_progress: Any) -> list[float]:
        return [float(len(source)) for source, _ in pairs]


@pytest.mark.parametrize(
    ("how", "kept"),
    [("reverse_likelihood", [1, 5]), ("likelihood", [0, 4]), ("all", [0, 1, 4, 5])],
    ids=["reverse_likelihood", "likelihood", "all"],
)
def test_each_way_to_choose(how: Any, kept: list[int]) -> None:
    """Two lines of three hypotheses; two were rejected, and they are not to be chosen however likely they are."""
    sizes, logprobs = torch.tensor([2, 9, 3, 3, 2, 9]), torch.tensor([-1.0, -9.0, 0.0, 0.0, -2.0, -20.0])
    finished = torch.ones(6, dtype=torch.bool)
    # The last but one ends in a token of text, which is one of the hypothesis: two tokens, not three.
    tokens = sizes + torch.tensor([1, 1, 1, 1, 0, 1])
    written = Translations([""] * 6, [True] * 6, Hypotheses(torch.zeros(6, 9), sizes, finished, tokens, logprobs))
    pairs = [("a", "x"), ("aaaa", "x"), ("b", "y"), ("bbb", "y")]
    judged = FilteredCandidates(pairs, [0, 1, 4, 5], {"empty": 2})
    reader: Any = Reader()
    found = select_candidates(
        judged,
        written,
        Generate(num_candidates=3, temperature=1.0, candidate_selection=how),
        Train().max_tokens_per_microbatch,
        reader,
    )
    assert found.places == kept and found.rejected == {"empty": 2}
    assert found.pairs == [pairs[judged.places.index(place)] for place in kept]


@pytest.mark.parametrize("how", ["reverse_likelihood", "likelihood", "all"])
def test_a_run_learns_from_what_was_chosen(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    return_logprobs: list[tuple[str, int]] = []
    original = Translator.likelihoods

    def spy(self: Translator, pairs: Any, *rest: Any) -> list[float]:
        found = original(self, pairs, *rest)
        return_logprobs.append((self.direction.name, len(pairs)))
        assert all(value < 0 for value in found)
        return found

    monkeypatch.setattr(choosing.Translator, "likelihoods", spy)
    settings = ("generate.num_candidates=3", "generate.temperature=0.9", f"generate.candidate_selection={how}")
    path = write_recipe()
    go(path, tmp_path / "run", overrides=settings)
    assert {name for name, _ in return_logprobs} == ({"en-es", "es-en"} if how == "reverse_likelihood" else set())
    for block in sorted((tmp_path / "run" / "examples").glob("*round-1*")):
        rows = [json.loads(line) for line in block.read_text(encoding="utf-8").splitlines()]
        times = Counter(target for kind, _, target in rows if kind == "synthetic")
        assert times and max(times.values()) == (3 if how == "all" else 1)
    go(path, tmp_path / "again", overrides=settings)
    assert_same(end_state(tmp_path / "again"), end_state(tmp_path / "run"))


def test_the_schedule_counts_every_source_that_is_kept(write_recipe: WriteRecipe) -> None:
    path = write_recipe()
    sizes = []
    for choose_by in ("reverse_likelihood", "all"):
        overrides = [
            "generate.num_candidates=4",
            "generate.temperature=0.7",
            "rounds.monolingual_lines=64",
            f"generate.candidate_selection={choose_by}",
        ]
        sizes.append(num_steps(loader.load_recipe(str(path), overrides).recipe, 0))
    assert sizes[1] == pytest.approx(4 * sizes[0], rel=0.2)


def test_scoring_goes_on_in_halves_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("RoPE, tied head")
    table = TokenDataset.of([TokenRow(row.ids, max(1, row.start)) for row in rows(12)])
    expected, told = log_likelihood(model, table, 0, 10_000), []
    forward = type(model).forward

    def small(self: Any, *, input_ids: torch.Tensor, **given: Any) -> Any:
        if len(input_ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, input_ids=input_ids, **given)

    monkeypatch.setattr(type(model), "forward", small)
    found = log_likelihood(model, table, 0, 10_000, lambda rows, tokens: told.append(1))
    assert torch.allclose(found, expected, atol=1e-4) and len(told) > 3
    monkeypatch.setattr(type(model), "forward", lambda self, **given: small(self, input_ids=torch.zeros(9)))
    with pytest.raises(ModelError, match="single row"):
        log_likelihood(model, table, 0, 10_000)
