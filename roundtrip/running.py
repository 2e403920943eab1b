"""Running a recipe: from a sound recipe to a finished run folder, or to a look at what would be done."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from roundtrip import translator
from roundtrip.cookbook import Loaded
from roundtrip.errors import RunError, TrainingError
from roundtrip.events import Events
from roundtrip.loop import round_trip
from roundtrip.models.base import weights_hash
from roundtrip.plan import directions, num_real, num_steps, phases
from roundtrip.run import Run, create, reopen
from roundtrip.scorer import check_metrics
from roundtrip.signals import listening
from roundtrip.text.prepare import Corpora, describe, prepare
from roundtrip.text.prepare import reopen as reopen_text
from roundtrip.tokens.template import Segments
from roundtrip.translator import Translators
from roundtrip.trip import Trip


def train(path: Path, loaded: Loaded, events: Events, *, resume: bool = False) -> Run:
    """Run a recipe into a folder, or go on with it.

    Raises:
        RoundtripError: whatever stands in the way, in words; `Interrupted` after a signal, with all saved.
    """
    run = reopen(path, loaded) if resume else create(path, loaded)
    events.path = run.events
    with listening(events.say) as stop:
        translators, corpora = _prepared(run, loaded, events)
        trip = Trip(run, loaded.recipe, corpora, translators, events, stop)
        if resume:
            trip.resume()
            if trip.done():
                trip.show()
                return run
        events.log("start", phase=trip.state.phase, step=trip.state.step)
        round_trip(trip)
        if weights_hash(translators.model) != run.facts()["base_hash"]:
            raise TrainingError("the frozen base has changed during the run", cure="please report this with the recipe")
    return run


def _prepared(run: Run, loaded: Loaded, events: Events) -> tuple[Translators, Corpora]:
    """Load text and models; what was fixed when the run began is read back from it."""
    facts = run.facts()
    recipe, folder = loaded.recipe, loaded.folder
    check_metrics(recipe)
    known = facts.get("lines")
    corpora = reopen_text(recipe, run.data, known) if known else _read(loaded, run.data, events)
    segments = {name: Segments.from_dict(value) for name, value in facts.get("segments", {}).items()} or None
    with events.task("loading", f"loading {recipe.model.path.partition('#')[0]}", 0):
        translators = translator.load(recipe, folder, segments)
        base_hash = weights_hash(translators.model)
    if facts.get("base_hash", base_hash) != base_hash:
        raise RunError("the base model is not the one this run began with", place=recipe.model.path)
    run.add_facts(
        lines=corpora.counts,
        base_hash=base_hash,
        base_location=translators.base.location,
        segments={name: template.segments.to_dict() for name, template in translators.templates.items()},
    )
    return translators, corpora


def _read(loaded: Loaded, target: Path, events: Events) -> Corpora:
    with events.task("reading", "reading text", 0):
        corpora = prepare(loaded.recipe, loaded.folder, target, lambda text: events.say(f"  {text}"))
    for part, counts in corpora.counts.items():
        dropped = ", ".join(f"{number} {reason}" for reason, number in counts.items() if reason != "kept")
        events.say(f"  {part}: {counts.get('kept', 0)} lines" + (f" (dropped: {dropped})" if dropped else ""))
    events.log("text", lines=corpora.counts)
    return corpora


def check(loaded: Loaded, events: Events) -> None:
    """Load text and models of a recipe, show what would run, and keep nothing."""
    recipe = loaded.recipe
    check_metrics(recipe)
    for line in describe(recipe.data):
        events.say(f"  {line}")
    with tempfile.TemporaryDirectory() as scratch:
        corpora = _read(loaded, Path(scratch), events)
        translators = translator.load(recipe, loaded.folder)
        _show_plan(loaded, corpora, translators, events)


def _show_plan(loaded: Loaded, corpora: Corpora, translators: Translators, events: Events) -> None:
    recipe, base = loaded.recipe, translators.base
    sizes: dict[str, Any] = {"parameters": sum(p.numel() for p in base.model.parameters() if not p.requires_grad)}
    events.say(f"base {base.location}: {sizes['parameters']:,} parameters with adapters, on {base.device}")
    for direction in directions(recipe):
        template = translators.templates[direction.name]
        pairs = [(p[0], p[1]) if direction.source == recipe.languages[0] else (p[1], p[0]) for p in corpora.dev]
        held = sum(template.seam_holds(pair) for pair in pairs)
        events.say(
            f"{direction.name}: prompt {template.prompt_text(pairs[0][0])!r}, end token {template.segments.end_id}"
        )
        events.say(f"  prompts are cut where training rows are cut on {held} of {len(pairs)} dev lines")
    num_pairs = len(corpora.train)
    for phase in phases(recipe, num_pairs):
        what = f"{num_pairs} pairs, {recipe.train.parallel_passes} passes"
        if phase.round:
            lines = recipe.rounds.lines
            what = f"{lines} new lines with synthetic sources and {num_real(recipe, lines, num_pairs)} real pairs"
        events.say(f"{phase.stage}: {phase.direction.name} learns from {what}")
    events.say(f"{num_steps(recipe, num_pairs)} optimizer steps for each direction; nothing was written")
