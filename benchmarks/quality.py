"""python -m benchmarks.quality EXPERIMENT: runs with and without the round trip, and the table that compares them.

    python -m benchmarks.quality multi30k --work runs/quality --jobs 1

An experiment is a shipped recipe and some arms, each of which changes keys of it, with several seeds. Each run is a
process of its own, in its own folder under --work; one that is there and whole is not run again, one that was cut off
goes on, one of other settings is refused. Seeds have the cut of the corpus in common, and the plain text read first, so
that the spread over them is that of the rounds alone.

`pairs only` learns from the pairs for at least as many optimizer steps as the round trip may take. Of every run the
stage that its dev set chose is what counts; `at the end` is the last one, whatever dev says. Comparisons are paired
bootstraps on the test lines, by seed. Writes benchmarks/results/quality-EXPERIMENT.json, and the table as Markdown to
the terminal.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU

from benchmarks.machine import RESULTS, processor
from roundtrip.backtranslation.run_folder import versions
from roundtrip.data import row_store
from roundtrip.evaluation import metrics
from roundtrip.recipe import loader
from roundtrip.recipe.plan import PARALLEL, TEXT, directions, num_steps
from roundtrip.recipe.schema import Recipe

ROUND_TRIP, PAIRS_ONLY = "round trip", "pairs only"
# Of arms that begin with a run of their own it is what that run has left.
ZERO_SHOT = "zero-shot, or as it began"
# Keys of the rounds that mean nothing without them.
NO_ROUNDS = ("rounds.count=0", "rounds.replay_examples=0", "rounds.denoising_ratio=0", "rounds.patience=0",
             "template.synthetic_tag=''", "filter.language=false",
             "train.final_epochs=0")  # fmt: skip


@dataclass(frozen=True)
class Start:
    """A run whose weights all arms begin with, those of one stage.

    Attributes:
        changes: what its recipe is changed by.
    """

    recipe: str
    changes: Sequence[str]
    stage: str


@dataclass(frozen=True)
class Experiment:
    """A recipe, what it is changed by throughout, and the arms by name.

    Attributes:
        baseline: the arm that others are compared with.
        start: what all arms begin with; None: what the recipe names.
    """

    recipe: str
    arms: Mapping[str, Sequence[str]]
    common: Sequence[str] = ()
    seeds: Sequence[int] = (1,)
    baseline: str = PAIRS_ONLY
    start: Start | None = None


BOTH: dict[str, Sequence[str]] = {PAIRS_ONLY: (), ROUND_TRIP: ()}
GERMAN = (
    "languages=['en', 'de']",
    "data.split.corpus={path = ['multi30k/train.en.gz', 'multi30k/train.de.gz']}",
    "data.dev={path = ['multi30k/val.en.gz', 'multi30k/val.de.gz'], limit = 300}",
    "data.test={path = ['multi30k/test_2016_flickr.en.gz', 'multi30k/test_2016_flickr.de.gz']}",
)


def _multi30k(pairs: int, more: Sequence[str] = (), seeds: Sequence[int] = (1, 2, 3)) -> Experiment:
    cut = (*more, f"data.split.train={pairs}")
    passes = 12 if pairs < 1000 else 8 if pairs < 5000 else 5
    start = Start("multi30k-base", cut, TEXT)
    return Experiment("multi30k", BOTH, (*cut, f"train.parallel_epochs={passes}"), seeds, start=start)


# What each arm of the ablation changes, by what it is about. Two rounds, so that there is time for all.
ABLATION: dict[str, Sequence[str]] = {
    "default": (),
    "sampling, 0.7": ("generate.temperature=0.7",),
    "sampling, 1.0": ("generate.temperature=1.0",),
    "best of 4 by dual": (
        "generate.temperature=0.7",
        "generate.num_candidates=4",
        "generate.candidate_selection=reverse_likelihood",
    ),
    "filters off": ("filter.max_length_ratio=100.0", "filter.max_copy_chrf=100.0", "filter.max_repeats=1000"),
    "wrong language": ("filter.language=true",),
    "round-trip score": ("filter.min_round_trip_chrf=25.0",),
    "tag": ("template.synthetic_tag='(draft) '",),
    "no real pairs": ("rounds.parallel_ratio=0.0",),
    "half real pairs": ("rounds.parallel_ratio=0.5",),
    "blocks of 1,000": ("rounds.count=6", "rounds.monolingual_lines=1000"),
    "one block of 6,000": ("rounds.count=1", "rounds.monolingual_lines=6000"),
    "accumulate": ("rounds.replay_examples=6000",),
    "last stage real": ("train.final_epochs=4",),
    "denoising": ("rounds.denoising_ratio=0.2",),
}

EXPERIMENTS: dict[str, Experiment] = {
    "multi30k": _multi30k(1000),
    "multi30k-500": _multi30k(500),
    "multi30k-5000": _multi30k(5000),
    "multi30k-de": _multi30k(1000, GERMAN, (1,)),
    "multi30k-all": Experiment(
        "multi30k",
        {"all pairs": ("data.split.train=28900", "rounds.count=0", "train.parallel_epochs=4")},
        start=Start("multi30k-base", ("data.split.train=1000",), TEXT),
        baseline="all pairs",
    ),
    "ablation": Experiment(
        "multi30k",
        ABLATION,
        (
            "rounds.count=2",
            "rounds.monolingual_lines=3000",
            "train.parallel_epochs=0",
            "evaluation.bootstrap_samples=10",
        ),
        baseline="default",
        start=Start("multi30k", ("rounds.count=0",), PARALLEL),
    ),
    "software-es": Experiment("software-strings", BOTH, seeds=(1, 2, 3)),
    "software-fr": Experiment("software-strings-fr", BOTH),
    "software-de": Experiment("software-strings-de", BOTH),
    "multi30k-smollm2": Experiment("multi30k-smollm2", BOTH),
}


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
        to_run: False where they are looked at only; what they begin with need not be there.
    """
    for seed in experiment.seeds:
        for arm, changes in experiment.arms.items():
            if only and arm not in only:
                continue
            overrides = (*experiment.common, *changes, *extra, f"seed={seed}")
            if experiment.start is not None and to_run:
                overrides = (*overrides, *_begun(name, experiment.start, work, seed))
            if arm == PAIRS_ONLY and to_run:
                overrides = (*overrides, *equal_steps(loader.load(experiment.recipe, overrides).recipe))
            place = work / name / f"{arm.replace(' ', '-').replace(',', '')}-{seed}"
            yield Arm(arm, seed, experiment.recipe, overrides, place)


