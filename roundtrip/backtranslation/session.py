"""Running a recipe: from a sound recipe to a finished run folder, or to a look at what would be done."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from roundtrip.backtranslation import row_builders
from roundtrip.backtranslation.loop import round_trip
from roundtrip.backtranslation.row_builders import NUM_SAMPLES
from roundtrip.backtranslation.run_folder import RunFolder, create, reopen, with_model_folders
from roundtrip.backtranslation.trainer import Trainer
from roundtrip.backtranslation.validation import check_metrics, parallel_texts
from roundtrip.data.corpora import Corpora, describe, prepare
from roundtrip.data.corpora import reopen as reopen_text
from roundtrip.data.language_id import MIN_CHARS, MIN_LINES, MIN_RIGHT, LanguageIdentifier
from roundtrip.engine import translator
from roundtrip.engine.translator import Translator, expansion_of, noised_name
from roundtrip.models import from_scratch
from roundtrip.models.direction_model import frozen_hashes
from roundtrip.recipe.loader import LoadedRecipe
from roundtrip.recipe.plan import (
    TEXT,
    directions,
    num_denoising,
    num_parallel,
    num_replayed,
    num_steps,
    num_synthetic,
    phases,
)
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime import atomic_io
from roundtrip.runtime.disk_space import Disk
from roundtrip.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from roundtrip.runtime.errors import RunError, TextError, TrainingError
from roundtrip.runtime.event_log import EventLog
from roundtrip.runtime.interrupts import StopRequest, catch_signals
from roundtrip.runtime.seeding import derive_seed
from roundtrip.tokens.prompt_segments import Segments
from roundtrip.tokens.row_builder import RowBuilder
from roundtrip.tokens.splice.vocabulary import fingerprint


def train(
    path: Path,
    loaded: LoadedRecipe,
    events: EventLog,
    *,
    resume: bool = False,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> RunFolder:
    """Run a recipe into a folder, or go on with it.

    Args:
        ranks: the processes that share the work, each of which calls this.

    Raises:
        RoundtripError: whatever stands in the way, in words; `Interrupted` after a signal, with all saved.
    """
    if processes.is_main:
        run = reopen(path, loaded) if resume else create(path, loaded)
        atomic_io.remove_leftovers(run.path)
    processes.broadcast(None)
    run = RunFolder(path)
    events.path = run.events if processes.is_main else None
    with catch_signals(events.say) as stop, ExitStack() as ends:
        events.disk = Disk(loaded.recipe.checkpoint.full_disk == "wait", events.say, stop.leave_if_asked)
        run = replace(run, disk=events.disk)
        translators, corpora = _prepared(run, loaded, events, stop, processes)
        found = _roads(loaded.recipe, translators, corpora, events)
        stop.leave_if_asked()
        told = _identifier(loaded.recipe, corpora, events)
        trip = ends.enter_context(
            closing(Trainer(run, loaded.recipe, corpora, translators, found, events, stop, processes, told))
        )
        if resume:
            trip.resume()
            if processes.broadcast(trip.done()):
                trip.show()
                return run
        events.log("start", phase=trip.state.phase, step=trip.state.step)
        learners = {name: one.direction_model for name, one in translators.items()}
        before = frozen_hashes(learners)
        round_trip(trip)
        if frozen_hashes(learners) != before:
            raise TrainingError("the frozen base has changed during the run", cure="please report this with the recipe")
    return run


def _prepared(
    run: RunFolder, loaded: LoadedRecipe, events: EventLog, stop: StopRequest, processes: ProcessGroup
) -> tuple[dict[str, Translator], Corpora]:
    """Load text and models; what was fixed when the run began is read back from it."""
    facts = run.facts()
    recipe, folder = run.pinned(loaded.recipe), loaded.folder
    check_metrics(recipe)
    identifier_of(recipe)
    known = facts.get("lines")
    if processes.is_main and (problem := atomic_io.first_damaged(facts.get("files", {}), run.path)):
        raise RunError(f"is damaged: {problem}", place=str(run.path), cure="bring that file back, or start anew")
    if not known:
        known = processes.broadcast(_read(loaded, run.data, events).counts if processes.is_main else {})
    corpora = reopen_text(recipe, run.data, known)
    stop.leave_if_asked()
    segments = {name: Segments.from_dict(value) for name, value in facts.get("segments", {}).items()} or None
    with processes.main_process_first():
        translators = _load(recipe, folder, corpora, events, segments, run.base, processes)
    run.check_loaded("base_hash", {name: one.base.digest for name, one in translators.items()}, "base model")
    tokenizers = {name: _fingerprint(one.base.tokenizer) for name, one in translators.items()}
    run.check_loaded("tokenizer", tokenizers, "tokenizer")
    stop.leave_if_asked()
    begun = "files" in facts
    expansions = facts.get("expansion", {}) if begun else _expansions(translators, corpora, recipe)
    translators = _expanded(translators, expansions)
    check_lines(translators, corpora, recipe, events)
    if processes.is_main and not begun:
        for part in (run.data, run.base):
            atomic_io.fsync_tree(part)
        run.add_facts(
            dtype={name: str(one.base.dtype).removeprefix("torch.") for name, one in translators.items()},
            lines=corpora.counts,
            files=atomic_io.file_hashes(run.data, run.path) | atomic_io.file_hashes(run.base, run.path),
            base_hash={name: one.base.digest for name, one in translators.items()},
            tokenizer=tokenizers,
            base_location={name: one.base.location for name, one in translators.items()},
            segments=_segments(translators),
            expansion=expansions,
        )
    return translators, corpora


def _expansions(translators: Mapping[str, Translator], corpora: Corpora, recipe: Recipe) -> dict[str, float]:
    """Return by how much the length limit of each direction grows."""
    found = {}
    for side, direction in enumerate(directions(recipe)):
        rows = [corpora.train[i] for i in range(min(NUM_SAMPLES, len(corpora.train)))] if recipe.blind else corpora.dev
        pairs = [(row[side], row[1 - side]) for row in rows]
        found[direction.name] = expansion_of(translators[direction.name].template, pairs)
    return found


def _expanded(translators: Mapping[str, Translator], expansions: Mapping[str, float]) -> dict[str, Translator]:
    return {name: replace(one, expansion=expansions.get(name, 1.0)) for name, one in translators.items()}


def _segments(translators: Mapping[str, Translator]) -> dict[str, Any]:
    """Return the parts of all prompts, so that a resumed run has the same whatever the day is."""
    real = {name: one.template.segments.to_dict() for name, one in translators.items()}
    others = {
        name: one.templates.noised for name, one in translators.items() if one.templates.noised is not one.template
    }
    return real | {noised_name(name): template.segments.to_dict() for name, template in others.items()}


def _fingerprint(tokenizer: Any) -> str | None:
    return fingerprint(tokenizer) if getattr(tokenizer, "is_fast", False) else None


def _load(
    recipe: Recipe,
    folder: Path,
    corpora: Corpora,
    events: EventLog,
    segments: dict[str, Segments] | None = None,
    starts: Path | None = None,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Translator]:
    """Load the models of a recipe; those from scratch are made first, where they are not there yet."""
    for name, spec in recipe.model.items():
        if spec.from_scratch is not None:
            assert spec.path is not None
            with events.task("loading", f"making a model from scratch for {name}", 0):
                seed = derive_seed(recipe.seed, "scratch", "" if recipe.one_start else name)
                from_scratch.create_model(spec.from_scratch, corpora.all_text(), Path(spec.path), seed)
    names = " and ".join(dict.fromkeys(spec.name for spec in recipe.model.values()))
    with events.task("loading", f"loading {names}", 0):
        return translator.load(recipe, folder, segments, starts, processes)


def _roads(
    recipe: Recipe, translators: Mapping[str, Translator], corpora: Corpora, events: EventLog
) -> dict[str, RowBuilder]:
    """Find the token road of each direction on the dev pairs, and say which it is; nothing where no round needs one."""
    if not recipe.rounds.count:
        return {}
    samples = {d.name: list(zip(*parallel_texts(corpora, recipe, "dev", d), strict=True)) for d in directions(recipe)}
    writers = {name: one.templates.real for name, one in translators.items()}
    learners = {name: one.templates.synthetic for name, one in translators.items()}
    devices = {name: one.base.device for name, one in translators.items()}
    found, verdicts = row_builders.find(recipe, writers, learners, samples, devices, events)
    for name, verdict in verdicts.items():
        row_builders.show(events, name, verdict)
        events.log("verdict", direction=name, **verdict.to_dict())
    return found


def identifier_of(recipe: Recipe) -> LanguageIdentifier | None:
    """Return what tells the languages apart, where the recipe asks for it.

    Raises:
        RecipeError: see `LanguageIdentifier`.
    """
    return LanguageIdentifier(recipe.languages) if recipe.filter.language else None


def _identifier(recipe: Recipe, corpora: Corpora, events: EventLog) -> LanguageIdentifier | None:
    """Return what tells the languages apart, where the recipe asks for it and it does so on the dev text."""
    found = identifier_of(recipe)
    if found is None:
        return None
    for side, language in enumerate(recipe.languages):
        right, number = found.share_right([row[side] for row in corpora.dev], language)
        if number < MIN_LINES or right < MIN_RIGHT:
            events.say(
                f"  filter.language: not used, since it is right on {right:.0%} of {number} dev lines of {language} "
                f"with {MIN_CHARS} characters or more ({MIN_RIGHT:.0%} of {MIN_LINES} are wanted)"
            )
            return None
    return found


def _read(loaded: LoadedRecipe, target: Path, events: EventLog) -> Corpora:
    with events.task("reading", "reading text", 0):
        corpora = prepare(loaded.recipe, loaded.folder, target, lambda text: events.say(f"  {text}"))
    for part, counts in corpora.counts.items():
        dropped = ", ".join(f"{number} {reason}" for reason, number in counts.items() if reason != "kept")
        events.say(f"  {part}: {counts.get('kept', 0)} lines" + (f" (dropped: {dropped})" if dropped else ""))
    events.log("text", lines=corpora.counts)
    return corpora


def check_lines(translators: Mapping[str, Translator], corpora: Corpora, recipe: Recipe, events: EventLog) -> None:
    """Try the dev and test lines on template and model before any time is spent.

    Raises:
        TextError: a line does not fit into the model.
    """
    for direction in directions(recipe):
        one = translators[direction.name]
        template = one.template
        for part in ("dev", "test"):
            sources, _ = parallel_texts(corpora, recipe, part, direction)
            for number, prompt in enumerate(template.prompts(sources), start=1):
                if not one.fits(one.num_needed(prompt, recipe.generate)):
                    raise TextError(
                        f"line {number} has {len(prompt)} tokens, the model {one.base.max_positions} positions",
                        place=f"data.{part} ({direction.source})",
                        cure="take the line out, lower generate.max_length_ratio, or use a model with a longer context",
                    )
        pairs = list(zip(*parallel_texts(corpora, recipe, "dev", direction), strict=True))
        held = sum(template.boundary_holds(pair) for pair in pairs)
        events.log("seams", direction=direction.name, held=held, lines=len(pairs))
        if held < len(pairs):
            events.say(
                f"  warning: on {len(pairs) - held} of {len(pairs)} dev lines of {direction.name} the end of the "
                "prompt merges with the target; a chat template, or a space in front of {target}, has no such seam"
            )


def check(loaded: LoadedRecipe, events: EventLog) -> None:
    """Load text and models of a recipe, show what would run, and keep nothing."""
    recipe = loaded.recipe
    check_metrics(recipe)
    identifier_of(recipe)
    for line in describe(recipe.data):
        events.say(f"  {line}")
    with tempfile.TemporaryDirectory() as scratch:
        corpora = _read(loaded, Path(scratch), events)
        translators = _load(with_model_folders(recipe, Path(scratch) / "base"), loaded.folder, corpora, events)
        translators = _expanded(translators, _expansions(translators, corpora, recipe))
        check_lines(translators, corpora, recipe, events)
        _roads(recipe, translators, corpora, events)
        _show_plan(loaded, corpora, translators, events)


def _show_plan(loaded: LoadedRecipe, corpora: Corpora, translators: Mapping[str, Translator], events: EventLog) -> None:
    recipe = loaded.recipe
    shown = []
    for name, one in translators.items():
        number = sum(parameter.numel() for parameter in one.direction_model.parameters().values())
        events.say(f"{name}: {one.direction_model.adapter.method}, {number:,} parameters learn")
        if one.base.model not in shown:
            shown.append(one.base.model)
            number = sum(parameter.numel() for parameter in one.base.model.parameters())
            events.say(f"  {one.base.location}: {number:,} parameters, {one.base.dtype}, on {one.base.device}")
    for direction in directions(recipe):
        template = translators[direction.name].template
        sources, _ = parallel_texts(corpora, recipe, "dev", direction)
        prompt = template.prompt_text(sources[0])
        events.say(f"{direction.name}: prompt {prompt!r}, end token {template.segments.end_id}")
    num_pairs = len(corpora.train)
    for phase in phases(recipe, num_pairs):
        what = f"{num_pairs} pairs, {phase.passes} passes"
        if phase.stage == TEXT:
            what = f"{recipe.train.pretrain_lines} plain lines of each language"
        if phase.round:
            new = num_synthetic(recipe, phase.round, phase.direction)
            old = num_replayed(recipe, phase.round, phase.direction)
            real = num_parallel(recipe, new + old, num_pairs)
            what = f"{recipe.rounds.monolingual_lines} new lines, {new} synthetic sources"
            what += f", {old} earlier ones" if old else ""
            what += f" and {real} real pairs"
            noised = num_denoising(recipe, new + old + real)
            what += f", and {noised} noised lines" if noised else ""
        events.say(f"{phase.stage}: {phase.direction.name} learns from {what}")
    totals = ", ".join(f"{num_steps(recipe, num_pairs, one)} for {one.name}" for one in directions(recipe))
    events.say(f"optimizer steps: {totals}; nothing was written")
