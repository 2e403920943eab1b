"""python -m benchmarks.gpu: everything that only a GPU can tell, in at most eight minutes; see `__main__`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from benchmarks import common


def show(document: Mapping[str, Any], console: Console) -> None:
    """Print a table for each case of a part's result: a row for each rung, its figures or why there are none."""
    for case, rungs in document["cases"].items():
        names = list(dict.fromkeys(name for figures in rungs.values() for name in figures if name not in _REASONS))
        rows = [
            (rung, *(cell(figures.get(name, "")) for name in names), *(reason for reason in [_reason(figures)]))
            for rung, figures in rungs.items()
        ]
        common.print_table(console, f"{document['part']}: {case}", ["rung", *names, "none, since"], rows)


_REASONS = ("skipped", "failed", "output")


def _reason(figures: Mapping[str, Any]) -> str:
    return next((f"{kind}: {figures[kind]}" for kind in ("skipped", "failed") if kind in figures), "")


def cell(value: Any) -> str:
    """Return a figure in a few characters."""
    match value:
        case None:
            return "not known"
        case float():
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        case list():
            return " ".join(map(cell, value))
    return str(value)
