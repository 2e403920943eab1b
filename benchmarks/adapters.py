"""python -m benchmarks.adapters: cost and gain of every adapter method at rank 8 and 64, and of full fine-tuning.

Cost: all methods in one process, steps in turns (A B C A B C), as ratios to LoRA of rank 8. Gain: each method and seed
in a process of its own, so that its peak memory is its own; both directions train on the quickstart's pairs, with the
same rows in the same order, for a fixed number of steps and then on for a fixed time; after each the dev lines give
a loss (nats a token) and chrF++. A method that is slower than the fixed time has the same step in both.

Each result is kept as it comes, and a second call continues where the first one stopped. Writes
benchmarks/results/adapters-NAME.json and .png.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import common
from roundtrip import Optimizer, StepSettings, TokenDataset, corpus_scores, load_recipe, train_step
from roundtrip.backtranslation.dev_scoring import greedy_settings
from roundtrip.data.corpora import Corpora
from roundtrip.engine import translator
from roundtrip.engine.train_step import loss_sum
from roundtrip.engine.translator import Translator
from roundtrip.models import pissa_olora
from roundtrip.recipe.schema import Adapter, Recipe
from roundtrip.tokens.batching import collate, step_batches, token_budget_batches

RANKS = (8, 64)
# What differs from LoRA; alpha is 16 for all. One learning rate each was tried: a whole model and an adapter that holds
# the strongest part of the base need a lower one than an adapter that begins with zeros.
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"method": "rslora"},
    "dora": {"method": "dora"},
    "rsdora": {"method": "rsdora"},
    "lora+": {"loraplus_lr_ratio": 16.0, "lr": 2.5e-4},
    "pissa": {"method": "pissa", "lr": 2.5e-4},
    "olora": {"method": "olora", "lr": 2.5e-4},
}
FULL = {"method": "full", "lr": 1e-4}
REFERENCE = "lora, rank 8"
BATCH_SIZE = 16
MAX_TOKENS = 2048

# What is set in [adapter], and `lr` of [train].
Configuration = dict[str, Any]


def configurations(asked: argparse.Namespace) -> dict[str, Configuration]:
    """Return all configurations that were asked for, by name."""
    every: dict[str, Configuration] = {
        f"{name}, rank {rank}": {"rank": rank, "alpha": 16.0} | settings
        for rank in RANKS
        for name, settings in METHODS.items()
    }
    every["full"] = FULL
    return {name: value for name, value in every.items() if not asked.only or name in asked.only}


def recipe_of(adapter: Configuration, device: str, seed: int) -> tuple[Recipe, Path]:
    """Return the quickstart with another adapter, on one base where the method allows it; and its folder."""
    own = adapter.get("method") in {"full", *pissa_olora.METHODS}
    changes = {"seed": seed, "model.device": device, "model.shared": not own}
    loaded = load_recipe("quickstart", [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    keys = {key: value for key, value in adapter.items() if key != "lr"}
    train = loaded.recipe.train.model_copy(update={"lr": adapter.get("lr", loaded.recipe.train.lr)})
    adapters = dict.fromkeys(loaded.recipe.adapter, Adapter(**keys))
    return loaded.recipe.model_copy(update={"adapter": adapters, "train": train}), loaded.folder


def pairs_of(corpora: Corpora, part: str, forward: Translator, recipe: Recipe) -> list[tuple[str, str]]:
    """Return the pairs of `train` or `dev`, source of the direction first."""
    side = recipe.languages.index(forward.direction.source)
    return [(row[side], row[1 - side]) for row in getattr(corpora, part)]


def step_seconds(chosen: Mapping[str, Configuration], device: str, turns: int) -> dict[str, float]:
    """Return the seconds of one optimizer step of each method, the best of some turns."""
    variants: dict[str, Callable[[], Any]] = {}
    with ExitStack() as stack:
        for name, configuration in chosen.items():
            recipe, folder = recipe_of(configuration, device, 1)
            forward = next(iter(translator.load(recipe, folder).values()))
            model = forward.direction_model
            pairs = pairs_of(common.corpora_of(recipe, folder), "train", forward, recipe)[:64]
            table = TokenDataset.of(forward.template.rows(pairs), forward.base.device)
            optimizer = Optimizer(model.parameters(), recipe.train, 100, model.adapter)
            (group, *_) = step_batches(table.sizes, BATCH_SIZE, 1)
            settings = StepSettings(forward.base.pad_id, MAX_TOKENS, packed=stack.enter_context(model.training()))
            variants[name] = partial(train_step, model.model, optimizer, table, group, settings, seed=0)
        return common.best(variants, turns)


def gain(configuration: Configuration, asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train both directions with one method and return losses, dev scores, peak memory and size."""
    recipe, folder = recipe_of(configuration, asked.device, seed)
    corpora = common.corpora_of(recipe, folder)
    both = translator.load(recipe, folder)
    runs = {name: _train(each, recipe, corpora, asked, seed) for name, each in both.items()}
    cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first = next(iter(both.values()))
    num_parameters = sum(p.numel() for p in first.direction_model.parameters().values())
    return {"directions": runs, "peak_bytes": peak, "parameters": num_parameters}


