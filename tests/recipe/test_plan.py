"""Phases and numbers of rows and steps that a recipe asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from roundtrip.recipe.loader import load_recipe
from roundtrip.recipe.plan import FINAL, PARALLEL, next_phase, num_rows, num_steps, phases
from roundtrip.recipe.schema import Recipe
from tests.conftest import WriteRecipe


@pytest.fixture
def path(write_recipe: WriteRecipe) -> Path:
    return write_recipe()


def recipe_with(path: Path, *overrides: str) -> Recipe:
    return load_recipe(str(path), overrides).recipe


def test_phases_of_all_stages(path: Path) -> None:
    plan = phases(recipe_with(path, "train.parallel_epochs=3", "train.final_epochs=2", "rounds.count=2"), 32)
    assert [(phase.stage, phase.epochs, phase.ends_stage) for phase in plan[::2]] == [
        (PARALLEL, 3, False), ("round-1", 1, False), ("round-2", 1, False), (FINAL, 2, False)
    ]  # fmt: skip
    assert [phase.number for phase in plan] == list(range(8)) and all(phase.ends_stage for phase in plan[1::2])
    assert [phase.stage for phase in phases(recipe_with(path), 0)] == ["round-1"] * 2


def test_phases_are_single_epochs_where_they_may_end_early(path: Path) -> None:
    plan = phases(recipe_with(path, "train.parallel_epochs=3", "train.patience=1"), 32)
    assert [(phase.stage, phase.epochs) for phase in plan] == [(PARALLEL, 1)] * 6 + [("round-1", 1)] * 2
    assert [phase.number for phase in plan if phase.ends_stage] == [5, 7]


def test_next_phase_skips_the_epochs_or_the_rounds_that_are_left(path: Path) -> None:
    plan = phases(recipe_with(path, "train.parallel_epochs=3", "train.patience=1"), 32)
    assert next_phase(plan, plan[1], stop_early=True) == 6 and next_phase(plan, plan[1], stop_early=False) == 2
    plan = phases(recipe_with(path, "train.final_epochs=2", "rounds.count=2"), 32)
    assert next_phase(plan, plan[3], stop_early=True) == 6 and next_phase(plan[:6], plan[3], stop_early=True) == 6


def test_num_steps_counts_every_row(path: Path) -> None:
    settings = ("rounds.count=3", "rounds.replay_examples=30", "rounds.denoising_ratio=0.5", "train.final_epochs=2")
    recipe = recipe_with(path, *settings)
    assert [num_rows(recipe, number, 32) for number in (1, 2, 3)] == [2 * 40, 2 * 80, 2 * 90]
    assert num_steps(recipe, 32) == 3 * 2 + 5 + 10 + 12


def test_num_rows_counts_all_candidates_that_are_kept(path: Path) -> None:
    keep_all = ("generate.num_candidates=3", "generate.candidate_selection=all", "rounds.parallel_ratio=0.0")
    sampled = recipe_with(path, *keep_all, "generate.temperature=0.7", "rounds.count=2", "rounds.replay_examples=50")
    assert [num_rows(sampled, number, 0) for number in (1, 2)] == [3 * 24, 3 * 24 + 50]
    assert num_rows(recipe_with(path, *keep_all), 1, 0) == 24, "auto counts as greedy"
