"""Synthetic rows of earlier rounds, which later ones learn from again: they accumulate, up to a bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from roundtrip.backtranslation.examples import SYNTHETIC
from roundtrip.recipe.plan import Phase
from roundtrip.runtime.atomic_io import read_rows


def path_of(folder: Path, phase: Phase) -> Path:
    """Return where the rows of a phase are kept."""
    return folder / f"{phase.number:04d}-{phase.stage}-{phase.direction.name}.jsonl"


def earlier_rows(folder: Path, phases: Sequence[Phase], phase: Phase, limit: int) -> list[list[str]]:
    """Return synthetic rows of the rounds before, the newest first; of a target that came twice the newest alone.

    Newer sources were written by a better direction, so that these stay where there is no room for all.

    Args:
        folder: `blocks` of the run.
        phases, phase: of the run, and the one that will learn.
        limit: at most so many.
    """
    found: list[list[str]] = []
    targets: dict[str, int] = {}
    before = [one for one in phases[: phase.number] if one.round and one.direction == phase.direction]
    for one in reversed(before if limit else []):
        rows = [row for row in read_rows(path_of(folder, one)) if row[0] == SYNTHETIC]
        # Several samples of one line, of one round, stay together.
        found += [row for row in rows if targets.setdefault(row[2], one.number) == one.number]
        if len(found) >= limit:
            break
    return found[:limit]
