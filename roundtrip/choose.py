"""Which of several synthetic sources of one real line are learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from roundtrip.judge import Judged
from roundtrip.recipe import Generate
from roundtrip.translator import Translator, Written


def choose(judged: Judged, written: Written, recipe: Generate, learner: Translator) -> Judged:
    """Keep one source of each line, or all.

    `own` takes the one its writer holds the likeliest, by token, so that short ones have no advantage. `dual` takes the
    one from which the direction that will learn gives back the real line best, which is what a source is for (dual
    learning, https://arxiv.org/abs/1611.00179, turned to choosing).

    Args:
        judged: accepted sources; their places count all hypotheses, those of one line next to each other.
        learner: the direction that will learn from them.

    Returns:
        The same without those that were not chosen, which are no rejections.
    """
    if recipe.samples == 1 or recipe.choose == "all" or not judged.places:
        return judged
    if recipe.choose == "dual":
        values = learner.likelihoods(judged.pairs, recipe.tokens_per_batch)
    else:
        assert written.hypotheses.logprob_B is not None, "own likelihoods were asked for when writing"
        tokens_B = (written.hypotheses.size_B + written.hypotheses.finished_B).clamp(min=1)
        per_token = (written.hypotheses.logprob_B / tokens_B).tolist()
        values = [per_token[place] for place in judged.places]
    kept = best([place // recipe.samples for place in judged.places], values)
    return Judged([judged.pairs[i] for i in kept], [judged.places[i] for i in kept], judged.rejected)


def best(lines: Sequence[int], values: Sequence[float]) -> list[int]:
    """Return the place of the largest value of each line, the first of equals.

    Args:
        lines: which line each value is of; equal ones next to each other.
    """
    groups = groupby(range(len(lines)), key=lambda i: lines[i])
    return [max(group, key=lambda i: values[i]) for _, group in groups]
