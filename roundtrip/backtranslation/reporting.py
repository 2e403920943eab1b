"""What a run reports: a few lines per phase, and at the end one JSON document and a table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from roundtrip.backtranslation.checkpoint import State
from roundtrip.backtranslation.context import RunContext
from roundtrip.backtranslation.dev_scoring import translations_path
from roundtrip.backtranslation.early_stopping import ScoresByStage
from roundtrip.backtranslation.examples import KINDS, SYNTHETIC, PhaseExamples
from roundtrip.backtranslation.run_folder import BEST, RunFolder, versions
from roundtrip.evaluation import metrics
from roundtrip.evaluation.tables import comparison_text
from roundtrip.recipe.language_codes import bleu_tokenizer
from roundtrip.recipe.plan import BASE, FINAL, INITIAL, PARALLEL, PRETRAIN, Direction, Phase, directions
from roundtrip.runtime import integrity, memory
from roundtrip.runtime.errors import RunError, TrainingError
from roundtrip.runtime.event_log import EventLog, print_line
from roundtrip.runtime.seeding import derive_seed, permuted_index

BOOTSTRAP_SAMPLES = 1000
NUM_SAMPLES = 3
_LABELS = {
    "copy": "copying the source",
    BASE: "base model, zero-shot",
    INITIAL: "adapters of adapter.init",
    PRETRAIN: "monolingual text",
    PARALLEL: "parallel pairs",
    FINAL: "parallel pairs again",
}
# What the streams of `examples.Streams` read.
_STREAMS = {"train": "parallel pairs", "noised": "denoising lines", "mono": "lines", "text": "pretraining lines"}
_WEAK = "more train.parallel_epochs, since the generating direction is still weak"
_ADVICE = {
    "unfinished": f"{_WEAK}, or a larger generate.max_length_ratio",
    "length_ratio": f"{_WEAK}, or a larger filter.max_length_ratio",
    "repetition": f"{_WEAK}, or generate.temperature = 0.7",
    "wrong_language": f"{_WEAK}; the prompt may not name the languages clearly",
    "low_round_trip": f"{_WEAK}, or a smaller filter.min_round_trip_chrf",
    "target_too_long": "a larger train.max_length, or a smaller data.filter.max_chars",
    "multiple_lines": "a template whose end token the model knows, such as kind = 'chat'",
}


def report_examples(events: EventLog, phase: Phase, made: PhaseExamples) -> None:
    """Report the examples of a phase; a round whose candidates were all rejected ends the run."""
    counts = Counter(example.kind for example in made.examples)
    num_by_kind, restarted = {kind: counts[kind] for kind in KINDS}, list(made.restarted)
    figures = {**num_by_kind, "rejected": dict(made.rejected), "restarted": restarted}
    events.log("examples", stage=phase.stage, direction=phase.direction.name, **figures)
    for stream in restarted:
        kind, language = stream.split(".")[:2]
        events.say(f"  all {_STREAMS[kind]} of {language} were read; the next ones start over, reshuffled")
    if not phase.round:
        return
    num_rejected, by_reason = made.rejected.total(), dict(sorted((+made.rejected).items()))
    if not counts[SYNTHETIC]:
        samples = "".join(f"\n    {sample.source!r} for {sample.target!r}" for sample in made.samples)
        problem = f"all {num_rejected} synthetic sources were rejected: {by_reason}{samples}"
        cure = f"start a new run with {advice(made.rejected)}"
        raise TrainingError(problem, place=f"{phase.stage}, {phase.direction.name}", cure=cure)
    if num_rejected:
        events.say(f"  {num_rejected} of {made.num_candidates} synthetic sources rejected: {by_reason}")
    if 2 * num_rejected > made.num_candidates:
        events.say(f"  more than half of the synthetic sources were rejected: try {advice(made.rejected)}")


def advice(rejected: Counter[str]) -> str:
    """Return what helps against the commonest reason of rejections."""
    if not rejected:
        return _WEAK
    ((reason, _),) = rejected.most_common(1)
    return _ADVICE.get(reason, f"another filter: '{reason}' is none of the built-in reasons")


def collect_metrics(context: RunContext, state: State, test: ScoresByStage) -> dict[str, Any]:
    """Return `metrics.json`; without test pairs its `test`, `comparison` and `samples` are empty."""
    recipe, both = context.recipe, directions(context.recipe)
    tested, stages = both if test else (), [stage for stage in test if stage != "copy"]
    devices = {translator.base.device for translator in context.translators.values()}
    return {
        "languages": list(recipe.languages),
        "dev": state.scores,
        "test": dict(test),
        "best": state.best,
        "comparison": {each.name: _compare(context, stages, state.best[each.name], each) for each in tested},
        "signatures": {each.name: metrics.signatures(bleu_tokenizer(each.target)) for each in both},
        "samples": {each.name: _samples(context, state.best[each.name], each) for each in tested},
        "steps": state.optimizer_steps,
        "nonfinite_steps": state.nonfinite_steps,
        "seconds": {activity: round(value, 1) for activity, value in context.events.seconds.items()},
        "peak_bytes": {str(device): memory.peak_bytes(device) for device in devices},
        "lines": context.corpora.counts,
        "token_rows": state.token_rows,
        "seed": recipe.seed,
        "versions": versions(),
    }


def _compare(context: RunContext, stages: Sequence[str], best: str, direction: Direction) -> dict[str, Any]:
    """Compare the best stage of a direction with the last of the others, on test, by a paired bootstrap."""
    other = [stage for stage in stages if stage != best][-1]
    _, references = context.parallel_texts("test", direction)
    baseline, system = (_translations(context.run, stage, direction) for stage in (other, best))
    tokenize, samples = bleu_tokenizer(direction.target), BOOTSTRAP_SAMPLES
    results = metrics.paired_bootstrap(baseline, system, references, bleu_tokenize=tokenize, samples=samples)
    by_metric = [result.to_dict() for result in results]
    return {"baseline": other, "system": best, "samples": samples, "metrics": by_metric}


def _translations(run: RunFolder, stage: str, direction: Direction) -> list[str]:
    return translations_path(run, "test", stage, direction).read_text(encoding="utf-8").split("\n")[:-1]


def _samples(context: RunContext, stage: str, direction: Direction) -> list[dict[str, str]]:
    sources, references = context.parallel_texts("test", direction)
    base, hypotheses = (_translations(context.run, name, direction) for name in (BASE, stage))
    seed, num_lines = derive_seed(context.recipe.seed, "samples"), len(sources)
    chosen = [permuted_index(i, num_lines, seed, 0) for i in range(min(NUM_SAMPLES, num_lines))]
    columns = {"source": sources, "reference": references, "base": base, "hypothesis": hypotheses}
    return [{name: lines[i] for name, lines in columns.items()} for i in chosen]


def show_if_finished(run: RunFolder, events: EventLog) -> bool:
    """Print the table of a finished run, all files of which are checked; return whether it is one."""
    files = run.manifest().files
    if "metrics.json" not in files or not run.metrics.exists():
        return False
    if problem := integrity.first_damaged(files, run.path):
        cure = "restore it from a copy; without metrics.json, --resume makes weights and test scores again"
        raise RunError(f"is damaged: {problem}", place=str(run.path), cure=cure)
    events.say("this run is complete")
    show_metrics(run.results(), run, events.console)
    return True


def show_metrics(results: Mapping[str, Any], run: RunFolder, console: Console) -> None:
    """Print the table of scores, the comparison and the samples."""
    names = list(results["signatures"])
    blind = any("copied" in values for scores in results["dev"].values() for values in scores.values())
    _show_table(results, names, console, "round trip" if blind else "dev")
    if blind:
        shares = ", ".join(f"{results['dev'][results['best'][name]][name]['copied']:.0%} of {name}" for name in names)
        print_line(console, f"Chosen without dev pairs, by round trips of monolingual lines; copies: {shares}", "bold")
    for stage, scores in results["test"].items():
        cut = {name: scores[name].get("unfinished", 0) for name in names}
        if any(cut.values()):
            counts = ", ".join(f"{count:.0f} of {name}" for name, count in cut.items())
            print_line(console, f"{_LABELS.get(stage, stage)}: translations cut at their length limit: {counts}", "dim")
    for name, comparison in results["comparison"].items():
        stages = f"{name}, {comparison['system']} (best on dev) against {comparison['baseline']}"
        print_line(console, f"{stages}, paired bootstrap, {comparison['samples']} samples:")
        for result in comparison["metrics"]:
            print_line(console, f"  {comparison_text(result)}")
    for name, signature in results["signatures"].items():
        print_line(console, f"{name}: {signature['chrf']}; {signature['bleu']}", "dim")
    for name, samples in results["samples"].items():
        for sample in samples:
            print_line(console, f"\n{name}  {sample['source']}\n  reference   {sample['reference']}")
            print_line(console, f"  base        {sample['base']}", "dim")
            print_line(console, f"  translation {sample['hypothesis']}", "bold")
    for name, count in results["nonfinite_steps"].items():
        problem = f"{count} of {results['steps'][name]} steps had a non-finite loss or gradient"
        print_line(console, f"{name}: {problem}: see {run.nonfinite_steps}", "bold")
    for name, counts in results["token_rows"].items():
        shown = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        print_line(console, f"{name}: token rows of its synthetic examples: {shown}", "dim")
    seconds, target = results["seconds"], results["languages"][1]
    spent = ", ".join(f"{activity} {value:.0f} s" for activity, value in seconds.items())
    print_line(console, f"\nTime: {spent}; {sum(seconds.values()):.0f} s in all. One seed ({results['seed']}).")
    print_line(console, f"Adapters: {run.adapters / BEST}")
    print_line(console, f"Translate: python -m roundtrip translate {run.path} --to {target} < in.txt > out.txt")


def _show_table(results: Mapping[str, Any], names: Sequence[str], console: Console, dev_title: str) -> None:
    """Print the scores of each stage; a star marks the best stage of each direction."""
    test, best = results["test"], results["best"]
    title = "Test scores: chrF++ / BLEU (higher is better)" if test else "No data.test, no test scores: chrF++ only"
    table = Table(title=title, title_justify="left", caption="* kept as best", caption_justify="left")
    table.add_column("after")
    for column in (*(names if test else ()), *(f"{dev_title} {name}" for name in names)):
        table.add_column(column, justify="right")
    for stage, dev in results["dev"].items():
        scored = [(name, test[stage][name]) for name in names if test]
        cells = [(name, f"{scores['chrf']:.1f} / {scores['bleu']:.1f}") for name, scores in scored]
        cells += [(name, f"{dev[name]['chrf']:.1f}") for name in names]
        marked = [f"[bold]*{text}[/]" if stage == best[name] else text for name, text in cells]
        table.add_row(_LABELS.get(stage, stage), *marked)
    console.print(table)