def _train(
    forward: Translator, recipe: Recipe, corpora: Corpora, asked: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Take the fixed number of steps, then go on until the fixed time is up; evaluate on dev after each."""
    dev = pairs_of(corpora, "dev", forward, recipe)[: asked.dev]
    table = TokenDataset.of(forward.template.rows(pairs_of(corpora, "train", forward, recipe)), forward.base.device)
    dev_table = TokenDataset.of(forward.template.rows(dev), forward.base.device)
    model = forward.direction_model
    optimizer = Optimizer(model.parameters(), recipe.train, 4 * asked.steps, model.adapter)
    losses: list[float] = []
    scores: dict[str, Any] = {"start": {"loss": _dev_loss(forward, dev_table)}}
    seconds = 0.0
    groups = [group for epoch in range(50) for group in step_batches(table.sizes, BATCH_SIZE, 100 * seed + epoch)]
    for number, group in enumerate(groups):
        reached = {"steps": number, "seconds": seconds}
        if number == asked.steps:
            scores["steps"] = _evaluate(forward, recipe, dev, dev_table) | reached
        if number >= asked.steps and seconds >= asked.seconds:
            if asked.seconds:
                same = number == asked.steps
                scores["time"] = (scores["steps"] if same else _evaluate(forward, recipe, dev, dev_table)) | reached
            break
        with model.training() as packed:
            settings = StepSettings(forward.base.pad_id, MAX_TOKENS, packed=packed)
            step = partial(train_step, model.model, optimizer, table, group, settings, seed=number)
            elapsed, result = common.timed(step)
        seconds += elapsed
        losses.append(result.loss)
    return {"losses": [round(loss, 4) for loss in losses], "dev": scores}


def _evaluate(
    forward: Translator, recipe: Recipe, dev: Sequence[tuple[str, str]], table: TokenDataset
) -> dict[str, float]:
    translations = forward.translate([source for source, _ in dev], greedy_settings(recipe))
    lines = [" ".join(line.split()) for line in translations.texts]
    chrf = corpus_scores(lines, [target for _, target in dev]).chrf
    return {"loss": _dev_loss(forward, table), "chrf": chrf}


def _dev_loss(forward: Translator, table: TokenDataset) -> float:
    """Return the mean loss in nats a token."""
    total, num_labels = 0.0, sum(size - start for size, start in zip(table.sizes, table.starts, strict=True))
    with forward.direction_model.generating() as model, torch.no_grad():
        for group in token_budget_batches(range(len(table)), table.sizes, MAX_TOKENS):
            total += float(loss_sum(model, collate(table, group, forward.base.pad_id)))
    return total / num_labels


def show(document: Mapping[str, Any], console: Console) -> None:
    """Print means over seeds and directions, with the standard deviation over seeds."""
    seconds, rows = document.get("step_seconds", {}), []
    for name, by_seed in document["methods"].items():
        runs = list(by_seed.values())
        ratio = f"{seconds[name] / seconds[REFERENCE]:.2f} x" if name in seconds and REFERENCE in seconds else ""
        memory = f"{max(run['peak_bytes'] for run in runs) / 2**30:.2f} GiB"
        rows.append([name, str(len(runs)), ratio, memory, f"{runs[0]['parameters'] / 1e6:.1f} M"])
        for limit in ("steps", "time"):
            rows[-1] += [_mean_and_spread(runs, limit, "loss", 3), _mean_and_spread(runs, limit, "chrf", 1)]
    limits = [f"{what}, fixed {limit}" for limit in ("steps", "time") for what in ("loss", "chrF++")]
    title = "Means of both directions and all seeds (± standard deviation over seeds)"
    common.print_table(console, title, ["method", "seeds", "step", "memory", "parameters", *limits], rows)


def means(runs: Sequence[Mapping[str, Any]], limit: str, metric: str) -> list[float]:
    """Return the mean of both directions for each seed that has this score."""
    per_seed = [[direction["dev"] for direction in run["directions"].values()] for run in runs]
    complete = [scores for scores in per_seed if all(limit in score for score in scores)]
    return [statistics.mean(score[limit][metric] for score in scores) for scores in complete]


def _mean_and_spread(runs: Sequence[Mapping[str, Any]], limit: str, metric: str, digits: int) -> str:
    values = means(runs, limit, metric)
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw training loss over steps, one panel a rank, and dev chrF++ after the fixed number of steps."""
    with common.plot(path, (17, 5), title=document["hardware"]["processor"], ncols=len(RANKS) + 1) as axes:
        for panel, rank in zip(axes[0], RANKS, strict=False):
            for name, runs in document["methods"].items():
                if f"rank {rank}" in name or name == "full":
                    smooth = _smooth_losses(runs, document["steps"])
                    color = "black" if name == "full" else None
                    panel.plot(range(1, len(smooth) + 1), smooth, label=name, color=color)
            panel.set(title=f"rank {rank}", xlabel="optimizer step", ylabel="training loss, nats a token (mean)")
            panel.grid(alpha=0.3)
            panel.legend(fontsize="small")
        names = list(document["methods"])
        scores = [means(list(document["methods"][name].values()), "steps", "chrf") for name in names]
        errors = [statistics.stdev(values) if len(values) > 1 else math.nan for values in scores]
        last = axes[0][-1]
        last.barh(names, [statistics.mean(values) for values in scores], xerr=errors, color="tab:blue", alpha=0.7)
        last.invert_yaxis()
        last.set(xlabel=f"dev chrF++ after {document['steps']} steps, both directions, bars: seeds")


def _smooth_losses(runs: Mapping[str, Any], num_steps: int) -> list[float]:
    """Return the mean loss of all seeds and directions by step, averaged over four steps."""
    curves = [each["losses"][:num_steps] for run in runs.values() for each in run["directions"].values()]
    mean = [statistics.mean(losses) for losses in zip(*curves, strict=False)]
    return [statistics.mean(mean[max(0, i - 3) : i + 1]) for i in range(len(mean))]


def main() -> None:
    parser = common.parser(__doc__, turns=5, device=True)
    parser.add_argument("--steps", type=int, default=32, help="the fixed number of steps")
    parser.add_argument("--seconds", type=float, default=60.0, help="the fixed time of each direction; 0 leaves it out")
    parser.add_argument("--dev", type=int, default=100, help="dev lines")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="some configurations, such as 'lora, rank 8'")
    parser.add_argument("--one", nargs=2, metavar=("CONFIGURATION", "SEED"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    chosen = configurations(asked)
    if asked.one:
        name, seed = asked.one
        sys.stdout.write(json.dumps(gain(chosen[name], asked, int(seed))) + "\n")
        return
    path = common.result_path("adapters", asked.name)
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"methods": {}}
    document |= common.provenance("adapters", common.device_of(asked.device)) | {
        "steps": asked.steps,
        "settings": {name: {"adapter": value, "model": {}} for name, value in chosen.items()},
    }
    for seed in map(str, range(1, asked.seeds + 1)):
        for name in chosen:
            runs = document["methods"].setdefault(name, {})
            if seed not in runs:
                command = [sys.executable, "-m", "benchmarks.adapters", *sys.argv[1:], "--one", name, seed]
                runs[seed] = common.in_own_process(command)
                common.save(document, path)
                sys.stdout.write(f"seed {seed}, {name}: chrF++ {means([runs[seed]], 'steps', 'chrf')}\n")
    if asked.turns:
        document["step_seconds"] = step_seconds(chosen, asked.device, asked.turns)
    common.finish(document, path, show, draw)


if __name__ == "__main__":
    main()
