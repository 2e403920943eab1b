"""Phases and numbers of rows and steps that a recipe asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from roundtrip.recipe.loader import load_recipe
from roundtrip.recipe.plan import (
    FINAL,
    PARALLEL,
    directions,
    next_phase,
    num_phase_steps,
    num_rows,
    num_steps,
    phases,
    start_stage,
)
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


@pytest.mark.parametrize(
    ("stages", "start"),
    [
        (["copy", "base", "parallel", "round-1", "round-2", "final"], "parallel"),
        (["copy", "base", "round-1"], "base"),
        (["copy", "base", "initial", "parallel", "round-1", "control-1"], "parallel"),
        (["copy", "base", "text", "parallel", "final"], "base"),
        ([], "base"),
    ],
)
def test_the_rounds_begin_from_the_stage_before_them(stages: list[str], start: str) -> None:
    assert start_stage(stages) == start


def test_phases_are_single_epochs_where_they_may_end_early(path: Path) -> None:
    plan = phases(recipe_with(path, "train.parallel_epochs=3", "train.patience=1"), 32)
    assert [(phase.stage, phase.epochs) for phase in plan] == [(PARALLEL, 1)] * 6 + [("round-1", 1)] * 2
    assert [phase.number for phase in plan if phase.ends_stage] == [5, 7]


def test_next_phase_skips_the_epochs_or_the_rounds_that_are_left(path: Path) -> None:
    plan = phases(recipe_with(path, "train.parallel_epochs=3", "train.patience=1"), 32)
    assert next_phase(plan, plan[1], stop_early=True) == 6 and next_phase(plan, plan[1], stop_early=False) == 2
    plan = phases(recipe_with(path, "train.final_epochs=2", "rounds.count=2"), 32)
    assert next_phase(plan, plan[3], stop_early=True) == 6 and next_phase(plan[:6], plan[3], stop_early=True) == 6


def test_the_control_has_a_phase_for_each_from_round_1_on(path: Path) -> None:
    plan = phases(recipe_with(path, "rounds.count=2", "train.final_epochs=2", "evaluation.control=true"), 32)
    assert [phase.stage for phase in plan[8::2]] == ["control-1", "control-2", "control-final"] and len(plan) == 14
    assert [phase.control_for for phase in plan] == [None] * 8 + plan[2:8]
    assert all(phase.number == i and phase.parallel and not phase.round for i, phase in enumerate(plan[8:], start=8))
    # Of two rounds and two epochs one each was taken.
    trained = {2: 3, 3: 3, 6: 2, 7: 2}
    after = [next_phase(plan, plan[i], stop_early=False, trained=trained) for i in (7, 8, 9, 12, 13)]
    assert after == [8, 9, 12, 13, 14]


def test_num_steps_counts_every_row(path: Path) -> None:
    settings = ("rounds.count=3", "rounds.replay_examples=30", "rounds.denoising_ratio=0.5", "train.final_epochs=2")
    recipe = recipe_with(path, *settings)
    assert [num_rows(recipe, number, 32) for number in (1, 2, 3)] == [2 * 40, 2 * 80, 2 * 90]
    assert num_steps(recipe, 32) == 3 * 2 + 5 + 10 + 12


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("train.parallel_epochs=3", "train.patience=1"),
        ("train.final_epochs=2",),
        ("train.final_epochs=2", "evaluation.control=true"),
    ],
)
def test_num_steps_before_a_phase_add_up_to_those_of_the_run(path: Path, overrides: tuple[str, ...]) -> None:
    recipe = recipe_with(path, "rounds.count=3", "rounds.replay_examples=30", *overrides)
    plan = phases(recipe, 32)
    for direction in directions(recipe):
        own = [phase for phase in plan if phase.direction == direction and phase.control_for is None]
        steps = [num_phase_steps(recipe, phase, 32) for phase in own]
        assert [num_steps(recipe, 32, before=phase) for phase in own] == [sum(steps[:i]) for i in range(len(own))]
        assert num_steps(recipe, 32) == sum(steps) > 0
        for phase in (phase for phase in plan if phase.control_for):
            assert num_phase_steps(recipe, phase, 32) == num_phase_steps(recipe, phase.control_for or phase, 32)


@pytest.mark.parametrize("shared", [True, False])
def test_pretraining_counts_for_both_directions(write_recipe: WriteRecipe, shared: bool) -> None:
    """One direction is pretrained and the other copies it, or each is pretrained by itself."""
    path = write_recipe(
        ('dtype = "float32"', f"shared = {str(shared).lower()}\n[model.from_scratch]\nvocab_size = 420"),
        ("rank = 4\ndropout = 0.1", 'method = "full"'),
        ("parallel_epochs = 1", "parallel_epochs = 1\npretrain_lines = 40"),
    )
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("path =")))
    recipe = load_recipe(str(path)).recipe
    plan = phases(recipe, 32)
    assert len(plan) == (1 if shared else 2) + 4 and recipe.shared_start == shared
    assert all(num_steps(recipe, 32, before=phase) == 5 for phase in plan if phase.stage == PARALLEL)
    assert num_steps(recipe, 32) == 5 + 2 + 3


def test_num_rows_counts_all_candidates_that_are_kept(path: Path) -> None:
    keep_all = ("generate.num_candidates=3", "generate.candidate_selection=all", "rounds.parallel_ratio=0.0")
    sampled = recipe_with(path, *keep_all, "generate.temperature=0.7", "rounds.count=2", "rounds.replay_examples=50")
    assert [num_rows(sampled, number, 0) for number in (1, 2)] == [3 * 24, 3 * 24 + 50]
    assert num_rows(recipe_with(path, *keep_all), 1, 0) == 24, "auto counts as greedy"
