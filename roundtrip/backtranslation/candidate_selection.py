"""Candidate selection: which of several synthetic sources of one real line are trained on."""

from collections.abc import Callable, Sequence
from itertools import groupby

from roundtrip.backtranslation.filtering import Candidate
from roundtrip.engine.translator import Translator


def select_candidates(candidates: Sequence[Candidate], scores: Sequence[float]) -> list[Candidate]:
    """Return the candidate with the highest score of each line, the first of equals.

    Args:
        candidates: those of one line next to each other.
        scores: one per candidate, such as `reverse_likelihood` or your own.

    Example:
        >>> options = [Candidate(0, "the table", "la mesa"), Candidate(0, "table", "la mesa")]
        >>> [candidate.source for candidate in select_candidates(options, [-0.2, -0.9])]
        ['the table']
    """
    groups = groupby(zip(candidates, scores, strict=True), key=lambda pair: pair[0].line)
    return [max(group, key=lambda pair: pair[1])[0] for _, group in groups]


def reverse_likelihood(
    forward: Translator,
    candidates: Sequence[Candidate],
    max_tokens: int,
    on_progress: Callable[[int, int], None] = lambda rows, tokens: None,
) -> list[float]:
    """Return the log-probability of each real line given its synthetic source by the direction that will train on it.

    In nats: dual learning (https://arxiv.org/abs/1611.00179) as a selection criterion. `max_tokens` is of a microbatch.
    """
    pairs = [(candidate.source, candidate.target) for candidate in candidates]
    return forward.likelihoods(pairs, max_tokens, on_progress)


def likelihood(candidates: Sequence[Candidate]) -> list[float]:
    """Return the log-probability per token of each source by its generating model, so that short ones gain nothing."""
    assert all(candidate.logprob is not None for candidate in candidates), "log-probabilities were not asked for"
    return [float(candidate.logprob or 0.0) for candidate in candidates]
