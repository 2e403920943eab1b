"""Early stopping: epochs and rounds that bring no improvement any more, and a start that is too weak for rounds."""

from collections.abc import Mapping, Sequence

from roundtrip.recipe.schema import Recipe
from roundtrip.runtime.errors import TrainingError

ScoresByStage = Mapping[str, Mapping[str, Mapping[str, float]]]


def has_stopped_improving(values: Sequence[float], patience: int, *, lower_is_better: bool = False) -> bool:
    """Return whether none of the last `patience` values is better than all before them."""
    sign = -1.0 if lower_is_better else 1.0
    signed = [sign * value for value in values]
    return len(signed) > patience and max(signed[-patience:]) <= max(signed[:-patience])


def require_better_than_copy(recipe: Recipe, scores: ScoresByStage, resume_command: str) -> None:
    """Refuse rounds that would start with a direction that translates dev no better than copying the source.

    Its synthetic sources would be unrelated to their targets, and training on them makes the other direction worse.
    `resume_command` is the one that continues this run.
    """
    if not recipe.rounds.require_better_than_copy or recipe.without_dev:
        return  # without dev pairs it cannot be measured
    now, copied = list(scores.values())[-1], scores["copy"]
    weak = [name for name in now if now[name]["chrf"] <= copied[name]["chrf"]]
    if weak:
        shown = ", ".join(f"{name} chrF++ {now[name]['chrf']:.1f}, copying {copied[name]['chrf']:.1f}" for name in weak)
        cure = "start a new run with more parallel pairs or train.parallel_epochs, or a base that knows both languages"
        anyway = f"or start the rounds all the same:\n  {resume_command} --set rounds.require_better_than_copy=false"
        problem = f"translates dev no better than copying the source: {shown}"
        raise TrainingError(problem, place="round-1", cure=f"{cure}; {anyway}")
