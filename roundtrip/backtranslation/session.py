"""Running a recipe: from a valid recipe to a finished run folder."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from roundtrip.backtranslation.context import RunContext
from roundtrip.backtranslation.examples import oriented_pairs
from roundtrip.backtranslation.filtering import Candidate, RejectionRule
from roundtrip.backtranslation.loop import back_translate
from roundtrip.backtranslation.reporting import show_if_finished
from roundtrip.backtranslation.run_folder import RunFolder, RunManifest, create, reopen, run_lock
from roundtrip.backtranslation.token_rows import NUM_SAMPLES, make_row_builders
from roundtrip.backtranslation.trainer import Trainer
from roundtrip.data import corpora as data_corpora
from roundtrip.data.corpora import Corpora, describe_counts
from roundtrip.data.language_id import MIN_CHARS, MIN_LINES, MIN_RIGHT, LanguageIdentifier
from roundtrip.engine import translator
from roundtrip.engine.model_checks import check_models
from roundtrip.engine.translator import Translator, expansion_of
from roundtrip.models import from_scratch
from roundtrip.models.base_model import choose_device, device_name
from roundtrip.models.direction_model import frozen_hashes
from roundtrip.models.optimizer import BETAS, EPS, MAX_GRAD_NORM, MIN_LR_FACTOR
from roundtrip.recipe import loader
from roundtrip.recipe.plan import directions
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime import atomic_io, integrity
from roundtrip.runtime.disk_space import report_system_errors
from roundtrip.runtime.distributed import ProcessGroup, join_processes
from roundtrip.runtime.errors import TextError, TrainingError
from roundtrip.runtime.event_log import EventLog
from roundtrip.runtime.interrupts import StopRequest, catch_signals
from roundtrip.runtime.seeding import derive_seed
from roundtrip.tokens.splice.vocabulary import fingerprint


@report_system_errors()
def train(
    recipe: loader.LoadedRecipe | str | Path,
    run_dir: Path | str,
    *,
    resume: bool = False,
    filters: Sequence[RejectionRule] = (),
    events: EventLog | None = None,
    on_evaluation: Callable[[RunFolder], object] | None = None,
) -> RunFolder:
    """Train both directions of a recipe into a run folder.

    Under `torchrun` every process calls this, and they share the work.

    Args:
        recipe: from `load_recipe`, or what it takes.
        run_dir: folder of the run, new unless `resume`.
        resume: continue an interrupted run; it finishes with identical results.
        filters: further filters of synthetic sources, asked after those of the recipe: each takes a `Candidate` and
            returns a reason to reject it, or None. Give the same ones when you resume.
        events: where progress is shown; silent where None.
        on_evaluation: called in the first process after each evaluation, such as `write_report`.

    Returns:
        The run folder: `run.metrics` has all figures, `run.adapters` the weights of each stage.

    Raises:
        RoundtripError: see its kinds; `Interrupted` after a signal, with everything saved.

    Example:
        >>> run = train(recipe, out_dir / "run")  # from `load_recipe`, or its path
        >>> import json
        >>> sorted(json.loads(run.metrics.read_text())["test"])
        ['base', 'copy', 'parallel', 'round-1']
    """
    loaded = recipe if isinstance(recipe, loader.LoadedRecipe) else loader.load_recipe(str(recipe))
    loader.forbid_unused_hub(loaded.recipe, loaded.folder)
    run, events = RunFolder(Path(run_dir)), events or EventLog(Console(quiet=True))
    on_cpu = all(choose_device(model.device).type == "cpu" for model in loaded.recipe.model.values())
    with join_processes(on_cpu) as processes, run_lock(run.path, resume=resume) if processes.is_main else nullcontext():
        if processes.is_main:
            make = reopen if resume else create
            make(run.path, loaded)
            atomic_io.remove_leftovers(run.path, *run.folders, run.nonfinite_steps)
        events.path = run.events if processes.is_main else None
        if processes.broadcast(processes.is_main and resume and show_if_finished(run, events)):
            return run
        with catch_signals(events.say) as stop:
            context = _load_context(run, loaded, events, stop, processes, filters)
            _run(replace(context, on_evaluation=on_evaluation), resume)
    return run


def _run(context: RunContext, resume: bool) -> None:
    trainer, events = Trainer(context), context.events
    with closing(trainer.synthesizer.prefetcher):
        if resume:
            trainer.resume()
        used = dict.fromkeys(each.base.device for each in context.translators.values())
        devices = {str(device): device_name(device) for device in used}
        numbers = {"threads": torch.get_num_threads(), "processes": context.processes.world_size}
        events.log("start", phase=trainer.state.phase, step=trainer.state.step, devices=devices, **numbers)
        constants = {"betas": BETAS, "eps": EPS, "min_lr_factor": MIN_LR_FACTOR, "max_grad_norm": MAX_GRAD_NORM}
        planned = {name: optimizer.num_steps for name, optimizer in trainer.optimizers.items()}
        events.log("optimizer", name="AdamW", **constants, planned_steps=planned)
        models = {name: each.direction_model for name, each in context.translators.items()}
        before = frozen_hashes(models)
        back_translate(trainer)
        if frozen_hashes(models) != before:
            raise TrainingError("the frozen base changed during the run", cure="please report this with the recipe")


def _load_context(
    run: RunFolder,
    loaded: loader.LoadedRecipe,
    events: EventLog,
    stop: StopRequest,
    processes: ProcessGroup,
    filters: Sequence[RejectionRule],
) -> RunContext:
    """Load text and models; what was fixed when the run was started is read back from its manifest."""
    manifest = run.manifest()
    recipe, is_main = run.recipe(manifest), processes.is_main
    if not manifest.is_loaded:
        with processes.main_process_first():
            check_inputs(recipe, loaded.folder, with_text=is_main)
    elif is_main:
        run.check_files(run.data, run.base, cure="restore that file, or start a new run")
        for part in (run.recipe_file, run.translations):
            if problem := run.first_damaged(part):
                events.say(f"  warning: {problem}; the run does not read it again")
    lines = manifest.lines or processes.broadcast(read_text(loaded, run.data, events).counts if is_main else {})
    corpora = data_corpora.reopen(recipe, run.data, lines)
    recipe = corpora.with_dev(recipe)
    stop.raise_if_requested()
    with processes.main_process_first():
        translators = load_models(recipe, loaded.folder, corpora, events, run)
    stop.raise_if_requested()
    manifest.check_loaded("base model", {name: each.base.digest for name, each in translators.items()})
    tokenizers = {name: each.base.tokenizer for name, each in translators.items()}
    hashes = {name: fingerprint(each) if getattr(each, "is_fast", False) else None for name, each in tokenizers.items()}
    manifest.check_loaded("tokenizer", hashes)
    for name, each in translators.items():
        translators[name] = replace(each, processes=processes, expansion=manifest.expansions.get(name, each.expansion))
    check_lines(translators, corpora, recipe, events)
    if is_main and not manifest.is_loaded:
        manifest = replace(manifest, lines=corpora.counts, tokenizer_hashes=hashes)
        run.write_manifest(_completed(manifest, run, translators))
    rules = {name: [*of_language, *filters] for name, of_language in _language_filters(recipe, corpora, events).items()}
    builders = make_row_builders(recipe, translators, corpora.dev, events)[0] if recipe.rounds.count else {}
    stop.raise_if_requested()
    command = ["python", "-m", "roundtrip", "train", str(loaded.path), "--out", str(run.path)]
    command += [part for override in loaded.overrides for part in ("--set", override)]
    resume_command = shlex.join([*command, "--resume"])
    return RunContext(run, recipe, corpora, translators, events, stop, builders, rules, processes, resume_command)


def _completed(manifest: RunManifest, run: RunFolder, translators: Mapping[str, Translator]) -> RunManifest:
    """Return the manifest with what is fixed from here on."""
    files: dict[str, str] = {}
    for part in (run.data, run.base, run.recipe_file):
        atomic_io.fsync_tree(part)
        files |= integrity.file_hashes(part, run.path)
    # The parts of all prompts, so that a resumed run has the same whatever the date is.
    segments = {name: each.template.segments for name, each in translators.items()}
    for name, each in translators.items():
        if each.denoising_template is not each.template:
            segments[translator.denoising_name(name)] = each.denoising_template.segments
    return replace(
        manifest,
        files=files,
        dtypes={name: str(each.base.dtype).removeprefix("torch.") for name, each in translators.items()},
        base_hashes={name: each.base.digest for name, each in translators.items()},
        base_locations={name: each.base.location for name, each in translators.items()},
        base_commits={name: each.base.commit for name, each in translators.items() if each.base.commit},
        segments=segments,
        expansions={name: each.expansion for name, each in translators.items()},
    )


def check_inputs(recipe: Recipe, folder: Path, *, with_text: bool = True) -> None:
    """Refuse sources and models that cannot be used, as far as that shows before text and weights are read."""
    if with_text:
        data_corpora.check_sources(recipe, folder)
    if recipe.filter.language:
        LanguageIdentifier(recipe.languages)  # which an optional package provides
    check_models(recipe, folder)


def read_text(loaded: loader.LoadedRecipe, target: Path, events: EventLog) -> Corpora:
    """Read, clean and separate the text of a recipe into a folder, and report what was dropped."""
    with events.task("reading", "reading text", 0):
        corpora = data_corpora.prepare(loaded.recipe, loaded.folder, target, lambda line: events.say(f"  {line}"))
    for part, counts in corpora.counts.items():
        events.say(f"  {part}: {describe_counts(counts)}")
    if not len(corpora.test):
        events.say("  there is no data.test, so that there will be no test scores")
    rounds = loaded.recipe.rounds
    for language, lines in corpora.mono.items():
        if rounds.count and (num_again := rounds.monolingual_lines - len(lines)) > 0:
            numbers = f"a round takes {rounds.monolingual_lines} lines of {language} and there are {len(lines)}"
            cure = f"rounds.monolingual_lines = {len(lines)} takes each once"
            events.say(f"  warning: {numbers}, so that at least {num_again} are taken again within it; {cure}")
    events.log("text", lines=corpora.counts)
    return corpora


def load_models(
    recipe: Recipe, folder: Path, corpora: Corpora, events: EventLog, run: RunFolder | None = None
) -> dict[str, Translator]:
    """Load the models of a recipe, or of a run as it began; those from scratch are created where they are missing."""
    for name, spec in recipe.model.items():
        if spec.from_scratch is not None:
            assert spec.path is not None
            with events.task("loading", f"creating a model from scratch for {name}", 0):
                seed = derive_seed(recipe.seed, "scratch", "" if recipe.shared_start else name)
                text_lines, max_length = corpora.all_text(), recipe.train.max_length
                from_scratch.create_model(spec.from_scratch, text_lines, Path(spec.path), seed, max_length)
    names = " and ".join(dict.fromkeys(spec.name for spec in recipe.model.values()))
    with events.task("loading", f"loading {names}", 0):
        segments = run.manifest().segments if run else {}
        translators = translator.load(recipe, folder, segments, run.base if run else None)
    for name, each in translators.items():
        notes = each.notes(recipe.generate)
        for note in notes:
            events.say(f"  {name}: {note}")
        dtype = str(each.base.dtype).removeprefix("torch.")
        events.log("model", direction=name, dtype=dtype, attention=each.base.attention, notes=notes)
    # Length limits grow with the target tokens per source token of real pairs.
    rows = corpora.train[:NUM_SAMPLES] if recipe.without_dev else corpora.dev
    pairs = {name: oriented_pairs(rows, each.direction, recipe) for name, each in translators.items()}
    expansions = {name: expansion_of(each.template, pairs[name]) for name, each in translators.items()}
    return {name: replace(each, expansion=expansions[name]) for name, each in translators.items()}


def check_lines(translators: Mapping[str, Translator], corpora: Corpora, recipe: Recipe, events: EventLog) -> None:
    """Try the dev and test lines on template and model before any time is spent; refuse one that does not fit."""
    for name, each in translators.items():
        pairs = oriented_pairs(corpora.dev, each.direction, recipe)
        for part, rows in (("dev", pairs), ("test", oriented_pairs(corpora.test, each.direction, recipe))):
            for number, prompt in enumerate(each.template.prompts([source for source, _ in rows]), start=1):
                if not each.fits(each.num_needed(prompt, recipe.generate)):
                    problem = f"line {number} has {len(prompt)} tokens, the model {each.base.max_positions} positions"
                    cure = "remove the line, lower generate.max_length_ratio, or use a model with a longer context"
                    raise TextError(problem, place=f"data.{part} ({each.direction.source})", cure=cure)
        held = sum(each.template.boundary_holds(pair) for pair in pairs)
        events.log("boundaries", direction=name, held=held, lines=len(pairs))
        if merged := len(pairs) - held:
            cure = "a chat template, or a space in front of {target}, avoids this"
            problem = f"on {merged} of {len(pairs)} dev lines of {name} the prompt's end merges with the target"
            events.say(f"  warning: {problem} into one token; {cure}")


def _language_filters(recipe: Recipe, corpora: Corpora, events: EventLog) -> dict[str, list[RejectionRule]]:
    """Return filters of sources in the language of their target, where identification works on the dev text."""
    none: dict[str, list[RejectionRule]] = {direction.name: [] for direction in directions(recipe)}
    if not recipe.filter.language:
        return none
    identifier = LanguageIdentifier(recipe.languages)
    for side, language in enumerate(recipe.languages):
        share, num_lines = identifier.share_right([row[side] for row in corpora.dev], language)
        if num_lines < MIN_LINES or share < MIN_RIGHT:
            figures = f"{share:.0%} of {num_lines} dev lines of {language} with at least {MIN_CHARS} characters"
            required = f"{MIN_RIGHT:.0%} of at least {MIN_LINES} are required"
            events.say(f"  filter.language: not used, since it is right on {figures} ({required})")
            return none

    def wrong_language(source: str, candidate: Candidate) -> str | None:
        return "wrong_language" if identifier.is_other(candidate.source, source) else None

    return {direction.name: [partial(wrong_language, direction.source)] for direction in directions(recipe)}
