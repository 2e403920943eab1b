"""What `benchmarks.tokens` found, as tables on the terminal and as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# The lines of the picture, a colour for each family; parts of a road stand in the table only.
LINES = {
    "strings, usual": ("tab:blue", ":s"),
    "strings": ("tab:blue", "-o"),
    "strings, fewest calls": ("tab:blue", "--^"),
    "splice, cold guard": ("tab:red", ":o"),
    "splice, host guard": ("tab:purple", "-s"),
    "Road.rows": ("black", "-D"),
    "splice, warm guard": ("tab:red", "-o"),
    "splice, warm guard, compiled": ("tab:red", "--^"),
    "splice, no guard": ("tab:orange", "-o"),
    "splice, no guard, compiled": ("tab:orange", "--^"),
    "prior art, gc.collect()": ("tab:gray", ":s"),
    "prior art": ("tab:gray", "-o"),
}
# The length that is drawn, where it was measured: about a sentence or two.
LENGTH = 64


def show(document: dict[str, Any], console: Console) -> None:
    """Print milliseconds a batch, the best turn, for each tokenizer and length."""
    for name, found in document["tokenizers"].items():
        for length in sorted({case["length"] for case in found["cases"]}):
            cases = [case for case in found["cases"] if case["length"] == length]
            console.print(_table(name, cases))
        console.print(_shares(name, found["plain_separator"]))
    if "round" in document:
        _show_round(document["round"], console)


def _table(name: str, cases: list[dict[str, Any]]) -> Table:
    tokens = cases[-1]
    title = f"{name}: {tokens['hypothesis_tokens']:.0f} + {tokens['target_tokens']:.0f} tokens, ms a batch (best)"
    table = Table(title=title)
    table.add_column("road")
    for case in cases:
        table.add_column(str(case["batch"]), justify="right")
    table.add_column("proved", justify="right")
    table.add_column("exact", justify="right")
    for kind in ("roads", "parts"):
        names = list(dict.fromkeys(row_builder for case in cases for row_builder in case[kind]))
        for number, row_builder in enumerate(names):
            figures = [case[kind].get(row_builder) for case in cases]
            times = [f"{one['best_ms']:.3g}" if one else "" for one in figures]
            last = figures[-1] or {}
            shares = [f"{last[what]:.1%}" if what in last else "" for what in ("proved", "exact")]
            table.add_row(row_builder, *times, *shares, end_section=number == len(names) - 1)
    return table


def _shares(name: str, found: dict[str, Any]) -> Table:
    table = Table(title=f"{name}: right rows of {found['sentences']} sentences behind a plain separator")
    for column in ("final punctuation", "rows of", "targets", "whole rows", "spliced"):
        table.add_column(column, justify="right" if column in {"targets", "whole rows", "spliced"} else "left")
    for punctuation, title in (("final punctuation", "yes"), ("none", "no")):
        for whose, shares in found[punctuation].items():
            shown = (f"{shares[what]:.1%}" if what in shares else "" for what in ("targets", "rows", "spliced"))
            table.add_row(title, whose, *shown)
    return table


def _show_round(found: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{found['lines']} lines of a round, {found['device']}: share of token handling")
    for column in ("generator", *found["handling_seconds"]):
        table.add_column(column, justify="right")
    for factor, shares in found["shares"].items():
        table.add_row(f"{factor}x as fast", *(f"{100 * share:.2g} %" for share in shares.values()))
    console.print(table)
    seconds = {name: found[name] for name in ("generation_seconds", "training_seconds")} | found["handling_seconds"]
    console.print("  " + ", ".join(f"{name} {value:.3g}" for name, value in seconds.items()))


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw time a batch over batch size, one panel a tokenizer."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(document["tokenizers"])
    figure, axes = pyplot.subplots(1, len(names), figsize=(4.5 * len(names) + 2.5, 5), sharey=True, squeeze=False)
    for panel, name in zip(axes[0], names, strict=True):
        cases = document["tokenizers"][name]["cases"]
        lengths = sorted({case["length"] for case in cases}, key=lambda length: abs(length - LENGTH))
        chosen = [case for case in cases if case["length"] == lengths[0]]
        for row_builder, (colour, style) in LINES.items():
            points = [
                (case["batch"], case["roads"][row_builder]["best_ms"])
                for case in chosen
                if row_builder in case["roads"]
            ]
            if points:
                panel.plot(*zip(*points, strict=True), style, color=colour, label=row_builder, markersize=4)
        panel.set(xscale="log", yscale="log", title=f"{name}, {lengths[0]} + {lengths[0]} tokens", xlabel="rows")
        panel.set_xticks([case["batch"] for case in chosen], [str(case["batch"]) for case in chosen])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("milliseconds a batch, best turn")
    axes[0][-1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    hardware = document["hardware"]
    figure.suptitle(f"{hardware['processor']}, {hardware['threads']} threads, device {hardware['device']}", fontsize=9)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
