"""Dry run: load everything, try one real batch of each kind, and report what a run would do, take and need.

Memory is what the process really used for training batches, the longest first, and for generating some lines; time is
that of a few real batches, times their number in the plan.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roundtrip.backtranslation import session
from roundtrip.backtranslation.dev_scoring import greedy_settings
from roundtrip.backtranslation.examples import oriented_pairs
from roundtrip.backtranslation.run_folder import with_model_folders
from roundtrip.backtranslation.token_rows import NUM_SAMPLES, fitting_rows, make_row_builders
from roundtrip.backtranslation.trainer import step_settings
from roundtrip.data.corpora import Corpora
from roundtrip.data.text_report import TextReport, text_report
from roundtrip.engine.generate import generate
from roundtrip.engine.request import GenerationRequest, StopRule
from roundtrip.engine.train_step import train_step
from roundtrip.engine.translator import Translator
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe.loader import LoadedRecipe
from roundtrip.recipe.plan import (
    BASE,
    INITIAL,
    PARALLEL,
    PRETRAIN,
    Phase,
    num_phase_rows,
    num_phase_steps,
    num_steps,
    phases,
)
from roundtrip.recipe.sampling_schedule import sampling_settings
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime import memory
from roundtrip.runtime.errors import quantity
from roundtrip.runtime.event_log import EventLog
from roundtrip.tokens.batching import TokenDataset, step_batches
from roundtrip.tokens.compatibility import CompatibilityReport

# Lines that generation is timed on, and batches that training is timed on: after so many the heap has its usual size.
NUM_LINES, NUM_BATCHES = 64, 12


@dataclass(frozen=True)
class Rates:
    """What one direction takes, in seconds, and the mean length of its training rows."""

    train_token: float
    generate_line: float  # of usual length
    score_base_line: float  # translated by the untrained base, which may not know when to stop
    tokens_per_row: float


def dry_run(loaded: LoadedRecipe, events: EventLog) -> dict[str, Any]:
    """Load text and models of a recipe, try one batch of everything, report, and keep nothing.

    Returns:
        `text` (see `TextReport`), `compatibility` by direction, `plan` (a line per phase), optimizer `steps` by
        direction, expected `seconds` by activity and stage, `total_seconds`, and `peak_bytes` by device, what the
        process has used.
    """
    recipe = loaded.recipe
    session.check_inputs(recipe, loaded.folder)
    for key, source, _ in recipe.sources():
        events.say(f"  {key}: {source.path}")
    with tempfile.TemporaryDirectory() as folder:
        corpora = session.read_text(loaded, Path(folder), events)
        recipe = corpora.with_dev(recipe)
        in_folder = with_model_folders(recipe, Path(folder) / "base")
        translators = session.load_models(in_folder, loaded.folder, corpora, events)
        described = _text_report(recipe, corpora, translators)
        for line in described.lines():
            events.say(line)
        session.check_lines(translators, corpora, recipe, events)
        reports: dict[str, CompatibilityReport] = {}
        if recipe.rounds.count:  # without rounds nothing is spliced, whatever the mode
            _, reports = make_row_builders(recipe, translators, corpora.dev, events)
        for example in (example for compatibility in reports.values() for example in compatibility.examples):
            # A line that takes the text path, token by token.
            events.say(f"    {example.text!r}: {example.reason}")
            events.say(f"      generated  {' '.join(example.generated)}")
            events.say(f"      expected   {' '.join(example.expected)}")
        rates = {name: _measure(recipe, each, corpora, events) for name, each in translators.items()}
        num_pairs, devices = len(corpora.train), {each.base.device for each in translators.values()}
        before = sum(value for activity, value in events.seconds.items() if activity != "probing")
        seconds = expected_seconds(recipe, corpora, rates) | {"loading": {"all": round(before, 1)}}
        report = {
            "text": described.to_dict(),
            "compatibility": {name: compatibility.to_dict() for name, compatibility in reports.items()},
            "plan": [_describe(recipe, phase, num_pairs) for phase in phases(recipe, num_pairs)],
            "steps": {each: _num_steps(recipe, each, num_pairs) for each in translators},
            "seconds": seconds,
            "total_seconds": round(sum(sum(stages.values()) for stages in seconds.values()), 1),
            "peak_bytes": {str(device): memory.peak_bytes(device) for device in devices},
        }
    for name, translator in translators.items():
        base, method = translator.base, recipe.adapter[name].method
        trainable = sum(parameter.numel() for parameter in translator.direction_model.parameters().values())
        total = sum(parameter.numel() for parameter in base.model.parameters())
        events.say(f"{name}: {method}, {trainable:,} of {total:,} parameters train, {base.dtype} on {base.device}")
        text, _ = oriented_pairs(corpora.dev[:1], translator.direction, recipe)[0]
        prompt, end_id = translator.template.prompt_text(text), translator.template.segments.end_id
        events.say(f"  prompt {prompt!r}, end token {end_id}")
    _show(report, events)
    return report


def _text_report(recipe: Recipe, corpora: Corpora, translators: Mapping[str, Translator]) -> TextReport:
    def counter(translator: Translator) -> Callable[[Sequence[str]], int]:
        tokenizer = translator.base.tokenizer
        return lambda lines: sum(map(len, tokenizer(list(lines), add_special_tokens=False)["input_ids"]))

    # A language is counted as what is generated: by the model that translates into it.
    counters = {each.direction.target: counter(each) for each in translators.values()}
    return text_report(corpora, recipe.languages, counters)


def _measure(recipe: Recipe, translator: Translator, corpora: Corpora, events: EventLog) -> Rates:
    """Take real train steps, the first on the longest batch, and generate a batch of lines."""
    pairs = oriented_pairs(corpora.dev, translator.direction, recipe)
    pairs_to_train = oriented_pairs(corpora.train[:NUM_SAMPLES], translator.direction, recipe) or pairs
    with events.task("probing", f"one batch of everything, {translator.direction.name}", 0):
        train_token, tokens_per_row = _time_training(recipe, translator, pairs_to_train)
        generate_line = _time_generation(recipe, translator, pairs[:NUM_LINES], trained=True)
        score_base_line = _time_generation(recipe, translator, pairs[:NUM_LINES], trained=False)
    return Rates(train_token, generate_line, score_base_line, tokens_per_row)


def _time_training(recipe: Recipe, translator: Translator, pairs: Sequence[tuple[str, str]]) -> tuple[float, float]:
    """Return seconds per token of train steps, and tokens per row."""
    train, model = recipe.train, translator.direction_model
    all_rows = TokenDataset.of(translator.template.rows(pairs), translator.base.device)
    fitting, _ = fitting_rows(all_rows, translator, train.max_length, place=PARALLEL)
    dataset = all_rows.select(fitting)
    sizes = dataset.sizes
    batches = sorted(step_batches(sizes, train.batch_size, 1), key=lambda batch: sum(sizes[i] for i in batch))
    optimizer = Optimizer(model.parameters(), train, 100, recipe.adapter[translator.direction.name])
    chosen = [batches[(2 * i + 1) * len(batches) // (2 * NUM_BATCHES)] for i in range(NUM_BATCHES)]
    num_tokens = sum(sizes[i] for batch in chosen for i in batch)
    with model.training() as packed:
        settings = step_settings(translator, train, [pairs[i][1] for i in fitting], packed=packed)
        train_step(model.model, optimizer, dataset, batches[-1], settings, seed=1)
        start = time.perf_counter()
        for batch in chosen:
            train_step(model.model, optimizer, dataset, batch, settings, seed=1)
        seconds = time.perf_counter() - start
    return seconds / num_tokens, sum(sizes) / len(sizes)


def _time_generation(recipe: Recipe, translator: Translator, pairs: Sequence[tuple[str, str]], trained: bool) -> float:
    """Return seconds per generated line: of its reference's length, as by a trained model, or as the base stops."""
    settings, template = greedy_settings(recipe), translator.template
    prompts = template.prompts([source for source, _ in pairs])
    if trained:
        limits = [len(row.ids) - row.start for row in template.rows(pairs)]
        stop = StopRule((), pad_id=translator.base.pad_id)
    else:
        limits = [translator.num_needed(prompt, settings) - len(prompt) for prompt in prompts]
        stop = StopRule(template.segments.stop_ids, template.segments.break_ids, translator.base.pad_id)
    request = GenerationRequest(prompts, limits, settings, stop, seed=1)
    with translator.direction_model.generating(use_adapter=trained) as model:
        start = time.perf_counter()
        generate(model, request)
        return (time.perf_counter() - start) / len(pairs)


