"""python -m benchmarks.gpu: everything that only a GPU can tell, in at most eight minutes; see `__main__`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from benchmarks import common
from benchmarks.gpu.measure import cell

REASONS = ("skipped", "failed", "output")
LONGEST_REASON = 100


def show(document: Mapping[str, Any], console: Console) -> None:
    """Print a table for each case of a part's result: a row for each rung, its figures or why there are none."""
    for case, rungs in document["cases"].items():
        names = list(dict.fromkeys(name for figures in rungs.values() for name in figures if name not in REASONS))
        rows = [
            (rung, *(escape(cell(figures[name])) if name in figures else "" for name in names), _reason(figures))
            for rung, figures in rungs.items()
        ]
        common.print_table(console, f"{document['part']}: {case}", ["rung", *names, "none, since"], rows)


def _reason(figures: Mapping[str, Any]) -> str:
    reason = next((f"{kind}: {figures[kind]}" for kind in REASONS if kind in figures), "")
    return escape(reason[:LONGEST_REASON] + ("..." if len(reason) > LONGEST_REASON else ""))
