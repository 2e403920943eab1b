"""The row builders of a recipe: made, shown, and refused where the recipe asks for more than the tokenizer allows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from roundtrip.backtranslation.examples import oriented_pairs
from roundtrip.data.row_store import TextRow
from roundtrip.engine.translator import Translator
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime.downloads import cache_dir
from roundtrip.runtime.errors import RecipeError
from roundtrip.runtime.event_log import EventLog, ProgressHandle
from roundtrip.tokens import compatibility
from roundtrip.tokens.compatibility import BuildOptions, CompatibilityReport
from roundtrip.tokens.row_builder import SPLICED, RowBuilder
from roundtrip.tokens.splice.canonicality import CanonicalityChecker

NUM_SAMPLES = 500


def make_row_builders(
    recipe: Recipe, translators: Mapping[str, Translator], samples: Sequence[TextRow], events: EventLog
) -> tuple[dict[str, RowBuilder], dict[str, CompatibilityReport]]:
    """Make the row builder of each direction, try it on sample pairs such as those of dev, and report it."""
    row_builders: dict[str, RowBuilder] = {}
    reports: dict[str, CompatibilityReport] = {}
    mode, checkers = recipe.tokens.mode, dict[torch.device, CanonicalityChecker]()
    for name, forward in translators.items():
        direction, device = forward.direction, forward.base.device
        reverse_template = translators[direction.reverse.name].template
        if mode == "text":
            builder = RowBuilder(forward.template, reverse_template, None)
            report = CompatibilityReport("text", None, ('requested by tokens.mode = "text"',))
        else:
            with events.task("checking", f"tokenizers of {name}", 0) as task:
                options = BuildOptions(
                    checker="host" if mode == "splice" else "auto",
                    device=device,
                    shared_checker=checkers.get(device),
                    cache_folder=cache_dir() / "tokens",
                    on_progress=partial(_show_progress, task),
                )
                pairs = oriented_pairs(samples, direction, recipe)[:NUM_SAMPLES]
                builder, report = compatibility.build_row_builder(reverse_template, forward.template, pairs, options)
                task.advance(0, note=report.mode)
            if builder.checker is not None:
                checkers[device] = builder.checker
            if mode == "splice" and report.mode == "text":
                cure = f'{report.cure or "use another template"}; or set tokens.mode = "auto"'
                problem = f"{name} cannot be spliced: {'; '.join(report.reasons)}"
                raise RecipeError(problem, place="tokens.mode", cure=cure)
            builder = replace(builder, strict=mode == "splice", audit=recipe.tokens.audit)
        row_builders[name], reports[name] = builder, report
    for name, report in reports.items():
        _show(events, name, report)
    return row_builders, reports


def _show_progress(task: ProgressHandle, activity: str, done: int, total: int) -> None:
    task.advance(0, note=f"{activity}, {done:,} of {total:,}")


def _show(events: EventLog, name: str, report: CompatibilityReport) -> None:
    how = f", verified on the {report.checker}" if report.checker else ""
    num_lines = sum(report.counts.values())
    share = f"; {report.counts.get(SPLICED, 0)} of {num_lines} sample lines" if num_lines else ""
    events.say(f"  token rows of {name}: {report.mode}{how}{share}")
    for reason in report.reasons:
        events.say(f"    {reason}")
    if report.cure:
        events.say(f"    cure: {report.cure}")
    events.log("compatibility", direction=name, **report.to_dict())


def show_examples(events: EventLog, report: CompatibilityReport) -> None:
    """Show lines that take the text path, token by token."""
    for example in report.examples:
        events.say(f"    {example.text!r}: {example.reason}")
        events.say(f"      generated  {' '.join(example.generated)}")
        events.say(f"      expected   {' '.join(example.expected)}")
