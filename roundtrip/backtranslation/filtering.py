"""Which synthetic sources are good enough to learn from, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from roundtrip.data.corpora import relative_length
from roundtrip.evaluation.metrics import sentence_chrf
from roundtrip.recipe.schema import CandidateFilter

# A source with at least this chrF to its target is a copy of it.
MAX_COPY_CHRF = 80.0
# Times that a phrase may follow itself in a source, unless it does so in the target.
MAX_REPEATS = 4
# The longest phrase that is looked for one behind the other, in words.
_LONGEST_PHRASE = 8


@dataclass(frozen=True)
class FilteredCandidates:
    """The accepted (source, target) pairs of a block, their places in it, and the number of rejections by reason."""

    pairs: list[tuple[str, str]]
    places: list[int]
    rejected: dict[str, int]

    def without(self, bad: Sequence[bool], reason: str) -> FilteredCandidates:
        """Return the pairs that are not bad; the others are counted as rejected."""
        kept = [number for number, is_bad in enumerate(bad) if not is_bad]
        rejected = dict(self.rejected)
        if len(kept) < len(self.pairs):
            rejected[reason] = rejected.get(reason, 0) + len(self.pairs) - len(kept)
        return FilteredCandidates(
            [self.pairs[i] for i in kept], [self.places[i] for i in kept], dict(sorted(rejected.items()))
        )


def filter_candidates(
    texts: Sequence[str],
    finished: Sequence[bool],
    targets: Sequence[str],
    recipe: CandidateFilter,
    usual_ratio: float = 1.0,
    is_other: Callable[[str], bool] = lambda text: False,
) -> FilteredCandidates:
    """Judge a block of synthetic sources.

    Args:
        texts: the hypotheses as text.
        finished: whether each came to its end within the length limit.
        targets: the real line each was written for.
        usual_ratio: characters of a source for each of its target in real pairs; Chinese has a third of English.
        is_other: whether a text is in another language than a source should be; see `identify`.
    """
    pairs: list[tuple[str, str]] = []
    rejected: Counter[str] = Counter()
    places = []
    for place, (text, whole, target) in enumerate(zip(texts, finished, targets, strict=True)):
        reason = rejection_reason(text, target, whole, recipe, usual_ratio)
        if reason is None and is_other(text):
            reason = "wrong language"
        if reason is None:
            pairs.append((text, target))
            places.append(place)
        else:
            rejected[reason] += 1
    return FilteredCandidates(pairs, places, dict(sorted(rejected.items())))


def rejection_reason(
    text: str, target: str, finished: bool, recipe: CandidateFilter, usual_ratio: float = 1.0
) -> str | None:
    """Return the first reason against a synthetic source, None where there is none."""
    if not text:
        return "empty"
    if not finished:
        return "unfinished"
    if "\n" in text:
        return "several lines"
    if relative_length(len(text), len(target) * usual_ratio) > recipe.max_length_ratio:
        return "length ratio"
    if text.casefold() == target.casefold() or sentence_chrf(text, target) >= MAX_COPY_CHRF:
        return "copy"
    if (times := repeats(text)) > MAX_REPEATS and times > repeats(target):
        return "repeats itself"
    return None


def repeats(text: str) -> int:
    """Return how many times in a row the same phrase stands in a text, at the most; 1 where none does twice.

    A phrase is up to eight words, or characters where the text has no spaces. Models that have lost their way go round
    in such circles (https://arxiv.org/abs/1904.09751).
    """
    parts = text.split() if " " in text else list(text)
    most = 1
    for size in range(1, min(_LONGEST_PHRASE, len(parts) // 2) + 1):
        equal = 0
        for before, here in zip(parts, parts[size:], strict=False):
            equal = equal + 1 if before == here else 0
            most = max(most, 1 + equal // size)
    return most