def expected_seconds(recipe: Recipe, corpora: Corpora, rates: Mapping[str, Rates]) -> dict[str, dict[str, float]]:
    """Return the expected seconds of training, generating and scoring, by stage.

    What is left out takes little: likelihoods that select among candidates, and the dev loss under `train.patience`.
    """
    num_pairs, plan = len(corpora.train), phases(recipe, len(corpora.train))
    seconds = {activity: defaultdict[str, float](float) for activity in ("training", "generating", "scoring")}
    for phase in plan:
        rate, reverse = rates[phase.direction.name], rates[phase.direction.reverse.name]
        rows = num_phase_rows(recipe, phase, num_pairs)
        seconds["training"][phase.stage] += phase.epochs * rows * rate.tokens_per_row * rate.train_token
        if phase.round:
            lines, candidates = recipe.rounds.monolingual_lines, sampling_settings(recipe.generate, None).num_candidates
            seconds["generating"][phase.stage] += lines * candidates * reverse.generate_line
            if recipe.filter.min_round_trip_chrf:
                seconds["generating"][phase.stage] += lines * rate.generate_line
    # Without dev pairs each direction also translates what the other one has made of its dev lines.
    lines = len(corpora.dev) * (2 if recipe.without_dev else 1) + len(corpora.test) * recipe.evaluation.num_beams
    first = [BASE, INITIAL] if recipe.begins_with_adapters else [BASE]
    for stage in [*first, *dict.fromkeys(phase.stage for phase in plan)]:
        for rate in rates.values():
            seconds["scoring"][stage] += lines * (rate.score_base_line if stage == BASE else rate.generate_line)
    return {activity: {stage: round(value, 1) for stage, value in of.items()} for activity, of in seconds.items()}


