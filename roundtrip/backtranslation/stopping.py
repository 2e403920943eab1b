"""When to go on and when not: passes and rounds that bring nothing any more, and a beginning that is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from roundtrip.recipe.schema import Recipe
from roundtrip.runtime.errors import TrainingError

ByStage = Mapping[str, Mapping[str, Mapping[str, float]]]


def has_stopped_improving(values: Sequence[float], patience: int, *, lower: bool = False) -> bool:
    """Return whether none of the last `patience` values is better than all before them.

    Args:
        lower: smaller values are better.
    """
    sign = -1.0 if lower else 1.0
    signed = [sign * value for value in values]
    return len(signed) > patience and max(signed[-patience:]) <= max(signed[:-patience])


def require_better_than_copy(recipe: Recipe, scores: ByStage) -> None:
    """Refuse rounds that would begin with a direction which translates no better than copying.

    What such a direction writes has nothing to do with what it read, and learning from it makes the other one worse.

    Args:
        scores: dev scores by stage and direction, `copy` among them, the latest last.

    Raises:
        TrainingError: a direction is cold, and the recipe does not allow it.
    """
    if not recipe.rounds.require_better_than_copy or recipe.blind:
        return  # without dev pairs nobody can tell
    now, copied = list(scores.values())[-1], scores["copy"]
    cold = [name for name in now if now[name]["chrf"] <= copied[name]["chrf"]]
    if cold:
        shown = ", ".join(f"{n} chrF++ {now[n]['chrf']:.1f}, copying {copied[n]['chrf']:.1f}" for n in cold)
        raise TrainingError(
            f"translates dev no better than copying the source does: {shown}",
            place="round-1",
            cure="give more parallel pairs or train.parallel_epochs, or a base that knows both languages; "
            "rounds.require_better_than_copy = false begins all the same",
        )
