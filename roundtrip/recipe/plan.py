"""What a recipe will do, before it is done: directions, phases and the number of optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from roundtrip.recipe.sampling_schedule import sampling_settings
from roundtrip.recipe.schema import Recipe

BASE, TEXT, PARALLEL, FINAL = "base", "text", "parallel", "final"


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
        stage: `text`, `parallel`, `round-K` or `final`; both directions of a stage are scored together after it.
        round: 0 outside the rounds.
        ends_stage: this is the stage's last phase.
        passes: over the rows of its block.
    """

    number: int
    stage: str
    round: int
    direction: Direction
    ends_stage: bool
    passes: int = 1

    @property
    def real(self) -> bool:
        """Whether it learns from real pairs alone."""
        return self.stage in {PARALLEL, FINAL}


def directions(recipe: Recipe) -> tuple[Direction, Direction]:
    """Return both directions of a recipe."""
    first, second = recipe.languages
    return Direction(first, second), Direction(second, first)


def phases(recipe: Recipe, num_pairs: int) -> list[Phase]:
    """Return all phases of a run, in order: plain text, parallel pairs, the rounds, pairs again; in both directions.

    Where a stage of pairs may end at a stall, each pass is a phase of its own.
    """
    train, both = recipe.train, directions(recipe)
    stages: list[tuple[str, int, int, int]] = [(TEXT, 0, 1, 1)] if train.pretrain_lines else []
    stages += _of_pairs(PARALLEL, train.parallel_epochs, num_pairs, train.patience)
    stages += [(f"round-{number}", number, 1, 1) for number in range(1, recipe.rounds.count + 1)]
    stages += _of_pairs(FINAL, train.final_epochs, num_pairs, train.patience)
    found: list[Phase] = []
    for stage, number, turns, passes in stages:
        who = both[:1] if stage == TEXT and recipe.one_start else both
        for turn in range(turns):
            for direction in who:
                ends = turn == turns - 1 and direction == who[-1]
                found.append(Phase(len(found), stage, number, direction, ends, passes))
    return found


def next_phase(phases: Sequence[Phase], phase: Phase, *, enough: bool) -> int:
    """Return the number of the next phase.

    Args:
        enough: the passes or rounds that would come next are left out, since nothing gets better any more.
    """
    for after in phases[phase.number + 1 :]:
        if not enough or (not after.round if phase.round else after.stage != phase.stage):
            return after.number
    return len(phases)


def _of_pairs(stage: str, passes: int, num_pairs: int, stall: int) -> list[tuple[str, int, int, int]]:
    """Return the stage, its round, how often both directions take turns, and the passes of each turn."""
    if not num_pairs or not passes:
        return []
    return [(stage, 0, passes, 1) if stall else (stage, 0, 1, passes)]


def num_parallel(recipe: Recipe, num_synthetic: int, num_pairs: int) -> int:
    """Return how many real pairs go with so many synthetic ones: `parallel_ratio` of both, repeated as needed."""
    share = recipe.rounds.parallel_ratio if num_pairs else 0.0
    return round(num_synthetic * share / (1.0 - share))


def num_denoising(recipe: Recipe, num_others: int) -> int:
    """Return how many noised lines go with so many other rows: `denoising_ratio` of all."""
    share = recipe.rounds.denoising_ratio
    return round(num_others * share / (1.0 - share))


def num_synthetic(recipe: Recipe, number: int, direction: Direction) -> int:
    """Return how many synthetic rows a direction gets in round `number` if none is rejected.

    Under `temperature = "auto"` the writer is taken for cold: once it is warm, and all of several samples are learnt
    from, there are more.
    """
    found = sampling_settings(recipe.generate, direction.reverse.name, number, None)
    return recipe.rounds.monolingual_lines * (found.num_candidates if found.candidate_selection == "all" else 1)


def num_replayed(recipe: Recipe, number: int, direction: Direction) -> int:
    """Return how many synthetic rows of rounds before are learnt from again in round `number`, at the most."""
    before = sum(num_synthetic(recipe, earlier, direction) for earlier in range(1, number))
    return min(recipe.rounds.replay_examples, before)


def num_rows(recipe: Recipe, number: int, num_pairs: int, direction: Direction) -> int:
    """Return how many rows round `number` has if no source is rejected: new ones, earlier ones, real and noised."""
    synthetic = num_synthetic(recipe, number, direction) + num_replayed(recipe, number, direction)
    others = synthetic + num_parallel(recipe, synthetic, num_pairs)
    return others + num_denoising(recipe, others)


def num_steps(recipe: Recipe, num_pairs: int, direction: Direction) -> int:
    """Return how many optimizer steps a direction takes if no synthetic source is rejected."""
    per_step = recipe.train.batch_size
    text = math.ceil(2 * recipe.train.pretrain_lines / per_step)
    passes = recipe.train.parallel_epochs + recipe.train.final_epochs
    rounds = range(1, recipe.rounds.count + 1)
    blocks = sum(math.ceil(num_rows(recipe, number, num_pairs, direction) / per_step) for number in rounds)
    return text + passes * math.ceil(num_pairs / per_step) + blocks
