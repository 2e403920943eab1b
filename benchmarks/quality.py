"""python -m benchmarks.quality EXPERIMENT: runs with and without the round trip, and the table that compares them.

    python -m benchmarks.quality multi30k --work runs/quality --jobs 1

An experiment is a shipped recipe and some arms, each of which changes keys of it, with several seeds. Each run is a
process of its own, in its own folder under --work; a finished run is not repeated, an interrupted one is resumed, one
of other settings is refused. Seeds share the split of the corpus and the pretraining on plain text, so that the spread
over them is that of the rounds alone.

`pairs only` trains on the pairs for at least as many optimizer steps as the round trip may take. Of every run the
stage that its dev set selected is what counts; `at the end` is the last one, whatever the dev set says. Comparisons
are paired bootstraps on the test lines, by seed. Writes benchmarks/results/quality-EXPERIMENT.json, and the table as
Markdown to the terminal.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from sacrebleu.metrics import BLEU

from benchmarks import common
from benchmarks.quality_experiments import EXPERIMENTS, NO_ROUNDS, PAIRS_ONLY, ROUND_TRIP, Experiment, Start
from roundtrip.data import row_store
from roundtrip.evaluation import metrics
from roundtrip.recipe.loader import load_recipe
from roundtrip.recipe.plan import INITIAL, PARALLEL, PRETRAIN, num_steps
from roundtrip.recipe.schema import Recipe

# For arms that begin with the weights of another run it is the score of those weights.
ZERO_SHOT = "zero-shot, or as it began"


@dataclass(frozen=True)
class Arm:
    """One run of one arm."""

    name: str
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    folder: Path

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"


def arms(
    name: str, experiment: Experiment, work: Path, extra: Sequence[str], only: Sequence[str], *, to_run: bool = True
) -> Iterator[Arm]:
    """Yield every run of an experiment, one seed after the other.

    Args:
        to_run: False to only read results; the run that they begin with need not exist.
    """
    for seed in experiment.seeds:
        for arm, changes in experiment.arms.items():
            if only and arm not in only:
                continue
            overrides = (*experiment.common, *changes, *extra, f"seed={seed}")
            if experiment.start is not None and to_run:
                overrides = (*overrides, *_start_weights(name, experiment, work, seed))
            if arm == PAIRS_ONLY and to_run:
                overrides = (*overrides, *equal_steps(load_recipe(experiment.recipe, overrides).recipe))
            folder = work / name / f"{arm.replace(' ', '-').replace(',', '')}-{seed}"
            yield Arm(arm, seed, experiment.recipe, overrides, folder)


def start_of(name: str, start: Start, work: Path, extra: Sequence[str], seed: int) -> Arm:
    """Return the run with which all arms of a seed begin."""
    # Pretraining on plain text is done once for all seeds, since it takes most of the time.
    seed = 1 if start.stage == PRETRAIN else seed
    return Arm("start", seed, start.recipe, (*start.changes, *extra, f"seed={seed}"), work / name / f"start-{seed}")


def _start_weights(name: str, experiment: Experiment, work: Path, seed: int) -> Iterator[str]:
    """Yield the overrides with which each direction begins with the weights, or the adapter, of a finished start."""
    assert experiment.start is not None
    first = start_of(name, experiment.start, work, (), seed)
    if not first.metrics.exists():
        sys.exit(f"{first.folder} is not a finished run, and the arms begin with its weights")
    folder = first.folder.resolve() / "adapters" / experiment.start.stage
    adapters = load_recipe(experiment.recipe, experiment.common).recipe.adapter
    for direction in sorted(folder.iterdir()):
        full = adapters[direction.name].method == "full"
        key = f"model.{direction.name}.path" if full else f"adapter.{direction.name}.init"
        yield f"{key}={direction}"


def equal_steps(recipe: Recipe) -> tuple[str, ...]:
    """Return the overrides with which a recipe trains on pairs only, for at least as many steps as it plans."""
    assert recipe.data.split is not None
    pairs = recipe.data.split.train
    epochs = math.ceil(num_steps(recipe, pairs) / math.ceil(pairs / recipe.train.batch_size))
    return (*NO_ROUNDS, f"train.parallel_epochs={epochs}")


def run(arm: Arm) -> None:
    """Run an arm to its end, unless it is finished."""
    refuse_stale(arm)
    if arm.metrics.exists():
        return
    command = [sys.executable, "-m", "roundtrip.train", arm.recipe, "--out", str(arm.folder)]
    command += [part for override in arm.overrides for part in ("--set", override)]
    if (arm.folder / "run.json").exists():
        command.append("--resume")
    arm.folder.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with arm.folder.with_suffix(".log").open("ab") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    sys.stderr.write(f"{arm.name}, seed {arm.seed}: exit {code}, {time.perf_counter() - start:.0f} s\n")
    if code:
        sys.exit(f"{arm.name}, seed {arm.seed} failed: see {arm.folder.with_suffix('.log')}")


def refuse_stale(arm: Arm) -> None:
    """Exit if the folder of an arm holds a run of other settings."""
    manifest = arm.folder / "run.json"
    if manifest.exists():
        overrides = json.loads(manifest.read_text(encoding="utf-8"))["overrides"]
        if overrides != list(arm.overrides):
            sys.exit(f"{arm.folder} holds a run of other settings ({overrides}); remove it or use another --work")


@dataclass
class Outcome:
    """The result of one run: scores by row of the table and direction, and its test translations."""

    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    after_pairs: dict[str, list[str]] = field(default_factory=dict)
    references: dict[str, list[str]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def read(arm: Arm) -> Outcome:
    """Read the result of a finished run from its folder."""
    metrics = json.loads(arm.metrics.read_text(encoding="utf-8"))
    outcome = Outcome(facts={key: metrics[key] for key in ("best", "steps", "seconds", "token_rows")})
    outcome.facts["rejected"] = rejections(arm.folder / "events.jsonl")
    pairs = row_store.RowStore(arm.folder / "data" / "test.tsv")
    stages = [stage for stage in metrics["test"] if stage != "copy"]
    first, second = metrics["languages"]
    for name, side in ((f"{first}-{second}", 0), (f"{second}-{first}", 1)):
        outcome.references[name] = [row[1 - side] for row in pairs]
        texts = {"copy": [row[side] for row in pairs]}
        for stage in stages:
            path = arm.folder / "translations" / f"test.{stage}.{name}.txt"
            texts[stage] = path.read_text(encoding="utf-8").split("\n")[:-1]
        best = metrics["best"][name]
        after_pairs = INITIAL if INITIAL in texts else PARALLEL
        rows = {"copy": "copy", ZERO_SHOT: stages[0], "after the pairs": after_pairs, "chosen by dev": best}
        rows |= {"at the end": stages[-1]}
        outcome.texts[name] = texts[best]
        outcome.after_pairs[name] = texts.get(after_pairs, texts[stages[0]])
        outcome.scores[name] = {
            row: scores(texts[stage], outcome.references[name]) for row, stage in rows.items() if stage in texts
        }
    return outcome


def scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return BLEU, BLEU of lowercased text as older papers report it, and chrF++."""
    lowercased, _ = _lowercased_bleu(hypotheses, references)
    return metrics.corpus_scores(hypotheses, references).to_dict() | {"bleu_lowercased": lowercased}


