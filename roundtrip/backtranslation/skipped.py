"""Steps that changed nothing, since their loss or gradient was not finite: kept for a look, and too many end a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roundtrip.engine.train_step import StepResult, StepSettings, row_losses
from roundtrip.engine.translator import Translator
from roundtrip.recipe.plan import Phase
from roundtrip.runtime.errors import TrainingError
from roundtrip.tokens.batching import TokenDataset

# More steps of one phase with a loss or gradient that is not finite end the run.
MAX_NONFINITE_STEPS = 10
_DIVERGED = (
    "look at the rows in {}; the weights are those of the last sound step: lower train.lr, or set model.dtype "
    "to 'float32', and start anew"
)


def document(
    result: StepResult, one: Translator, rows: TokenDataset, group: Sequence[int], settings: StepSettings
) -> dict[str, Any]:
    """Return what is worth a look: the text of each row, and the loss of each by itself.

    Args:
        one: of the direction that learns, in train mode.
        rows, group: which rows the step was for.
        settings: of the step.
    """
    learner = one.direction_model
    losses = row_losses(learner.model, rows, group, settings)
    ids = [rows.ids_X[rows.offset_R[i] :][: rows.sizes[i]].tolist() for i in group]
    return {
        "loss": number(result.loss),
        "grad_norm": number(result.grad_norm),
        "rows": [
            {"text": one.base.tokenizer.decode(row), "loss": number(loss)}
            for row, loss in zip(ids, losses, strict=True)
        ],
    }


def refuse_more(here: int, what: str, phase: Phase, folder: Path) -> None:
    """End a run where too many steps of a phase were skipped.

    Raises:
        TrainingError: they were.
    """
    if here > MAX_NONFINITE_STEPS:
        raise TrainingError(
            f"{what}, the {here}. of this phase that had to be skipped",
            place=f"{phase.stage}, {phase.direction.name}",
            cure=_DIVERGED.format(folder),
        )


def refuse_all(here: int, num_steps: int, phase: Phase, folder: Path) -> None:
    """End a run where no step of a phase changed anything.

    Raises:
        TrainingError: none did.
    """
    if here == num_steps > 0:
        raise TrainingError(
            f"all {num_steps} steps were skipped, since loss or gradient were not finite",
            place=f"{phase.stage}, {phase.direction.name}",
            cure=_DIVERGED.format(folder),
        )


def number(value: float) -> float | str:
    """Return a number as JSON can hold it."""
    return value if math.isfinite(value) else str(value)