def _num_steps(recipe: Recipe, name: str, num_pairs: int) -> int:
    """Return the optimizer steps of a direction, with those of the control."""
    control = [each for each in phases(recipe, num_pairs) if each.control_for and each.direction.name == name]
    return num_steps(recipe, num_pairs) + sum(num_phase_steps(recipe, phase, num_pairs) for phase in control)


def _describe(recipe: Recipe, phase: Phase, num_pairs: int) -> str:
    """Return what a phase trains on, in words."""
    rows = num_phase_rows(recipe, phase, num_pairs)
    what = f"{quantity(rows, 'parallel pair')}, {quantity(phase.epochs, 'epoch')}"
    if phase.control_for is not None:
        what = f"parallel pairs, {quantity(num_phase_steps(recipe, phase, num_pairs), 'step')}"
        what += f" or as many as {phase.control_for.stage} takes"
    elif phase.stage == PRETRAIN:
        what = quantity(rows, "monolingual line")
    elif phase.round:
        lines = recipe.rounds.monolingual_lines
        what = f"{rows} examples, with synthetic sources for {lines} new lines among them"
    return f"{phase.stage}: {phase.direction.name} trains on {what}"


def _show(report: dict[str, Any], events: EventLog) -> None:
    for line in report["plan"]:
        events.say(line)
    events.say("optimizer steps: " + ", ".join(f"{steps} for {name}" for name, steps in report["steps"].items()))
    for activity, stages in report["seconds"].items():
        shown = ", ".join(f"{stage} {value:.0f} s" for stage, value in stages.items())
        events.say(f"expected time, {activity}: {sum(stages.values()):.0f} s ({shown})")
    events.say(f"expected time, all: {report['total_seconds']:.0f} s, if no candidate is rejected")
    for device, size in report["peak_bytes"].items():
        events.say(f"peak memory on {device}: {size / 2**30:.2f} GiB; nothing was written")
    needs = " and ".join(f"{size / 2**30:.1f} GiB of memory on {name}" for name, size in report["peak_bytes"].items())
    events.say(f"A run takes about {_duration(report['total_seconds'])} on this machine as it is now, and {needs}.")


def _duration(seconds: float) -> str:
    """Return a time in words, as precise as an estimate is."""
    if seconds < 90:
        return quantity(max(1, round(seconds)), "second")
    if seconds < 90 * 60:
        return quantity(round(seconds / 60), "minute")
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
