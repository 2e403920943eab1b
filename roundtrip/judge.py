"""Which synthetic sources are good enough to learn from, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from roundtrip.recipe import Judge
from roundtrip.score import similarity
from roundtrip.text.prepare import length_ratio


@dataclass(frozen=True)
class Judged:
    """The accepted (source, target) pairs of a block, their places in it, and the number of rejections by reason."""

    pairs: list[tuple[str, str]]
    places: list[int]
    rejected: dict[str, int]


def judge(
    texts: Sequence[str],
    finished: Sequence[bool],
    targets: Sequence[str],
    recipe: Judge,
    usual_ratio: float = 1.0,
) -> Judged:
    """Judge a block of synthetic sources.

    Args:
        texts: the hypotheses as text.
        finished: whether each came to its end within the length limit.
        targets: the real line each was written for.
        usual_ratio: characters of a source for each of its target in real pairs; Chinese has a third of English.
    """
    pairs: list[tuple[str, str]] = []
    rejected: Counter[str] = Counter()
    places = []
    for place, (text, whole, target) in enumerate(zip(texts, finished, targets, strict=True)):
        reason = fault(text, target, whole, recipe, usual_ratio)
        if reason is None:
            pairs.append((text, target))
            places.append(place)
        else:
            rejected[reason] += 1
    return Judged(pairs, places, dict(sorted(rejected.items())))


def fault(text: str, target: str, finished: bool, recipe: Judge, usual_ratio: float = 1.0) -> str | None:
    """Return the first reason against a synthetic source, None where there is none."""
    if not text:
        return "empty"
    if not finished:
        return "unfinished"
    if "\n" in text:
        return "several lines"
    if length_ratio(len(text), len(target) * usual_ratio) > recipe.max_ratio:
        return "length ratio"
    if text.casefold() == target.casefold() or similarity(text, target) >= recipe.max_copy:
        return "copy"
    return None
