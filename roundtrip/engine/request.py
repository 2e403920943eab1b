"""What to generate: prompts, limits, stop tokens, and what is called meanwhile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Self, TypeVar

from pydantic import Field

from roundtrip.engine.hypotheses import Hypotheses
from roundtrip.recipe.schema import Generate

T = TypeVar("T")


class BeamSearch(Generate):
    """How translations are searched for with beams: `Generate` at temperature 0, for one candidate.

    Example:
        >>> BeamSearch(num_beams=4).beams, BeamSearch(num_beams=4, temperature=0.7).beams
        (4, 1)
    """

    num_beams: Annotated[int, Field(ge=1)]
    """Hypotheses that are continued in each step."""

    @property
    def beams(self) -> int:
        """The beams of the search: 1 where it samples, or returns several candidates."""
        return 1 if self.temperature_value or self.num_candidates > 1 else self.num_beams


@dataclass(frozen=True)
class StopRule:
    """The ids that end a hypothesis, and the one that fills up rows."""

    stop_ids: Sequence[int]
    text_stop_ids: Sequence[int] = ()  # they stay in the hypothesis, as text in part (such as `.` + line break)
    pad_id: int = 0

    @property
    def all_ids(self) -> list[int]:
        return sorted({*self.stop_ids, *self.text_stop_ids})


@dataclass(frozen=True)
class Callbacks:
    """What is called while hypotheses are generated; a callback may raise to stop."""

    on_progress: Callable[[int, int], None] = lambda num_prompts, num_new_tokens: None  # after each batch
    on_batch: Callable[[list[int], Hypotheses], None] = lambda indices, hypotheses: None  # before that
    on_oom_split: Callable[[int], None] = lambda num_prompts: None  # a batch did not fit and continues in halves


@dataclass(frozen=True)
class GenerationRequest:
    """Token ids to continue, and how; `limits` are the most new tokens of each prompt, without the end token."""

    prompts: Sequence[Sequence[int]]
    limits: Sequence[int]
    settings: Generate
    stop: StopRule
    seed: int
    return_logprobs: bool = False

    def select(self, indices: Sequence[int], seed: int) -> Self:
        """Return the request of some prompts, with a seed of its own."""
        prompts, limits = [self.prompts[i] for i in indices], [self.limits[i] for i in indices]
        return replace(self, prompts=prompts, limits=limits, seed=seed)

    def repeat_per_candidate(self) -> Self:
        """Return the same request with one prompt for each hypothesis."""
        times = self.settings.num_candidates
        prompts, limits = repeat_each(self.prompts, times), repeat_each(self.limits, times)
        settings = self.settings.model_copy(update={"num_candidates": 1})
        return replace(self, prompts=prompts, limits=limits, settings=settings)


def repeat_each(values: Sequence[T], times: int) -> list[T]:
    """Return each value `times` times, repetitions next to each other."""
    return [value for value in values for _ in range(times)]
