"""Which of several synthetic sources of one real line are learnt from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from roundtrip.backtranslation.filtering import FilteredCandidates
from roundtrip.engine.translator import Translations, Translator
from roundtrip.recipe.schema import Generate


def select_candidates(
    judged: FilteredCandidates,
    written: Translations,
    settings: Generate,
    max_tokens_per_microbatch: int,
    learner: Translator,
    on_progress: Callable[[int, int], None] = lambda rows, tokens: None,
) -> FilteredCandidates:
    """Keep one source of each line, or all.

    `own` takes the one its writer holds the likeliest, by token, so that short ones have no advantage. `dual` takes the
    one from which the direction that will learn gives back the real line best, which is what a source is for (dual
    learning, https://arxiv.org/abs/1611.00179, turned to choosing).

    Args:
        judged: accepted sources; their places count all hypotheses, those of one line next to each other.
        settings: by which they were written.
        max_tokens_per_microbatch: padded tokens of one forward pass of the learner.
        learner: the direction that will learn from them.
        tell: called now and then; may raise to stop.

    Returns:
        The same without those that were not chosen, which are no rejections.
    """
    samples, how = settings.num_candidates, settings.candidate_selection
    if samples == 1 or how == "all" or not judged.places:
        return judged
    if how == "reverse_likelihood":
        values = learner.likelihoods(judged.pairs, max_tokens_per_microbatch, on_progress)
    else:
        per_token = written.hypotheses.per_token()
        values = [per_token[place] for place in judged.places]
    kept = best_of_each([place // samples for place in judged.places], values)
    return FilteredCandidates([judged.pairs[i] for i in kept], [judged.places[i] for i in kept], judged.rejected)


def best_of_each(lines: Sequence[int], values: Sequence[float]) -> list[int]:
    """Return the place of the largest value of each line, the first of equals.

    Args:
        lines: which line each value is of; equal ones next to each other.
    """
    groups = groupby(range(len(lines)), key=lambda i: lines[i])
    return [max(group, key=lambda i: values[i]) for _, group in groups]
