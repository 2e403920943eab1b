"""Figures as a report writes them."""

from collections.abc import Iterable, Mapping
from typing import Any

NO_VALUE = "–"


def number(value: float | None, digits: int = 1, *, share: bool = False) -> str:
    """Return a figure, a share as per cent, or a dash where there is none."""
    if value is None:
        return NO_VALUE
    return f"{value:.0%}" if share else f"{value:,.{digits}f}"


def signed(value: float, digits: int = 1) -> str:
    """Return a difference with its sign, a minus where it is negative; one that rounds to zero as ±0."""
    text = f"{value:+.{digits}f}"
    return "±0" if float(text) == 0 else text.replace("-", "−")


def figures_of(results: Iterable[Mapping[str, Any]], metric: str) -> dict[str, Any] | None:
    """Return the comparison in a metric, and its `change`; None where it is missing or lacks a figure."""
    for result in results:
        figures = [result.get(key) for key in ("baseline", "system", "p_value")]
        if result.get("metric") == metric and all(isinstance(value, int | float) for value in figures):
            return {**result, "change": result["system"] - result["baseline"]}
    return None
