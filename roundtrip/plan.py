"""What a recipe will do, before it is done: directions, phases and the number of optimizer steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from roundtrip.recipe import Recipe

BASE, TEXT, PARALLEL = "base", "text", "parallel"


@dataclass(frozen=True)
class Direction:
    """From one language into the other. `name` (`en-es`) is also the name of its adapter."""

    source: str
    target: str

    @property
    def name(self) -> str:
        return f"{self.source}-{self.target}"

    @property
    def reverse(self) -> Direction:
        return Direction(self.target, self.source)


@dataclass(frozen=True)
class Phase:
    """One block of one direction: all that is learnt between two looks at new text.

    Attributes:
        number: from 0.
        stage: `text`, `parallel` or `round-K`; both directions of a stage are scored together after it.
        round: 0 before the rounds.
        ends_stage: this is the stage's last phase.
    """

    number: int
    stage: str
    round: int
    direction: Direction
    ends_stage: bool


def directions(recipe: Recipe) -> tuple[Direction, Direction]:
    """Return both directions of a recipe."""
    first, second = recipe.languages
    return Direction(first, second), Direction(second, first)


def phases(recipe: Recipe, num_pairs: int) -> list[Phase]:
    """Return all phases of a run, in order: plain text, parallel pairs, the rounds; each in both directions."""
    stages = [(TEXT, 0)] if recipe.train.text_lines else []
    stages += [(PARALLEL, 0)] if num_pairs and recipe.train.parallel_passes else []
    stages += [(f"round-{number}", number) for number in range(1, recipe.rounds.number + 1)]
    both = directions(recipe)
    return [
        Phase(2 * place + side, stage, number, direction, side == 1)
        for place, (stage, number) in enumerate(stages)
        for side, direction in enumerate(both)
    ]


def num_real(recipe: Recipe, num_synthetic: int, num_pairs: int) -> int:
    """Return how many real pairs go with so many synthetic ones: `real_share` of the whole."""
    share = recipe.rounds.real_share if num_pairs else 0.0
    return round(num_synthetic * share / (1.0 - share))


def num_synthetic(recipe: Recipe) -> int:
    """Return how many synthetic rows a round makes if none is rejected."""
    every = recipe.generate.samples if recipe.generate.choose == "all" else 1
    return recipe.rounds.lines * every


def num_steps(recipe: Recipe, num_pairs: int) -> int:
    """Return how many optimizer steps one direction takes if no synthetic source is rejected."""
    per_step = recipe.train.rows_per_step
    text = math.ceil(2 * recipe.train.text_lines / per_step)
    warm_up = text + recipe.train.parallel_passes * math.ceil(num_pairs / per_step)
    lines = num_synthetic(recipe)
    block = math.ceil((lines + num_real(recipe, lines, num_pairs)) / per_step)
    return warm_up + recipe.rounds.number * block
