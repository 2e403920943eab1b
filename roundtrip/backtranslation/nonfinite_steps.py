"""Optimizer steps without effect, since their loss or gradient was not finite: recorded, and too many end a run."""

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


def record(
    result: StepResult, translator: Translator, dataset: TokenDataset, rows: Sequence[int], settings: StepSettings
) -> dict[str, Any]:
    """Return what helps to find the cause: the text of each row of the step, and the loss of each by itself."""
    losses = row_losses(translator.direction_model.model, dataset, rows, settings)
    ids = [dataset.ids_X[dataset.offset_R[row] :][: dataset.sizes[row]].tolist() for row in rows]
    texts = map(translator.base.tokenizer.decode, ids)
    return {
        "loss": json_number(result.loss),
        "grad_norm": json_number(result.grad_norm),
        "rows": [{"text": text, "loss": json_number(loss)} for text, loss in zip(texts, losses, strict=True)],
    }


def too_many(problem: str, phase: Phase, folder: Path) -> TrainingError:
    """Return the error that ends a run, where `folder` holds what was recorded."""
    return TrainingError(
        problem,
        place=f"{phase.stage}, {phase.direction.name}",
        cure=f"look at the rows in {folder}; the weights are those of the last finite step: lower train.lr, or set "
        "model.dtype = 'float32', and start a new run",
    )


def json_number(value: float) -> float | str:
    """Return a number as JSON can hold it."""
    return value if math.isfinite(value) else str(value)