def start_of(name: str, start: Start, work: Path, extra: Sequence[str], seed: int) -> Arm:
    """Return the run with which all arms of a seed begin."""
    # Plain text is read once for all seeds, which is the larger part of the time.
    seed = 1 if start.stage == TEXT else seed
    return Arm("start", seed, start.recipe, (*start.changes, *extra, f"seed={seed}"), work / name / f"start-{seed}")


def _begun(name: str, start: Start, work: Path, seed: int) -> Iterator[str]:
    """Yield what makes each direction begin with its weights of the start, which has come to its end."""
    begun = start_of(name, start, work, (), seed)
    if not begun.metrics.exists():
        sys.exit(f"{begun.folder} has not come to its end, and the arms begin with it")
    folder = begun.folder.resolve() / "adapters" / start.stage
    for one in sorted(folder.iterdir()):
        yield f"model.{one.name}.path={one}"


def equal_steps(recipe: Recipe) -> tuple[str, ...]:
    """Return what makes a recipe learn from pairs alone, for at least as many steps as it plans."""
    assert recipe.data.split is not None
    pairs = recipe.data.split.train
    steps = max(num_steps(recipe, pairs, direction) for direction in directions(recipe))
    passes = math.ceil(steps / math.ceil(pairs / recipe.train.batch_size))
    return (*NO_ROUNDS, f"train.parallel_epochs={passes}")


