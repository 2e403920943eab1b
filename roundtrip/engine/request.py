"""One batch of prompts that an engine has to continue, and what it gives back.

Shapes: B hypotheses, those of one prompt next to each other; N new positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from roundtrip.recipe.schema import Generate

T = TypeVar("T")


@dataclass(frozen=True)
class GenerationRequest:
    """What to continue, and how.

    Attributes:
        prompts: token ids.
        limits: most new tokens of each prompt, the end token not counted.
        recipe: sampling settings; `samples` hypotheses of each prompt.
        pad_id: fills up rows.
        stop_ids: any of these ends a hypothesis.
        seed: of sampling.
        scored: whether log-probabilities are wanted.
    """

    prompts: Sequence[Sequence[int]]
    limits: Sequence[int]
    recipe: Generate
    pad_id: int
    stop_ids: Sequence[int]
    seed: int
    return_logprobs: bool = False

    def one_each(self) -> GenerationRequest:
        """Return the same with a prompt for each hypothesis."""
        if self.recipe.num_candidates == 1:
            return self
        times, once = self.recipe.num_candidates, self.recipe.model_copy(update={"num_candidates": 1})
        return replace(self, prompts=repeated(self.prompts, times), limits=repeated(self.limits, times), recipe=once)


@dataclass(frozen=True)
class GeneratedIds:
    """What an engine has written.

    Attributes:
        ids_BN: int64. What follows a stop id in a row, or stands beyond its limit, has no meaning.
        logprob_B: float32, of each hypothesis with its stop id; None where the engine does not say.
    """

    ids_BN: torch.Tensor
    logprob_B: torch.Tensor | None = None


def repeated(values: Sequence[T], times: int) -> list[T]:
    """Return each value so many times, one after the other."""
    return [value for value in values for _ in range(times)]
