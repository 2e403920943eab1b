"""What a recipe will do: directions, stages, phases and the number of optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from roundtrip.recipe.sampling_schedule import sampling_settings
from roundtrip.recipe.schema import Recipe

# Names of stages, as in file names and metrics.json; those of the rounds are `round-1`, `round-2`, ...
BASE, INITIAL, PRETRAIN, PARALLEL, FINAL = "base", "initial", "text", "parallel", "final"
_CONTROL = "control-"


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
    """Training of one direction on one set of examples. A stage is a phase of each direction, or several."""

    number: int  # from 0, over the whole run
    stage: str  # `text`, `parallel`, `round-K`, `final`, or that of a control; after it both directions are scored
    round: int  # 0 outside the rounds
    direction: Direction
    ends_stage: bool
    epochs: int = 1
    control_for: Phase | None = None  # of the control: the phase that it takes as many steps as

    @property
    def parallel(self) -> bool:
        """Whether it trains on parallel pairs alone."""
        return self.stage in {PARALLEL, FINAL} or self.control_for is not None


def control_stage(stage: str) -> str:
    """Return the stage of the control that takes as many steps as a stage, such as `control-1` for `round-1`."""
    return _CONTROL + stage.removeprefix("round-")


def is_control(stage: str) -> bool:
    return stage.startswith(_CONTROL)


def start_stage(stages: Sequence[str]) -> str:
    """Return which of the stages of a run, in order, the rounds began from; the base where there are none."""
    before = list(takewhile(lambda stage: not stage.startswith("round-"), stages))
    return before[-1] if len(before) < len(stages) else BASE


def directions(recipe: Recipe) -> tuple[Direction, Direction]:
    first, second = recipe.languages
    return Direction(first, second), Direction(second, first)


def phases(recipe: Recipe, num_pairs: int) -> list[Phase]:
    """Return all phases of a run in order: monolingual text, parallel pairs, the rounds, parallel pairs again.

    Where a stage of pairs may end early, each of its epochs is a phase. The control has one for each from round 1 on.
    """
    train = recipe.train
    # Of each stage: its name, its round, how often the directions take turns, and the epochs of each turn.
    stages = [(PRETRAIN, 0, 1, 1)] if train.pretrain_lines else []
    stages += _epochs(recipe, PARALLEL, train.parallel_epochs, num_pairs)
    stages += [(f"round-{number}", number, 1, 1) for number in range(1, recipe.rounds.count + 1)]
    stages += _epochs(recipe, FINAL, train.final_epochs, num_pairs)
    result: list[Phase] = []
    for stage, number, num_turns, num_epochs in stages:
        # Where both directions start with the same weights, one is pretrained and the other copies it.
        trained = directions(recipe)[:1] if stage == PRETRAIN and recipe.shared_start else directions(recipe)
        for turn in range(num_turns):
            for direction in trained:
                ends_stage = turn == num_turns - 1 and direction == trained[-1]
                result.append(Phase(len(result), stage, number, direction, ends_stage, num_epochs))
    if recipe.evaluation.control:
        first = next(phase.number for phase in result if phase.round)
        result += [
            replace(phase, number=number, stage=control_stage(phase.stage), round=0, control_for=phase)
            for number, phase in enumerate(result[first:], start=len(result))
        ]
    return result


def _epochs(recipe: Recipe, stage: str, num_epochs: int, num_pairs: int) -> list[tuple[str, int, int, int]]:
    if not num_pairs or not num_epochs:
        return []
    return [(stage, 0, num_epochs, 1) if epochs_may_end_early(recipe) else (stage, 0, 1, num_epochs)]


def epochs_may_end_early(recipe: Recipe) -> bool:
    """Return whether the dev loss is computed after each epoch over pairs; it needs dev pairs."""
    return bool(recipe.train.patience) and not recipe.without_dev


def next_phase(phases: Sequence[Phase], phase: Phase, *, stop_early: bool, trained: Container[int] = ()) -> int:
    """Return the number of the phase to train after `phase`, among all phases of the run.

    `stop_early` skips the rest of its stage, or after a round all further rounds, since they bring no improvement. The
    control skips what it stands for if that is not among the numbers of the phases `trained`.
    """
    for after in phases[phase.number + 1 :]:
        skipped = bool(after.round) if phase.round else after.stage == phase.stage
        is_needed = after.control_for is None or after.control_for.number in trained
        if is_needed and not (stop_early and skipped):
            return after.number
    return len(phases)


def num_parallel(recipe: Recipe, num_synthetic: int, num_pairs: int) -> int:
    """Return how many parallel pairs are mixed with synthetic ones: `parallel_ratio` of both, repeated as needed."""
    share = recipe.rounds.parallel_ratio if num_pairs else 0.0
    return round(num_synthetic * share / (1.0 - share))


def num_denoising(recipe: Recipe, num_others: int) -> int:
    """Return how many denoising rows are mixed with other rows: `denoising_ratio` of all."""
    share = recipe.rounds.denoising_ratio
    return round(num_others * share / (1.0 - share))


def num_synthetic(recipe: Recipe) -> int:
    """Return how many new synthetic rows a direction has in a round if none is rejected.

    `temperature = "auto"` counts as greedy: once it samples and all candidates are kept, there are more rows.
    """
    settings = sampling_settings(recipe.generate, None)
    return recipe.rounds.monolingual_lines * (settings.num_candidates if settings.candidate_selection == "all" else 1)


def num_rows(recipe: Recipe, number: int, num_pairs: int) -> int:
    """Return how many rows of all kinds round `number` has if no source is rejected."""
    new = num_synthetic(recipe)
    synthetic = new + min(recipe.rounds.replay_examples, (number - 1) * new)
    others = synthetic + num_parallel(recipe, synthetic, num_pairs)
    return others + num_denoising(recipe, others)


def num_phase_rows(recipe: Recipe, phase: Phase, num_pairs: int) -> int:
    """Return how many rows a phase trains on in one epoch if no source is rejected; the control has as many."""
    phase = phase.control_for or phase
    if phase.stage == PRETRAIN:
        return 2 * recipe.train.pretrain_lines
    return num_rows(recipe, phase.round, num_pairs) if phase.round else num_pairs


def num_phase_steps(recipe: Recipe, phase: Phase, num_pairs: int) -> int:
    """Return how many optimizer steps a phase takes if no source is rejected."""
    return phase.epochs * math.ceil(num_phase_rows(recipe, phase, num_pairs) / recipe.train.batch_size)


def num_steps(recipe: Recipe, num_pairs: int, before: Phase | None = None) -> int:
    """Return how many optimizer steps a direction takes if no source is rejected and no stage ends early.

    With `before`, those of its direction in earlier phases only. Those of the control are not among them.
    """
    direction = before.direction if before else directions(recipe)[0]
    return sum(
        num_phase_steps(recipe, phase, num_pairs)
        for phase in phases(recipe, num_pairs)[: before.number if before else None]
        # A direction that copies a pretrained one has taken its steps, too.
        if (phase.direction == direction or (phase.stage == PRETRAIN and recipe.shared_start))
        and phase.control_for is None
    )