def run(arm: Arm) -> float:
    """Run an arm to its end, unless it has come there before; return the seconds that it took now."""
    refuse_stale(arm)
    if arm.metrics.exists():
        return 0.0
    command = [sys.executable, "-m", "roundtrip.train", arm.recipe, "--out", str(arm.folder)]
    command += [part for override in arm.overrides for part in ("--set", override)]
    if (arm.folder / "run.json").exists():
        command.append("--resume")
    arm.folder.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with arm.folder.with_suffix(".log").open("ab") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=os.environ)
    sys.stderr.write(f"{arm.name}, seed {arm.seed}: exit {done.returncode}, {time.perf_counter() - start:.0f} s\n")
    if done.returncode:
        sys.exit(f"{arm.name}, seed {arm.seed} failed: see {arm.folder.with_suffix('.log')}")
    return time.perf_counter() - start


def refuse_stale(arm: Arm) -> None:
    """End where a folder holds a run of other settings, which would pass for this one."""
    facts = arm.folder / "run.json"
    if facts.exists():
        found = json.loads(facts.read_text(encoding="utf-8"))["overrides"]
        if found != list(arm.overrides):
            sys.exit(f"{arm.folder} holds a run of other settings ({found}); take another --work, or remove it")


@dataclass
class Found:
    """What one run came to: scores by row and direction, and its test translations."""

    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    after_pairs: dict[str, list[str]] = field(default_factory=dict)
    references: dict[str, list[str]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def read(arm: Arm) -> Found:
    """Read what a run has left behind."""
    metrics = json.loads(arm.metrics.read_text(encoding="utf-8"))
    found = Found(facts={key: metrics[key] for key in ("best", "steps", "seconds", "roads")})
    found.facts["rejected"] = rejections(arm.folder / "events.jsonl")
    pairs = row_store.RowStore(arm.folder / "data" / "test.tsv")
    stages = [stage for stage in metrics["test"] if stage != "copy"]
    rows = {"copy": "copy", ZERO_SHOT: stages[0], "after the pairs": PARALLEL, "chosen by dev": metrics["best"]}
    rows |= {"at the end": stages[-1]}
    first, second = metrics["languages"]
    for name, side in ((f"{first}-{second}", 0), (f"{second}-{first}", 1)):
        found.references[name] = [row[1 - side] for row in pairs]
        texts = {"copy": [row[side] for row in pairs]}
        for stage in stages:
            path = arm.folder / "translations" / f"test.{stage}.{name}.txt"
            texts[stage] = path.read_text(encoding="utf-8").split("\n")[:-1]
        found.texts[name] = texts[metrics["best"]]
        found.after_pairs[name] = texts.get(PARALLEL, texts[stages[0]])
        found.scores[name] = {
            row: scores(texts[stage], found.references[name]) for row, stage in rows.items() if stage in texts
        }
    return found


def scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return BLEU, BLEU of lowercased text as older papers have it, and chrF++."""
    lowercased = BLEU(lowercase=True).corpus_score(list(hypotheses), [list(references)]).score
    return metrics.corpus_scores(hypotheses, references).to_dict() | {"bleu_lowercased": lowercased}


def rejections(path: Path) -> dict[str, int]:
    """Return how many sources were rejected in all rounds, by reason, and how many were not."""
    counts: dict[str, int] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "block" and event["stage"].startswith("round"):
            for reason, number in (*event["rejected"].items(), ("kept", event["synthetic"])):
                counts[reason] = counts.get(reason, 0) + number
    return counts


def collect(name: str, experiment: Experiment, found: Mapping[tuple[str, int], Found], samples: int) -> dict[str, Any]:
    """Return the document of an experiment: every score of every seed, and the comparisons with the baseline."""
    comparisons = []
    for (arm, seed), one in found.items():
        other = found.get((experiment.baseline, seed))
        against = {experiment.baseline: other.texts} if other is not None else {}
        if arm == experiment.baseline:
            continue
        for baseline, theirs in (against | {"after the pairs": one.after_pairs}).items():
            for direction, texts in one.texts.items():
                pair = metrics.paired_bootstrap(theirs[direction], texts, one.references[direction], samples=samples)
                about = {"arm": arm, "against": baseline, "seed": seed, "direction": direction}
                comparisons += [about | each.to_dict() for each in pair]
    return {
        "experiment": name,
        "recipe": experiment.recipe,
        "command": " ".join(["python -m benchmarks.quality", *sys.argv[1:]]),
        "versions": versions(),
        "signatures": metrics.signatures() | {"bleu_lowercased": str(_lowercased_signature())},
        "baseline": experiment.baseline,
        "runs": [{"arm": arm, "seed": seed, "scores": one.scores, **one.facts} for (arm, seed), one in found.items()],
        "comparisons": comparisons,
    }


def _lowercased_signature() -> Any:
    metric = BLEU(lowercase=True)
    metric.corpus_score(["a"], [["a"]])
    return metric.get_signature()


def markdown(document: Mapping[str, Any]) -> str:
    """Return the table of an experiment: means over the seeds, chrF++ / BLEU / lowercased BLEU."""
    runs: list[dict[str, Any]] = document["runs"]
    names = list(runs[0]["scores"])
    lines = [f"| {' | '.join(['run', *names])} |", f"|{'---|' * (1 + len(names))}"]
    trips = [one for one in runs if one["arm"] != PAIRS_ONLY] or runs
    for row in ("copy", ZERO_SHOT, "after the pairs"):
        shown = [one for one in trips if row in one["scores"][names[0]]]
        lines += [_line(row, shown, row, names)] if shown else []
    for arm in dict.fromkeys(one["arm"] for one in runs):
        own = [one for one in runs if one["arm"] == arm]
        label = f"{arm}, {len(own)} seed{'s' * (len(own) > 1)}"
        steps = statistics.fmean(sum(one["steps"].values()) / 2 for one in own)
        lines.append(_line(f"{label}, {steps:.0f} steps", own, "chosen by dev", names))
        if arm == ROUND_TRIP:
            lines.append(_line(f"{label}, at the end whatever dev says", own, "at the end", names))
    for one in document["comparisons"]:
        if one["metric"] == "chrF++":
            lines.append(
                f"| {one['arm']} against {one['against']}, seed {one['seed']} | {one['direction']} "
                f"{one['baseline']:.1f} -> {one['system']:.1f} ({one['system'] - one['baseline']:+.1f}), "
                f"p = {one['p_value']:.4f} | |"
            )
    return "\n".join(lines)


def _line(label: str, runs: Sequence[Mapping[str, Any]], row: str, names: Sequence[str]) -> str:
    cells = []
    for name in names:
        parts = []
        for metric in ("chrf", "bleu", "bleu_lowercased"):
            values = [one["scores"][name][row][metric] for one in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 and metric == "chrf" else ""
            parts.append(f"{statistics.fmean(values):.1f}{spread}" if values else "-")
        cells.append(" / ".join(parts))
    return f"| {' | '.join([label, *cells])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="where the runs go")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--arms", nargs="+", default=(), help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="in place of the experiment's own")
    parser.add_argument("--set", action="append", default=[], help="change a key of all runs")
    parser.add_argument("--samples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--only-run", action="store_true", help="collect nothing: that is done on another machine")
    parser.add_argument("--only-collect", action="store_true", help="run nothing; take what is there")
    parser.add_argument("--hardware", help="what they ran on, where that was another machine")
    parser.add_argument("--name", help="of the result, where it is not the experiment's")
    asked = parser.parse_args()
    experiment = EXPERIMENTS[asked.experiment]
    if asked.seeds:
        experiment = Experiment(**(vars(experiment) | {"seeds": asked.seeds}))
    if not asked.only_collect and experiment.start is not None:
        for seed in experiment.seeds:
            run(start_of(asked.experiment, experiment.start, asked.work, asked.set, seed))
    every = list(arms(asked.experiment, experiment, asked.work, asked.set, asked.arms, to_run=not asked.only_collect))
    if not asked.only_collect:
        with ThreadPoolExecutor(asked.jobs) as pool:
            list(pool.map(run, every))
    if asked.only_run:
        return
    found = {(arm.name, arm.seed): read(arm) for arm in every if arm.metrics.exists()}
    if not found:
        sys.exit(f"no run of {asked.experiment} has come to its end in {asked.work}")
    document = collect(asked.experiment, experiment, found, asked.samples) | {
        "hardware": asked.hardware or processor(),
        "set": [*experiment.common, *asked.set],
    }
    path = RESULTS / f"quality-{asked.name or asked.experiment}.json"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(f"{markdown(document)}\n")
    sys.stdout.write(f"{document['signatures']['chrf']}; {document['signatures']['bleu']}\n")


if __name__ == "__main__":
    main()
