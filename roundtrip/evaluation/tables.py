"""A document of `comparison.evaluate` for a person: a table, comparisons, slices, and the lines that changed most."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from roundtrip.evaluation.comparison import MIN_SLICE
from roundtrip.runtime.errors import printable, quantity
from roundtrip.runtime.event_log import print_line

# The p-value below which a difference counts as more than chance.
SIGNIFICANT = 0.05


def show(document: Mapping[str, Any], console: Console) -> None:
    """Print a document of `comparison.evaluate`."""
    names = list(document["signatures"])
    console.print(_score_table(document))
    for system, num_lines in document.get("truncated", {}).items():
        if num_lines:
            print_line(console, f"{system}: {quantity(num_lines, 'translation')} cut at the length limit")
    for system, by_kind in document.get("placeholders", {}).get("differences", {}).items():
        if by_kind:
            counts = ", ".join(f"{kind} {count}" for kind, count in by_kind.items())
            print_line(console, f"{system}: lines that differ from their source, by kind: {counts}")
    if "comparison" in document:
        print_line(console, f"system against baseline, paired bootstrap, {document['settings']['samples']} samples:")
        _show_comparison(document, console)
    for label, part in document.get("slices", {}).items():
        by_row = {row: [f"{values[name]:.1f}" for name in names] for row, values in part["scores"].items()}
        scores = "; ".join(f"{row} {' / '.join(values)}" for row, values in by_row.items())
        print_line(console, f"{label}, {quantity(part['lines'], 'line')} ({' / '.join(names)}): {scores}")
        if "comparison" in document and "comparison" not in part:
            print_line(console, f"  too few lines for a test (at least {MIN_SLICE} are required)")
        _show_comparison(part, console)
    for kind, lines in document.get("changed", {}).items():
        for line in lines:
            before, after = line["scores"]
            print_line(console, f"\n{kind} {abs(line['change']):.0f} chrF++, line {line['line']}: {line['source']}")
            print_line(console, f"  reference  {line['reference']}")
            print_line(console, f"  baseline   {line['baseline']}  ({before:.0f})")
            print_line(console, f"  system     {line['system']}  ({after:.0f})")
    comet = {"COMET": document["comet"]["signature"]} if "comet" in document else {}
    text = {"text": document["text"]} if "text" in document else {}
    for name, signature in {**document["signatures"], **comet, **text}.items():
        print_line(console, f"{name}: {signature}")


def _score_table(document: Mapping[str, Any]) -> Table:
    names, counts = list(document["signatures"]), {name: document[name] for name in ("empty", "copies")}
    if num_lines := document.get("placeholders", {}).get("lines"):
        counts[f"intact of {num_lines}"] = document["placeholders"]["intact"]
    table = Table(title=quantity(document["lines"], "line"), title_justify="left")
    for column in ("", *names, *(["COMET"] if "comet" in document else []), *counts):
        table.add_column(column, justify="right" if column else "left")
    for row, scores in document["scores"].items():
        cells = [f"{scores[name]:.1f}" for name in names]
        if "comet" in document:
            cells.append(f"{document['comet']['means'][row]:.4f}")
        cells += [str(by_row.get(row, "-")) for by_row in counts.values()]
        label = "copying the source" if row == "copy" else f"{row}: {document.get('systems', {}).get(row, '')}"
        table.add_row(Text(printable(label)), *cells)
    return table


def significance(p_value: float) -> str:
    return "significant" if p_value < SIGNIFICANT else "not significant"


def comparison_text(result: Mapping[str, Any]) -> str:
    """Describe one comparison, as `metrics.Comparison.to_dict` returns it."""
    return (
        f"{result['metric']}: {result['baseline']:.1f} ± {result['baseline_ci']:.1f} → {result['system']:.1f} ± "
        f"{result['system_ci']:.1f} ({result['system'] - result['baseline']:+.1f}), p = {result['p_value']:.3f}, "
        f"{significance(result['p_value'])}"
    )


def _show_comparison(part: Mapping[str, Any], console: Console) -> None:
    """Print whether two systems differ on all lines, or on those of a slice."""
    for result in part.get("comparison", []):
        print_line(console, f"  {comparison_text(result)}")
    if "comet" in part:
        means = [f"{mean:.4f}" for name, mean in part["comet"]["means"].items() if name != "copy"]
        p_value = f", p = {part['comet']['p_value']:.3f}" if "p_value" in part["comet"] else ""
        print_line(console, f"  COMET: {' → '.join(means)}{p_value}")
