"""Optimizer steps without effect, since their loss or gradient was not finite: recorded, and too many end a run."""

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

# Of one phase.
MAX_NONFINITE_STEPS = 10
_CURE = (
    "look at the rows in {}; the weights are those of the last finite step: lower train.lr, or set model.dtype = "
    "'float32', and start a new run"
)


def record(
    result: StepResult, translator: Translator, dataset: TokenDataset, rows: Sequence[int], settings: StepSettings
) -> dict[str, Any]:
    """Return what helps to find the cause: the text of each row, and the loss of each by itself.

    Args:
        translator: of the direction that trains, in train mode.
        dataset, rows: which rows the step was for.
    """
    losses = row_losses(translator.direction_model.model, dataset, rows, settings)
    ids = [dataset.ids_X[dataset.offset_R[row] :][: dataset.sizes[row]].tolist() for row in rows]
    decode = translator.base.tokenizer.decode
    return {
        "loss": json_number(result.loss),
        "grad_norm": json_number(result.grad_norm),
        "rows": [{"text": decode(row), "loss": json_number(loss)} for row, loss in zip(ids, losses, strict=True)],
    }


def check_number(number: int, phase: Phase, folder: Path, last: str) -> None:
    """End a run after too many such steps in one phase.

    Args:
        last: loss and gradient norm of the last one, in words.

    Raises:
        TrainingError: there were more than MAX_NONFINITE_STEPS.
    """
    if number > MAX_NONFINITE_STEPS:
        raise TrainingError(
            f"{number} steps of this phase had a non-finite loss or gradient (limit: {MAX_NONFINITE_STEPS}); {last}",
            place=f"{phase.stage}, {phase.direction.name}",
            cure=_CURE.format(folder),
        )


def check_not_all(number: int, num_steps: int, phase: Phase, folder: Path) -> None:
    """End a run where no step of a phase had any effect.

    Raises:
        TrainingError: none had.
    """
    if number == num_steps > 0:
        raise TrainingError(
            f"all {num_steps} steps of this phase had a non-finite loss or gradient",
            place=f"{phase.stage}, {phase.direction.name}",
            cure=_CURE.format(folder),
        )


def json_number(value: float) -> float | str:
    """Return a number as JSON can hold it."""
    return value if math.isfinite(value) else str(value)
