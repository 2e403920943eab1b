"""What a run reports: a few lines per phase, and at the end one JSON document and a table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from roundtrip.backtranslation.checkpoint import State
from roundtrip.backtranslation.context import RunContext
from roundtrip.backtranslation.early_stopping import ScoresByStage
from roundtrip.backtranslation.examples import KINDS, SYNTHETIC, Example, PhaseExamples
from roundtrip.backtranslation.labels import advice, control_title, stage_label
from roundtrip.backtranslation.run_folder import BEST, RunFolder, versions
from roundtrip.evaluation import metrics
from roundtrip.evaluation.tables import comparison_text
from roundtrip.recipe.language_codes import bleu_tokenizer
from roundtrip.recipe.plan import BASE, Direction, Phase, directions, is_control, start_stage
from roundtrip.runtime import integrity, memory
from roundtrip.runtime.errors import RunError, TrainingError, quantity
from roundtrip.runtime.event_log import EventLog, print_line
from roundtrip.runtime.seeding import derive_seed, permuted_index

BOOTSTRAP_SAMPLES = 1000
NUM_SAMPLES = 3
# What the streams of `examples.Streams` read.
_STREAMS = {"train": "parallel pairs", "noised": "denoising lines", "mono": "lines", "text": "pretraining lines"}


def report_examples(events: EventLog, phase: Phase, made: PhaseExamples) -> None:
    """Report the examples of a phase; a round whose candidates were all rejected ends the run."""
    counts = Counter(example.kind for example in made.examples)
    num_by_kind, restarted = {kind: counts[kind] for kind in KINDS}, list(made.restarted)
    figures: dict[str, object] = {**num_by_kind, "rejected": dict(made.rejected), "restarted": restarted}
    if phase.round:
        figures |= {"candidates": made.num_candidates, "chars": _num_chars(made.examples)}
    events.log("examples", stage=phase.stage, direction=phase.direction.name, **figures)
    for stream in restarted:
        kind, language = stream.split(".")[:2]
        events.say(f"  all {_STREAMS[kind]} of {language} were read; the next ones start over, reshuffled")
    if not phase.round:
        return
    num_rejected, by_reason = made.rejected.total(), _listed(made.rejected)
    if not counts[SYNTHETIC]:
        samples = "".join(f"\n    {sample.source!r} for {sample.target!r}" for sample in made.samples)
        problem = f"all {num_rejected} synthetic sources were rejected: {by_reason}{samples}"
        cure = f"start a new run with {advice(made.rejected)}"
        raise TrainingError(problem, place=f"{phase.stage}, {phase.direction.name}", cure=cure)
    if num_rejected:
        events.say(f"  {num_rejected} of {made.num_candidates} synthetic sources rejected: {by_reason}")
    if 2 * num_rejected > made.num_candidates:
        events.say(f"  more than half of the synthetic sources were rejected: try {advice(made.rejected)}")


def _num_chars(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Return the characters of synthetic sources and of their targets: the first decile, the median, the last one."""
    made = [example for example in examples if example.kind == SYNTHETIC]
    columns = {"source": sorted(len(each.source) for each in made), "target": sorted(len(each.target) for each in made)}
    return {name: [sizes[len(sizes) * tenth // 10] for tenth in (1, 5, 9)] for name, sizes in columns.items() if sizes}


def _listed(counts: Counter[str]) -> str:
    """Return counts in words, the largest first, without those of nothing."""
    return ", ".join(
        f"{number} {name}" for name, number in sorted((+counts).items(), key=lambda item: (-item[1], item[0]))
    )


def collect_metrics(
    context: RunContext, state: State, test: ScoresByStage, compared: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
    """Return `metrics.json`; without test pairs its `test`, `comparison` and `samples` are empty.

    `compared` has by direction the best stages of the control and of the rounds, nothing where there is no control.
    """
    recipe, both = context.recipe, directions(context.recipe)
    tested, part = (both, "test") if test else ((), "dev")
    best = state.best | {name: of_rounds for name, (_, of_rounds) in compared.items()}
    own = [stage for stage in test if stage != "copy" and not is_control(stage)]
    other = {name: [stage for stage in own if stage != best[name]][-1] for name in best if own}
    start = start_stage(list(state.scores))
    devices = {translator.base.device for translator in context.translators.values()}
    comparison = {each.name: _compare(context, "test", (other[each.name], best[each.name]), each) for each in tested}
    gain = {
        each.name: comparison[each.name]
        if other[each.name] == start
        else _compare(context, "test", (start, best[each.name]), each)
        for each in tested
        if best[each.name] != start
    }
    return {
        "languages": list(recipe.languages),
        "dev": state.scores,
        "test": dict(test),
        "best": state.best,
        "comparison": comparison,
        "gain": gain,
        "control": {
            each.name: _compare(context, part, compared[each.name], each) | {"part": part} for each in both if compared
        },
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


def _compare(context: RunContext, part: str, stages: tuple[str, str], direction: Direction) -> dict[str, Any]:
    """Compare the second of two stages of a direction with the first, on dev or test, by a paired bootstrap."""
    _, references = context.parallel_texts(part, direction)
    baseline, system = (_translations(context.run, part, stage, direction) for stage in stages)
    tokenize, samples = bleu_tokenizer(direction.target), BOOTSTRAP_SAMPLES
    results = metrics.paired_bootstrap(baseline, system, references, bleu_tokenize=tokenize, samples=samples)
    by_metric = [result.to_dict() for result in results]
    return {"baseline": stages[0], "system": stages[1], "samples": samples, "metrics": by_metric}


def _translations(run: RunFolder, part: str, stage: str, direction: Direction) -> list[str]:
    return run.translation_file(part, stage, direction.name).read_text(encoding="utf-8").split("\n")[:-1]


def _samples(context: RunContext, stage: str, direction: Direction) -> list[dict[str, str]]:
    sources, references = context.parallel_texts("test", direction)
    base, hypotheses = (_translations(context.run, "test", name, direction) for name in (BASE, stage))
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
            print_line(console, f"{stage_label(stage)}: translations cut at their length limit: {counts}", "dim")
    for name, comparison in results["comparison"].items():
        of_what = " of the rounds" if results.get("control") else ""
        title = f"{name}, {comparison['system']} (best{of_what} on dev) against {comparison['baseline']}"
        _show_comparison(title, comparison, console)
    for name, comparison in results.get("control", {}).items():
        _show_comparison(f"{name}, {control_title(comparison)}", comparison, console)
        if verdict := _control_verdict(comparison, results["best"][name]):
            print_line(console, f"{name}: {verdict}", "bold")
    for name, signature in results["signatures"].items():
        print_line(console, f"{name}: {signature['chrf']}; {signature['bleu']}", "dim")
    for name, samples in results["samples"].items():
        for sample in samples:
            print_line(console, f"\n{name}  {sample['source']}\n  reference   {sample['reference']}")
            print_line(console, f"  base        {sample['base']}", "dim")
            print_line(console, f"  translation {sample['hypothesis']}", "bold")
    for name, count in results["nonfinite_steps"].items():
        problem = f"{quantity(count, 'step')} had a non-finite loss or gradient"
        print_line(console, f"{name}: {problem}: see {run.nonfinite_steps}", "bold")
    for name, counts in results["token_rows"].items():
        shown = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        print_line(console, f"{name}: token rows of its synthetic examples: {shown}", "dim")
    seconds, target = results["seconds"], results["languages"][1]
    spent = ", ".join(f"{activity} {value:.0f} s" for activity, value in seconds.items())
    print_line(console, f"\nTime: {spent}; {sum(seconds.values()):.0f} s in all. One seed ({results['seed']}).")
    print_line(console, f"Adapters: {run.adapters / BEST}")
    if run.report.exists():
        print_line(console, f"Report: {run.report}")
    print_line(console, f"Translate: python -m roundtrip translate {run.path} --to {target} < in.txt > out.txt")


def _show_comparison(title: str, comparison: Mapping[str, Any], console: Console) -> None:
    print_line(console, f"{title}, paired bootstrap, {comparison['samples']} samples:")
    for result in comparison["metrics"]:
        print_line(console, f"  {comparison_text(result)}")


def _control_verdict(comparison: Mapping[str, Any], best: str) -> str | None:
    """Return what dev says against the rounds, if anything."""
    if is_control(best):
        problem = "on dev the rounds do not beat training on pairs alone for as many steps"
        return f"{problem}; its weights are those of {best}"
    if comparison["baseline"] == comparison["system"]:
        return f"on dev neither the rounds nor as many steps on pairs alone improve on {best}"
    return None


def _show_table(results: Mapping[str, Any], names: Sequence[str], console: Console, dev_title: str) -> None:
    """Print the scores of each stage; a star marks the best stage of each direction."""
    test, best = results["test"], results["best"]
    has_placeholders = any("intact" in values for scores in test.values() for values in scores.values())
    columns = "chrF++ / BLEU" + (" / lines with all placeholders kept" if has_placeholders else "")
    title = f"Test scores: {columns} (higher is better)" if test else "No data.test, no test scores: chrF++ only"
    table = Table(title=title, title_justify="left", caption="* kept as best", caption_justify="left")
    table.add_column("after")
    for column in (*(names if test else ()), *(f"{dev_title} {name}" for name in names)):
        table.add_column(column, justify="right")
    for stage, dev in results["dev"].items():
        scored = [(name, test[stage][name]) for name in names if test]
        cells = [(name, _test_scores(scores)) for name, scores in scored]
        cells += [(name, f"{dev[name]['chrf']:.1f}") for name in names]
        marked = [f"[bold]*{text}[/]" if stage == best[name] else text for name, text in cells]
        table.add_row(stage_label(stage), *marked)
    console.print(table)


def _test_scores(scores: Mapping[str, float]) -> str:
    shown = [f"{scores['chrf']:.1f}", f"{scores['bleu']:.1f}"]
    return " / ".join([*shown, f"{scores['intact']:.0%}"] if "intact" in scores else shown)
