"""The row builders of a recipe: found, shown, and refused where the recipe asks for more than the tokenizer allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from roundtrip.recipe.plan import Direction, directions
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime.downloads import cache_dir
from roundtrip.runtime.errors import RecipeError
from roundtrip.runtime.event_log import EventLog
from roundtrip.tokens import compatibility
from roundtrip.tokens.audit import OnProgress
from roundtrip.tokens.compatibility import BuildOptions, CompatibilityReport
from roundtrip.tokens.prompt_template import PromptTemplate
from roundtrip.tokens.row_builder import SPLICED, RowBuilder
from roundtrip.tokens.splice.canonicality import CanonicalityChecker

# So many sample pairs are tried.
NUM_SAMPLES = 500


def make_row_builders(
    recipe: Recipe,
    templates: Mapping[str, PromptTemplate],
    samples: Mapping[str, Sequence[tuple[str, str]]],
    devices: Mapping[str, torch.device],
    events: EventLog,
) -> tuple[dict[str, RowBuilder], dict[str, CompatibilityReport]]:
    """Make the row builder of each direction.

    Args:
        templates: by direction.
        samples: (source, target) lines by direction, such as the dev pairs.
        devices: by direction, where its rows are made.

    Returns:
        Row builders and reports by direction.

    Raises:
        RecipeError: `tokens.mode = "splice"` and a direction cannot be spliced.
    """
    row_builders: dict[str, RowBuilder] = {}
    reports: dict[str, CompatibilityReport] = {}
    mode, checkers = recipe.tokens.mode, dict[torch.device, CanonicalityChecker]()
    for direction in directions(recipe):
        name, device = direction.name, devices[direction.name]
        reverse, forward = templates[direction.reverse.name], templates[name]
        if mode == "text":
            row_builders[name] = RowBuilder(forward, reverse, None)
            reports[name] = CompatibilityReport("text", None, ('requested by tokens.mode = "text"',))
            continue
        with events.task("checking", f"tokenizers of {name}", 0) as task:
            options = BuildOptions(
                guard="host" if mode == "splice" else "auto",
                device=device,
                checker=checkers.get(device),
                cache_folder=cache_dir() / "tokens",
                on_progress=_progress(task),
            )
            row_builder, report = compatibility.build_row_builder(
                reverse, forward, samples[name][:NUM_SAMPLES], options
            )
            task.advance(0, note=report.mode)
        if row_builder.guard is not None:
            checkers[device] = row_builder.guard
        _refuse(recipe, direction, report)
        row_builders[name] = replace(row_builder, strict=mode == "splice", audit=recipe.tokens.audit)
        reports[name] = report
    return row_builders, reports


def _progress(task: Any) -> OnProgress:
    def on_progress(what: str, number: int, total: int) -> None:
        task.advance(0, note=f"{what}, {number:,} of {total:,}")

    return on_progress


def _refuse(recipe: Recipe, direction: Direction, report: CompatibilityReport) -> None:
    """Refuse a recipe that demands the splice where the tokenizer does not allow it."""
    if recipe.tokens.mode == "splice" and report.mode == "text":
        raise RecipeError(
            f"{direction.name} cannot be spliced: {'; '.join(report.reasons)}",
            place="tokens.mode",
            cure=f'{report.cure or "use another template"}; or set tokens.mode = "auto"',
        )


def show(events: EventLog, name: str, report: CompatibilityReport) -> None:
    """Show a report in a few lines."""
    how = f", verified on the {report.guard}" if report.guard else ""
    num = sum(report.counts.values())
    share = f"; {report.counts.get(SPLICED, 0)} of {num} sample lines" if num else ""
    events.say(f"  token rows of {name}: {report.mode}{how}{share}")
    for reason in report.reasons:
        events.say(f"    {reason}")
    if report.cure:
        events.say(f"    cure: {report.cure}")


def show_examples(events: EventLog, report: CompatibilityReport) -> None:
    """Show lines that take the text path, token by token."""
    for example in report.examples:
        events.say(f"    {example.text!r}: {example.reason}")
        events.say(f"      generated  {' '.join(example.generated)}")
        events.say(f"      expected   {' '.join(example.expected)}")
