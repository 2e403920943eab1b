"""What came out of a run: one JSON document, and a table and samples that a person can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from roundtrip.backtranslation.checkpoint import State
from roundtrip.backtranslation.run_folder import BEST, RunFolder, versions
from roundtrip.backtranslation.validation import bleu_tokenize, mean_chrf, parallel_texts, translations_path
from roundtrip.data.corpora import Corpora
from roundtrip.evaluation import metrics
from roundtrip.recipe.plan import BASE, FINAL, PARALLEL, PRETRAIN, Direction, directions
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime.errors import printable
from roundtrip.runtime.seeding import derive_seed, permuted_index

NUM_SAMPLES = 3
# Resamplings of the paired bootstrap.
BOOTSTRAP_SAMPLES = 1000
_LABELS = {
    "copy": "copying the source",
    BASE: "base model, zero-shot",
    PRETRAIN: "plain text",
    PARALLEL: "parallel pairs",
    FINAL: "parallel pairs again",
}
ByStage = Mapping[str, Mapping[str, Mapping[str, float]]]


def collect(
    run: RunFolder,
    recipe: Recipe,
    corpora: Corpora,
    state: State,
    test: ByStage,
    seconds: Mapping[str, float],
    peak: Mapping[str, int],
) -> dict[str, Any]:
    """Return everything worth keeping of a finished run.

    The document's `comparison` is a paired bootstrap of the last two trained stages (or of the base and the only
    one) on test.
    """
    kept = [stage for stage in test if stage != "copy"]
    pair = kept[-2:] if len(kept) > 1 else []
    return {
        "languages": list(recipe.languages),
        "dev": {stage: dict(scores) for stage, scores in state.scores.items()},
        "test": {stage: dict(scores) for stage, scores in test.items()},
        "best": state.best,
        "comparison": _compare(run, recipe, corpora, pair) if pair else None,
        "signatures": {d.name: metrics.signatures(bleu_tokenize(recipe, d)) for d in directions(recipe)},
        "samples": {d.name: _samples(run, recipe, corpora, state.best or BASE, d) for d in directions(recipe)},
        "steps": dict(state.optimizer_steps),
        "skipped": dict(state.skipped),
        "seconds": {activity: round(value, 1) for activity, value in seconds.items()},
        "peak_bytes": dict(peak),
        "lines": corpora.counts,
        "roads": {name: dict(counts) for name, counts in state.row_builders.items()},
        "seed": recipe.seed,
        "versions": versions(),
    }


def _compare(run: RunFolder, recipe: Recipe, corpora: Corpora, stages: Sequence[str]) -> dict[str, Any]:
    found = {}
    for direction in directions(recipe):
        baseline, system = (_translations(run, stage, direction) for stage in stages)
        _, references = parallel_texts(corpora, recipe, "test", direction)
        comparisons = metrics.paired_bootstrap(
            baseline,
            system,
            references,
            bleu_tokenize=bleu_tokenize(recipe, direction),
            samples=BOOTSTRAP_SAMPLES,
        )
        found[direction.name] = [comparison.to_dict() for comparison in comparisons]
    return {
        "baseline": stages[0],
        "system": stages[1],
        "samples": BOOTSTRAP_SAMPLES,
        "directions": found,
    }


def _translations(run: RunFolder, stage: str, direction: Direction) -> list[str]:
    return translations_path(run, "test", stage, direction).read_text(encoding="utf-8").split("\n")[:-1]


def _samples(
    run: RunFolder, recipe: Recipe, corpora: Corpora, stage: str, direction: Direction
) -> list[dict[str, str]]:
    sources, references = parallel_texts(corpora, recipe, "test", direction)
    hypotheses, base = (_translations(run, name, direction) for name in (stage, BASE))
    seed = derive_seed(recipe.seed, "samples")
    chosen = [permuted_index(i, len(sources), seed, 0) for i in range(min(NUM_SAMPLES, len(sources)))]
    return [
        {"source": sources[i], "reference": references[i], "base": base[i], "hypothesis": hypotheses[i]} for i in chosen
    ]


def show(metrics: Mapping[str, Any], run: RunFolder, console: Console) -> None:
    """Print the table of scores, the comparison and the samples."""
    names = list(metrics["signatures"])
    table = Table(title="Test scores: chrF++ / BLEU (higher is better)", title_justify="left")
    table.add_column("after")
    for name in names:
        table.add_column(name, justify="right")
    blind = any("copied" in one for scores in metrics["dev"].values() for one in scores.values())
    table.add_column("mean chrF++ there and back" if blind else "dev mean chrF++", justify="right")
    for stage, scores in metrics["test"].items():
        dev = metrics["dev"].get(stage)
        mean = f"{mean_chrf(dev):.1f}" if dev else "-"
        label = _LABELS.get(stage, stage)
        marked = f"{label} (kept as best)" if stage == metrics["best"] else label
        cells = [f"{scores[name]['chrf']:.1f} / {scores[name]['bleu']:.1f}" for name in names]
        table.add_row(marked, *cells, mean, style="bold" if stage == metrics["best"] else None)
    console.print(table)
    if blind:
        shares = ", ".join(f"{metrics['dev'][metrics['best']][name]['copied']:.0%} of {name}" for name in names)
        _line(console, Text(f"Chosen without dev pairs, by lines that went there and back; copies: {shares}", "bold"))
    for stage, scores in metrics["test"].items():
        cut = {name: scores[name].get("unfinished", 0) for name in names}
        if any(cut.values()):
            counts = ", ".join(f"{number:.0f} of {name}" for name, number in cut.items())
            _line(console, Text(f"{_LABELS.get(stage, stage)}: cut at their length limit: {counts}", style="dim"))
    _show_comparison(metrics["comparison"], console)
    for name, signature in metrics["signatures"].items():
        _line(console, Text(f"{name}: {signature['chrf']}; {signature['bleu']}", style="dim"))
    for name, samples in metrics["samples"].items():
        for sample in samples:
            _line(console, Text(f"\n{name}  {sample['source']}"))
            _line(console, Text(f"  reference   {sample['reference']}"))
            _line(console, Text(f"  base        {sample['base']}", style="dim"))
            _line(console, Text(f"  translation {sample['hypothesis']}", style="bold"))
    for name, count in metrics.get("skipped", {}).items():
        text = f"{name}: {count} of {metrics['steps'][name]} steps were skipped for a loss that was not finite"
        _line(console, Text(f"{text}: see {run.skipped}", style="bold"))
    for name, counts in metrics["roads"].items():
        shown = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        _line(console, Text(f"{name}: token road of its synthetic rows: {shown}", style="dim"))
    spent = ", ".join(f"{activity} {value:.0f} s" for activity, value in metrics["seconds"].items())
    _line(
        console,
        Text(f"\nTime: {spent}; {sum(metrics['seconds'].values()):.0f} s in all. One seed ({metrics['seed']})."),
    )
    target = metrics["languages"][1]
    _line(console, Text(f"Adapters: {run.adapters / BEST}"))
    _line(console, Text(f"Translate: python -m roundtrip translate {run.path} --to {target} < in.txt > out.txt"))


def _line(console: Console, text: Text) -> None:
    """Print prose unbroken: a terminal wraps it, a file keeps it whole."""
    text.plain = printable(text.plain)
    console.print(text, soft_wrap=True)


def _show_comparison(comparison: Mapping[str, Any] | None, console: Console) -> None:
    if comparison is None:
        return
    system, baseline, samples = (comparison[key] for key in ("system", "baseline", "samples"))
    _line(console, Text(f"{system} against {baseline}, paired bootstrap, {samples} samples:"))
    for name, found in comparison["directions"].items():
        for one in found:
            sure = "significant" if one["p_value"] < 0.05 else "not significant"
            change = one["system"] - one["baseline"]
            _line(
                console,
                Text(
                    f"  {name} {one['metric']}: {one['baseline']:.1f} → {one['system']:.1f} ({change:+.1f}), "
                    f"± {one['system_ci']:.1f} (95 % of the second score), p = {one['p_value']:.3f}, {sure}"
                ),
            )
