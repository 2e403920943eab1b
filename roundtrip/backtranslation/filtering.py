"""Filtering and selection of synthetic sources: which are good enough to train on, why others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch

from roundtrip.data.corpora import relative_length
from roundtrip.data.placeholders import errors
from roundtrip.engine.request import Callbacks
from roundtrip.engine.translator import Translator
from roundtrip.evaluation.metrics import sentence_chrf
from roundtrip.recipe.schema import CandidateFilter, Generate

# chrF of a source against its target from which on it counts as a copy.
MAX_COPY_CHRF = 80.0
# How often the same phrase may follow itself, where it does not in the target.
MAX_REPEATS = 4
# The longest phrase that is looked for, in words.
_LONGEST_PHRASE = 8


@dataclass(frozen=True)
class Candidate:
    """A synthetic source that the reverse direction generated for one real line, the target.

    Attributes:
        line: number of the real line among those of the phase.
        finished: an end token came within the length limit.
        ids_N: int64, the generated ids on the device that generated them; None for other text.
        logprob: mean log-probability of a generated token by the generating model, in nats; None where not asked for.
        row_start: ids of its row up to the target, where verification on the host asked for them.

    Example:
        >>> Candidate(0, source="The file is closed.", target="El archivo está cerrado.").finished
        True
    """

    line: int
    source: str
    target: str
    finished: bool = True
    ids_N: torch.Tensor | None = field(default=None, repr=False, compare=False)
    logprob: float | None = None
    row_start: list[int] | None = field(default=None, repr=False, compare=False)


# Returns the reason against a candidate, None where there is none.
RejectionRule = Callable[[Candidate], str | None]


@dataclass(frozen=True)
class FilteredCandidates:
    """The candidates that were kept, in order, and the number of rejected ones by reason."""

    kept: list[Candidate]
    rejected: Counter[str]

    def without(self, is_bad: Sequence[bool], reason: str) -> FilteredCandidates:
        """Reject some of the kept candidates for one reason."""
        kept = [candidate for candidate, bad in zip(self.kept, is_bad, strict=True) if not bad]
        return FilteredCandidates(kept, self.rejected + Counter({reason: len(self.kept) - len(kept)}))


def filter_candidates(
    candidates: Sequence[Candidate],
    settings: CandidateFilter = CandidateFilter(),  # noqa: B008 (frozen)
    *,
    length_ratio: float = 1.0,
    filters: Sequence[RejectionRule] = (),
) -> FilteredCandidates:
    """Reject synthetic sources that are empty, cut off, copies, too long or short, repetitive, or break placeholders.

    Args:
        settings: `[filter]` of a recipe.
        length_ratio: characters of a source per character of its target in real pairs; Chinese has a third of English.
        filters: further filters, asked in order after the built-in ones: each returns a reason, or None.

    Returns:
        The kept candidates and the number of rejections by reason.

    Example:
        >>> good = Candidate(0, "The file is closed.", "El archivo está cerrado.")
        >>> copy = Candidate(1, "Guardar", "Guardar")
        >>> filtered = filter_candidates([good, copy])
        >>> [candidate.line for candidate in filtered.kept], dict(filtered.rejected)
        ([0], {'copy': 1})
    """
    reasons = []
    for candidate in candidates:
        reason = rejection_reason(candidate, settings, length_ratio)
        for rejects in filters:
            reason = reason or rejects(candidate)
        reasons.append(reason)
    kept = [candidate for candidate, reason in zip(candidates, reasons, strict=True) if reason is None]
    return FilteredCandidates(kept, Counter(reason for reason in reasons if reason is not None))


def rejection_reason(candidate: Candidate, settings: CandidateFilter, length_ratio: float = 1.0) -> str | None:
    """Return the first reason against a candidate, None where there is none."""
    source, target = candidate.source, candidate.target
    if not source:
        return "empty"
    if not candidate.finished:
        return "unfinished"
    if "\n" in source:
        return "multiple_lines"
    if relative_length(len(source), len(target) * length_ratio) > settings.max_length_ratio:
        return "length_ratio"
    if source.casefold() == target.casefold() or sentence_chrf(source, target) >= MAX_COPY_CHRF:
        return "copy"
    if (times := num_repeats(source)) > MAX_REPEATS and times > num_repeats(target):
        return "repetition"
    if errors(target, source):
        return "placeholders"
    return None


def num_repeats(text: str) -> int:
    """Return how many times in a row the same phrase occurs in a text, at most; 1 where none is repeated.

    A phrase is up to eight words, or characters where the text has no spaces. Degenerate models loop like this
    (https://arxiv.org/abs/1904.09751).
    """
    parts = text.split() if " " in text else list(text)
    most = 1
    for size in range(1, min(_LONGEST_PHRASE, len(parts) // 2) + 1):
        equal = 0
        for part, later in zip(parts, parts[size:], strict=False):
            equal = equal + 1 if part == later else 0
            most = max(most, 1 + equal // size)
    return most


def select_candidates(candidates: Sequence[Candidate], scores: Sequence[float]) -> list[Candidate]:
    """Return the candidate with the highest score of each line, the first of equals.

    Args:
        candidates: those of one line next to each other.
        scores: one per candidate, such as the likelihood of its target by the direction that trains on it.

    Example:
        >>> options = [Candidate(0, "the table", "la mesa"), Candidate(0, "table", "la mesa")]
        >>> [candidate.source for candidate in select_candidates(options, [-0.2, -0.9])]
        ['the table']
    """
    groups = groupby(zip(candidates, scores, strict=True), key=lambda pair: pair[0].line)
    return [max(group, key=lambda pair: pair[1])[0] for _, group in groups]


def round_trip_chrf(
    forward: Translator,
    candidates: Sequence[Candidate],
    settings: Generate = Generate(),  # noqa: B008 (frozen)
    callbacks: Callbacks = Callbacks(),  # noqa: B008 (frozen)
) -> list[float]:
    """Return the chrF (0 to 100) of each target against the greedy translation of its synthetic source.

    Args:
        forward: translates sources into the language of the targets.
        settings: engine and batch size; how the sources were generated does not matter.

    Returns:
        One value per candidate, 0 where a source is too long for the model, which could not train on it either.

    Example:
        >>> from roundtrip import load_translators
        >>> forward = load_translators(recipe)["en-es"]
        >>> (score,) = round_trip_chrf(forward, [Candidate(0, "a cat", "un gato")])
        >>> 0 <= score <= 100
        True
    """
    greedy = settings.model_copy(update={"temperature": 0.0, "num_candidates": 1})
    sources = [candidate.source for candidate in candidates]
    fitting = [i for i, fits in enumerate(forward.can_translate(sources, greedy)) if fits]
    translations = forward.translate([sources[i] for i in fitting], greedy, 0, callbacks=callbacks)
    scores = [0.0] * len(candidates)
    for i, text in zip(fitting, translations.texts, strict=True):
        scores[i] = sentence_chrf(text, candidates[i].target)
    return scores
