"""What `evaluate` found, for a person: a table, comparisons, slices, and the lines that changed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from roundtrip.runtime.errors import printable

# A slice with fewer lines is shown without a test.
MIN_SLICE = 50


def show(document: Mapping[str, Any], console: Console) -> None:
    """Print the tables and the lines for a person."""
    names = list(document["signatures"])
    table = Table(title=f"{document['lines']} lines", title_justify="left")
    for column in ("", *names, *(["COMET"] if "comet" in document else []), "empty", "copies"):
        table.add_column(column, justify="left" if not column else "right")
    for row, scores in document["scores"].items():
        cells = [f"{scores[name]:.1f}" for name in names]
        if "comet" in document:
            cells.append(f"{document['comet']['means'][row]:.4f}")
        counts = [str(document[kind][row]) if row in document[kind] else "-" for kind in ("empty", "copies")]
        label = "copying the source" if row == "copy" else f"{row}: {document.get('places', {}).get(row, '')}"
        table.add_row(Text(printable(label)), *cells, *counts)
    console.print(table)
    for name, number in document.get("cut", {}).items():
        if number:
            _say(console, f"{name}: {number} translations were cut at their length limit")
    if "comparison" in document:
        settings = document["settings"]
        _say(console, f"system against baseline, paired bootstrap, {settings['samples']} samples:")
        _show_comparison(document["comparison"], console)
        _show_comet(document, console)
    for label, found in document.get("slices", {}).items():
        shown = "; ".join(
            f"{row} " + " / ".join(f"{scores[name]:.1f}" for name in names) for row, scores in found["scores"].items()
        )
        _say(console, f"{label}, {found['lines']} lines ({' / '.join(names)}): {shown}")
        if "comparison" in found:
            _show_comparison(found["comparison"], console)
        elif "comparison" in document:
            _say(console, f"  too few lines for a test ({MIN_SLICE} are wanted)")
        _show_comet(found, console)
    for kind, lines in document.get("changed", {}).items():
        for one in lines:
            _say(console, f"\n{kind} {abs(one['change']):.0f} chrF++, line {one['line']}: {one['source']}")
            before, after = one["scores"]
            _say(console, f"  reference  {one['reference']}")
            _say(console, f"  baseline   {one['baseline']}  ({before:.0f})")
            _say(console, f"  system     {one['system']}  ({after:.0f})")
    for name, signature in document["signatures"].items():
        _say(console, f"{name}: {signature}")
    if "comet" in document:
        _say(console, f"COMET: {document['comet']['signature']}")


def _show_comet(part: Mapping[str, Any], console: Console) -> None:
    """Say COMET's means of a part, or of all, and whether they differ."""
    if "comet" in part:
        means = {name: mean for name, mean in part["comet"]["means"].items() if name != "copy"}
        tested = f", p = {part['comet']['p_value']:.3f}" if "p_value" in part["comet"] else ""
        _say(console, f"  COMET: {' → '.join(f'{mean:.4f}' for mean in means.values())}{tested}")


def _show_comparison(comparison: Sequence[Mapping[str, Any]], console: Console) -> None:
    for one in comparison:
        sure = "significant" if one["p_value"] < 0.05 else "not significant"
        _say(
            console,
            f"  {one['metric']}: {one['baseline']:.1f} ± {one['baseline_ci']:.1f} → {one['system']:.1f} ± "
            f"{one['system_ci']:.1f} ({one['system'] - one['baseline']:+.1f}), p = {one['p_value']:.3f}, {sure}",
        )


def _say(console: Console, text: str) -> None:
    console.print(Text("\n".join(printable(line) for line in text.split("\n"))), soft_wrap=True)
