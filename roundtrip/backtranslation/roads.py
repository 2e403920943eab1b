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
from roundtrip.runtime.event_log import Events
from roundtrip.tokens import compatibility
from roundtrip.tokens.audit import Tell
from roundtrip.tokens.compatibility import Verdict
from roundtrip.tokens.prompt_template import Template
from roundtrip.tokens.row_builder import SPLICED, Road
from roundtrip.tokens.splice.canonicality import Guard

# So many sample pairs are tried.
NUM_SAMPLES = 500


def find(
    recipe: Recipe,
    writers: Mapping[str, Template],
    learners: Mapping[str, Template],
    samples: Mapping[str, Sequence[tuple[str, str]]],
    devices: Mapping[str, torch.device],
    events: Events,
) -> tuple[dict[str, Road], dict[str, Verdict]]:
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
    roads: dict[str, Road] = {}
    verdicts: dict[str, Verdict] = {}
    settings = recipe.tokens
    known: dict[torch.device, Guard] = {}
    for direction in directions(recipe):
        device = devices[direction.name]
        learner, writer = learners[direction.name], writers[direction.reverse.name]
        if settings.road == "strings":
            roads[direction.name] = Road(learner, writer, None)
            verdicts[direction.name] = Verdict("strings", None, ('asked for by tokens.road = "strings"',), None, {}, {})
            continue
        with events.task("checking", f"token road of {direction.name}", 0) as task:
            road, found = compatibility.build(
                writer,
                learner,
                samples[direction.name][:NUM_SAMPLES],
                guard="host" if settings.strict else settings.guard,
                device=device,
                known=known.get(device),
                cache=cache_dir() / "tokens",
                tell=_telling(task),
            )
            task.advance(0, note=found.road)
        if road.guard is not None:
            known[device] = road.guard
        _refuse(recipe, direction, found)
        roads[direction.name] = replace(road, strict=settings.strict, audit=settings.audit)
        verdicts[direction.name] = found
    return roads, verdicts


def _telling(task: Any) -> Tell:
    def tell(what: str, number: int, total: int) -> None:
        task.advance(0, note=f"{what}, {number:,} of {total:,}")

    return tell


def _refuse(recipe: Recipe, direction: Direction, found: Verdict) -> None:
    """Refuse a recipe that demands the splice where it cannot be had."""
    if recipe.tokens.guard == "device" and found.guard != "device":
        raise RecipeError(
            f"{direction.name} has no guard on the device: {'; '.join(found.reasons)}",
            place="tokens.guard",
            cure='set tokens.guard = "auto"',
        )
    wanted = "strict" if recipe.tokens.strict else "road"
    if found.road == "strings" and (recipe.tokens.road == "splice" or recipe.tokens.strict):
        raise RecipeError(
            f"{direction.name} cannot be spliced: {'; '.join(found.reasons)}",
            place=f"tokens.{wanted}",
            cure=f'{found.cure or "use another template"}; or set tokens.road = "auto" and strict = false',
        )


def say(events: Events, name: str, found: Verdict) -> None:
    """Show a verdict in a few lines."""
    how = f", proved on the {found.guard}" if found.guard else ""
    num = sum(found.counts.values())
    share = f"; {found.counts.get(SPLICED, 0)} of {num} sample lines" if num else ""
    events.say(f"  token road of {name}: {found.road}{how}{share}")
    for reason in found.reasons:
        events.say(f"    {reason}")
    if found.cure:
        events.say(f"    cure: {found.cure}")


def say_examples(events: Events, found: Verdict) -> None:
    """Show lines that go by strings, token by token."""
    for example in found.examples:
        events.say(f"    {example.text!r}: {example.reason}")
        events.say(f"      written  {' '.join(example.written)}")
        events.say(f"      wanted   {' '.join(example.wanted)}")