def _lowercased_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Return the score and its signature."""
    metric = BLEU(lowercase=True)
    return metric.corpus_score(list(hypotheses), [list(references)]).score, str(metric.get_signature())


def rejections(path: Path) -> dict[str, int]:
    """Return how many sources were rejected in all rounds, by reason, and how many were not."""
    counts: dict[str, int] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "examples" and event["stage"].startswith("round"):
            for reason, number in (*event["rejected"].items(), ("kept", event["synthetic"])):
                counts[reason] = counts.get(reason, 0) + number
    return counts


def collect(
    name: str, experiment: Experiment, outcomes: Mapping[tuple[str, int], Outcome], samples: int
) -> dict[str, Any]:
    """Return the document of an experiment: every score of every seed, and the comparisons with the baseline."""
    comparisons = []
    for (arm, seed), outcome in outcomes.items():
        other = outcomes.get((experiment.baseline, seed))
        against = {experiment.baseline: other.texts} if other is not None else {}
        if arm == experiment.baseline:
            continue
        for baseline, theirs in (against | {"after the pairs": outcome.after_pairs}).items():
            for direction, texts in outcome.texts.items():
                references = outcome.references[direction]
                pair = metrics.paired_bootstrap(theirs[direction], texts, references, samples=samples)
                about = {"arm": arm, "against": baseline, "seed": seed, "direction": direction}
                comparisons += [about | each.to_dict() for each in pair]
    return common.provenance("quality") | {
        "experiment": name,
        "recipe": experiment.recipe,
        "signatures": metrics.signatures() | {"bleu_lowercased": _lowercased_bleu(["a"], ["a"])[1]},
        "baseline": experiment.baseline,
        "runs": [{"arm": arm, "seed": seed, "scores": o.scores, **o.facts} for (arm, seed), o in outcomes.items()],
        "comparisons": comparisons,
    }


def markdown(document: Mapping[str, Any]) -> str:
    """Return the table of an experiment: means over the seeds, chrF++ / BLEU / lowercased BLEU."""
    runs: list[dict[str, Any]] = document["runs"]
    names = list(runs[0]["scores"])
    lines = [f"| {' | '.join(['run', *names])} |", f"|{'---|' * (1 + len(names))}"]
    others = [run for run in runs if run["arm"] != PAIRS_ONLY] or runs
    for row in ("copy", ZERO_SHOT, "after the pairs"):
        shown = [run for run in others if row in run["scores"][names[0]]]
        lines += [_line(row, shown, row, names)] if shown else []
    for arm in dict.fromkeys(run["arm"] for run in runs):
        own = [run for run in runs if run["arm"] == arm]
        label = f"{arm}, {len(own)} seed{'s' * (len(own) > 1)}"
        steps = statistics.fmean(sum(run["steps"].values()) / 2 for run in own)
        lines.append(_line(f"{label}, {steps:.0f} steps", own, "chosen by dev", names))
        if arm == ROUND_TRIP:
            lines.append(_line(f"{label}, at the end whatever the dev set says", own, "at the end", names))
    for comparison in document["comparisons"]:
        if comparison["metric"] == "chrF++":
            before, after = comparison["baseline"], comparison["system"]
            lines.append(
                f"| {comparison['arm']} against {comparison['against']}, seed {comparison['seed']} "
                f"| {comparison['direction']} {before:.1f} -> {after:.1f} ({after - before:+.1f}), "
                f"p = {comparison['p_value']:.4f} | |"
            )
    return "\n".join(lines)


def _line(label: str, runs: Sequence[Mapping[str, Any]], row: str, names: Sequence[str]) -> str:
    cells = []
    for name in names:
        parts = []
        for metric in ("chrf", "bleu", "bleu_lowercased"):
            values = [run["scores"][name][row][metric] for run in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 and metric == "chrf" else ""
            parts.append(f"{statistics.fmean(values):.1f}{spread}" if values else "-")
        cells.append(" / ".join(parts))
    return f"| {' | '.join([label, *cells])} |"


def show(document: Mapping[str, Any], console: Console) -> None:
    """Print the table as Markdown, and the signatures of the metrics."""
    signatures = document["signatures"]
    console.print(f"{markdown(document)}\n{signatures['chrf']}; {signatures['bleu']}", soft_wrap=True, markup=False)


def main() -> None:
    parser = common.parser(__doc__, name="")
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="where the runs go")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--arms", nargs="+", default=(), help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="in place of the experiment's own")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of all runs")
    parser.add_argument("--samples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--only-run", action="store_true", help="collect nothing: that is done on another machine")
    parser.add_argument("--only-collect", action="store_true", help="run nothing; read the runs that are there")
    parser.add_argument("--hardware", help="what they ran on, where that was another machine")
    asked = parser.parse_args()
    experiment = EXPERIMENTS[asked.experiment]
    if asked.seeds:
        experiment = replace(experiment, seeds=asked.seeds)
    if not asked.only_collect and experiment.start is not None:
        for seed in experiment.seeds:
            run(start_of(asked.experiment, experiment.start, asked.work, asked.set, seed))
    every = list(arms(asked.experiment, experiment, asked.work, asked.set, asked.arms, to_run=not asked.only_collect))
    if not asked.only_collect:
        with ThreadPoolExecutor(asked.jobs) as pool:
            list(pool.map(run, every))
    if asked.only_run:
        return
    outcomes = {(arm.name, arm.seed): read(arm) for arm in every if arm.metrics.exists()}
    if not outcomes:
        sys.exit(f"no run of {asked.experiment} in {asked.work} is finished")
    document = collect(asked.experiment, experiment, outcomes, asked.samples)
    document |= {"hardware": asked.hardware or common.processor(), "set": [*experiment.common, *asked.set]}
    common.finish(document, common.result_path("quality", asked.name or asked.experiment), show)


if __name__ == "__main__":
    main()
