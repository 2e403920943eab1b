"""Replay: synthetic examples of earlier rounds that later rounds train on again, up to a limit."""

from collections.abc import Sequence
from pathlib import Path

from roundtrip.backtranslation.examples import REPLAY, SYNTHETIC, Example, examples_path
from roundtrip.recipe.plan import Phase
from roundtrip.runtime.atomic_io import read_rows


def replayed_examples(folder: Path, phases: Sequence[Phase], phase: Phase, limit: int) -> list[Example]:
    """Return synthetic examples of earlier rounds, the newest first; of a target that came twice only the newest.

    Newer sources come from a better model, so these stay where there are more than `limit`.
    """
    replayed: list[Example] = []
    round_of_target: dict[str, int] = {}
    earlier = [other for other in phases[: phase.number] if other.round and other.direction == phase.direction]
    for other in reversed(earlier if limit else []):
        for kind, source, target in read_rows(examples_path(folder, other)):
            # Several candidates of one line, of one round, stay together.
            if kind == SYNTHETIC and round_of_target.setdefault(target, other.number) == other.number:
                replayed.append(Example(REPLAY, source, target))
        if len(replayed) >= limit:
            break
    return replayed[:limit]
