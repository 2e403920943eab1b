"""The token roads of a recipe: found, said aloud, and refused where the recipe asks for more than can be had."""

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
from roundtrip.tokens.compatibility import CompatibilityReport
from roundtrip.tokens.prompt_template import PromptTemplate
from roundtrip.tokens.row_builder import SPLICED, RowBuilder
from roundtrip.tokens.splice.canonicality import CanonicalityChecker

# So many sample pairs are tried.
NUM_SAMPLES = 500


def find(
    recipe: Recipe,
    writers: Mapping[str, PromptTemplate],
    learners: Mapping[str, PromptTemplate],
    samples: Mapping[str, Sequence[tuple[str, str]]],
    devices: Mapping[str, torch.device],
    events: EventLog,
) -> tuple[dict[str, RowBuilder], dict[str, CompatibilityReport]]:
    """Find the road of each direction.

    Args:
        writers: by direction, what its prompts are made by.
        learners: by direction, what its synthetic rows are made by.
        samples: (source, target) lines by direction, such as the dev pairs.
        devices: by direction, where its rows are made.

    Returns:
        Roads and verdicts by direction.

    Raises:
        RecipeError: `[tokens]` asks for a road or a guard that cannot be had.
    """
    row_builders: dict[str, RowBuilder] = {}
    verdicts: dict[str, CompatibilityReport] = {}
    settings = recipe.tokens
    known: dict[torch.device, CanonicalityChecker] = {}
    for direction in directions(recipe):
        device = devices[direction.name]
        learner, writer = learners[direction.name], writers[direction.reverse.name]
        if settings.mode == "text":
            row_builders[direction.name] = RowBuilder(learner, writer, None)
            verdicts[direction.name] = CompatibilityReport(
                "text", None, ('asked for by tokens.mode = "text"',), None, {}, {}
            )
            continue
        with events.task("checking", f"token road of {direction.name}", 0) as task:
            row_builder, found = compatibility.build_row_builder(
                writer,
                learner,
                samples[direction.name][:NUM_SAMPLES],
                guard="host" if settings.strict else settings.guard,
                device=device,
                known=known.get(device),
                cache=cache_dir() / "tokens",
                on_progress=_telling(task),
            )
            task.advance(0, note=found.mode)
        if row_builder.guard is not None:
            known[device] = row_builder.guard
        _refuse(recipe, direction, found)
        row_builders[direction.name] = replace(row_builder, strict=settings.strict, audit=settings.audit)
        verdicts[direction.name] = found
    return row_builders, verdicts


def _telling(task: Any) -> OnProgress:
    def on_progress(what: str, number: int, total: int) -> None:
        task.advance(0, note=f"{what}, {number:,} of {total:,}")

    return on_progress


def _refuse(recipe: Recipe, direction: Direction, found: CompatibilityReport) -> None:
    """Refuse a recipe that demands the splice where it cannot be had."""
    if recipe.tokens.guard == "device" and found.guard != "device":
        raise RecipeError(
            f"{direction.name} has no guard on the device: {'; '.join(found.reasons)}",
            place="tokens.guard",
            cure='set tokens.guard = "auto"',
        )
    wanted = "strict" if recipe.tokens.strict else "road"
    if found.mode == "text" and (recipe.tokens.mode == "splice" or recipe.tokens.strict):
        raise RecipeError(
            f"{direction.name} cannot be spliced: {'; '.join(found.reasons)}",
            place=f"tokens.{wanted}",
            cure=f'{found.cure or "use another template"}; or set tokens.mode = "auto" and strict = false',
        )


def say(events: EventLog, name: str, found: CompatibilityReport) -> None:
    """Show a verdict in a few lines."""
    how = f", proved on the {found.guard}" if found.guard else ""
    num = sum(found.counts.values())
    share = f"; {found.counts.get(SPLICED, 0)} of {num} sample lines" if num else ""
    events.say(f"  token road of {name}: {found.mode}{how}{share}")
    for reason in found.reasons:
        events.say(f"    {reason}")
    if found.cure:
        events.say(f"    cure: {found.cure}")


def say_examples(events: EventLog, found: CompatibilityReport) -> None:
    """Show lines that go by strings, token by token."""
    for example in found.examples:
        events.say(f"    {example.text!r}: {example.reason}")
        events.say(f"      written  {' '.join(example.written)}")
        events.say(f"      wanted   {' '.join(example.wanted)}")
