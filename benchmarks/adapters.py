"""python -m benchmarks.adapters: every adapter method at rank 8 and 64, and full fine-tuning: cost and gain.

Speed: all methods in one process, steps in turns (A B C A B C), as ratios to LoRA of rank 8. Gain: each method and seed
in a process of its own, so that its peak memory is its own; both directions learn the quickstart's pairs, with the
same rows in the same order, for a fixed number of steps and, going on, for a fixed time; after each the dev lines give
a loss (nats a token) and chrF++. A method that is slower than the fixed time stands at the same step in both.

Each result is kept as it comes and a second call goes on where the first one stopped. `--quantized` adds the bases of 4
and 8 bits (bitsandbytes), `--offload` DoRA's start on the GPU; both want a GPU. Writes
benchmarks/results/adapters-NAME.json and .png; a table is printed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Shown

from benchmarks.machine import best, processor
from roundtrip.backtranslation.run_folder import versions
from roundtrip.backtranslation.dev_scoring import greedy_settings
from roundtrip.data.corpora import Corpora, prepare
from roundtrip.engine import translator
from roundtrip.engine.train_step import StepSettings, loss_sum, train_step
from roundtrip.engine.translator import Translator
from roundtrip.evaluation import metrics
from roundtrip.models import pissa_olora
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe import loader
from roundtrip.recipe.plan import directions
from roundtrip.recipe.schema import Adapter, Recipe
from roundtrip.tokens.batching import TokenDataset, collate, step_batches, token_budget_batches

RESULTS = Path("benchmarks/results")
RANKS = (8, 64)
# What differs from LoRA; alpha is 16 for all. One rate each was tried: a whole model and an adapter that holds the
# strongest part of the base take less than one that begins with nothing.
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
NUM_ROWS_PER_STEP = 16


def configurations(asked: argparse.Namespace) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return by name what is set in [adapter] and in [model]."""
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        f"{name}, rank {rank}": ({"rank": rank, "alpha": 16.0} | settings, {})
        for rank in RANKS
        for name, settings in METHODS.items()
    }
    found["full"] = (FULL, {})
    if asked.offload:
        found["dora, rank 8, offload"] = (found["dora, rank 8"][0] | {"ephemeral_gpu_offload": True}, {})
    if asked.quantized:
        for bits in ("8bit", "4bit"):
            found[f"lora, rank 8, {bits}"] = (found["lora, rank 8"][0], {"quantize": bits})
    return {name: value for name, value in found.items() if not asked.only or name in asked.only}


def recipe_of(adapter: Mapping[str, Any], model: Mapping[str, Any], device: str, seed: int) -> tuple[Recipe, Path]:
    """Return the quickstart with another adapter, on one base where the method allows it; and its folder."""
    own = adapter.get("method") in {"full", *pissa_olora.METHODS}
    changes = {"seed": seed, "model.device": device, "model.shared": not own}
    changes |= {f"model.{key}": value for key, value in model.items()}
    loaded = loader.load_recipe("quickstart", [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    adapters = dict.fromkeys(loaded.recipe.adapter, Adapter(**adapter))
    return loaded.recipe.model_copy(update={"adapter": adapters}), loaded.folder


def text(recipe: Recipe, folder: Path) -> Corpora:
    return prepare(recipe, folder, Path(tempfile.mkdtemp()), lambda text: None)


def pairs_of(corpora: Corpora, part: str, one: Translator, recipe: Recipe) -> list[tuple[str, str]]:
    side = recipe.languages.index(one.direction.source)
    return [(row[side], row[1 - side]) for row in getattr(corpora, part)]


def speed(chosen: Mapping[str, Any], device: str, turns: int) -> dict[str, float]:
    """Return the seconds of one optimizer step of each method, the best of some turns."""
    row_builders: dict[str, Callable[[], Any]] = {}
    for name, (adapter, model) in chosen.items():
        recipe, folder = recipe_of(adapter, model, device, 1)
        one = next(iter(translator.load(recipe, folder).values()))
        pairs = pairs_of(text(recipe, folder), "train", one, recipe)[:64]
        table = TokenDataset.of(one.template.rows(pairs), one.base.device)
        optimizer = Optimizer(one.direction_model.parameters(), recipe.train, 100, one.direction_model.adapter)
        (group, *_) = step_batches(table.sizes, NUM_ROWS_PER_STEP, 1)

        def row_builder(
            one: Translator = one, optimizer: Any = optimizer, table: TokenDataset = table, rows: Any = group
        ) -> None:
            with one.direction_model.training() as packed:
                settings = StepSettings(one.base.pad_id, 2048, packed=packed)
                train_step(one.direction_model.model, optimizer, table, rows, settings, seed=0)

        row_builders[name] = row_builder
    return best(row_builders, turns)


def gain(adapter: Mapping[str, Any], model: Mapping[str, Any], asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train both directions of one method and return what came out of it."""
    recipe, folder = recipe_of(adapter, model, asked.device, seed)
    corpora = text(recipe, folder)
    both = translator.load(recipe, folder)
    found: dict[str, Any] = {}
    for name, one in both.items():
        found[name] = _learn(one, recipe, corpora, asked, seed)
    cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    learnt = {name: sum(p.numel() for p in one.direction_model.parameters().values()) for name, one in both.items()}
    return {"directions": found, "peak_bytes": peak, "parameters": learnt[directions(recipe)[0].name]}


def _learn(one: Translator, recipe: Recipe, corpora: Corpora, asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Take the fixed number of steps, then go on until the fixed time is up; look at dev after each."""
    pairs = pairs_of(corpora, "train", one, recipe)
    dev = pairs_of(corpora, "dev", one, recipe)[: asked.dev]
    table = TokenDataset.of(one.template.rows(pairs), one.base.device)
    dev_table = TokenDataset.of(one.template.rows(dev), one.base.device)
    optimizer = Optimizer(one.direction_model.parameters(), recipe.train, 4 * asked.steps, one.direction_model.adapter)
    losses: list[float] = []
    looks: dict[str, Any] = {"start": {"loss": _loss(one, dev_table)}}
    seconds = 0.0
    groups = [
        group for epoch in range(50) for group in step_batches(table.sizes, NUM_ROWS_PER_STEP, 100 * seed + epoch)
    ]
    for number, group in enumerate(groups):
        at_steps, at_time = number == asked.steps, seconds >= asked.seconds
        if at_steps:
            looks["steps"] = _look(one, recipe, dev, dev_table) | {"steps": number, "seconds": seconds}
        if at_time and number >= asked.steps:
            same = number == asked.steps
            now = looks["steps"] if same else _look(one, recipe, dev, dev_table)
            if asked.seconds:
                looks["time"] = now | {"steps": number, "seconds": seconds}
            break
        start = time.perf_counter()
        with one.direction_model.training() as packed:
            settings = StepSettings(one.base.pad_id, 2048, packed=packed)
            result = train_step(one.direction_model.model, optimizer, table, group, settings, seed=number)
        seconds += time.perf_counter() - start
        losses.append(result.loss)
    return {"losses": [round(loss, 4) for loss in losses], "dev": looks}


def _look(one: Translator, recipe: Recipe, dev: Sequence[tuple[str, str]], table: TokenDataset) -> dict[str, float]:
    written = one.translate([source for source, _ in dev], greedy_settings(recipe), 0)
    lines = [" ".join(line.split()) for line in written.texts]
    return {
        "loss": _loss(one, table),
        "chrf": metrics.corpus_scores(lines, [target for _, target in dev]).to_dict()["chrf"],
    }


def _loss(one: Translator, table: TokenDataset) -> float:
    total, labels = 0.0, sum(size - start for size, start in zip(table.sizes, table.starts, strict=True))
    with one.direction_model.generating() as model, torch.no_grad():
        for group in token_budget_batches(range(len(table)), table.sizes, 2048):
            total += float(loss_sum(model, collate(table, group, one.base.pad_id)))
    return total / labels


def show(document: Mapping[str, Any], console: Console) -> None:
    """Print means over seeds and directions, and how far seeds lie apart."""
    table = Shown(title="Means of both directions and all seeds (± standard deviation of seeds)")
    for column in ("method", "seeds", "step", "memory", "learns"):
        table.add_column(column, justify="right" if column != "method" else "left")
    for look in ("steps", "time"):
        table.add_column(f"loss, fixed {look}", justify="right")
        table.add_column(f"chrF++, fixed {look}", justify="right")
    usual = document.get("step_seconds", {}).get("lora, rank 8")
    for name, runs in document["methods"].items():
        made = list(runs.values())
        cells = [str(len(made))]
        seconds = document.get("step_seconds", {}).get(name)
        cells.append(f"{seconds / usual:.2f} x" if seconds and usual else "")
        cells.append(f"{max(run['peak_bytes'] for run in made) / 2**30:.2f} GiB")
        cells.append(f"{made[0]['parameters'] / 1e6:.1f} M")
        for look in ("steps", "time"):
            cells += [_spread(made, look, "loss", 3), _spread(made, look, "chrf", 1)]
        table.add_row(name, *cells)
    console.print(table)


def means(runs: Sequence[Mapping[str, Any]], look: str, what: str) -> list[float]:
    """Return the mean of both directions for each seed that was looked at in this way."""
    looked = [
        run["directions"].values() for run in runs if all(look in one["dev"] for one in run["directions"].values())
    ]
    return [statistics.mean(one["dev"][look][what] for one in directions) for directions in looked]


def _spread(runs: Sequence[Mapping[str, Any]], look: str, what: str, digits: int) -> str:
    found = means(runs, look, what)
    if not found:
        return ""
    apart = f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.{digits}f}{apart}"


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw training loss over steps, one panel a rank, and dev chrF++ after the fixed number of steps."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(RANKS) + 1, figsize=(17, 5))
    for panel, rank in zip(axes, RANKS, strict=False):
        for name, runs in document["methods"].items():
            if f"rank {rank}" not in name and name != "full":
                continue
            curves = [one["losses"][: document["steps"]] for run in runs.values() for one in run["directions"].values()]
            size = min(map(len, curves))
            mean = [statistics.mean(curve[i] for curve in curves) for i in range(size)]
            smooth = [statistics.mean(mean[max(0, i - 3) : i + 1]) for i in range(size)]
            panel.plot(range(1, size + 1), smooth, label=name, color="black" if name == "full" else None)
        panel.set(title=f"rank {rank}", xlabel="optimizer step", ylabel="training loss, nats a token (mean of four)")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    names = list(document["methods"])
    scores = [means(list(document["methods"][name].values()), "steps", "chrf") for name in names]
    errors = [statistics.stdev(found) if len(found) > 1 else math.nan for found in scores]
    axes[-1].barh(names, [statistics.mean(found) for found in scores], xerr=errors, color="tab:blue", alpha=0.7)
    axes[-1].invert_yaxis()
    axes[-1].set(xlabel=f"dev chrF++ after {document['steps']} steps, both directions, bars: seeds")
    figure.suptitle(document["hardware"]["processor"], fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="cpu", help="what to call this machine in the file names")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=32, help="the fixed number")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="the fixed time of training, for each direction; 0 leaves it out"
    )
    parser.add_argument("--dev", type=int, default=100, help="dev lines")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=5, help="of the speed measurement; 0 leaves it out")
    parser.add_argument("--only", nargs="*", help="some configurations, such as 'lora, rank 8'")
    parser.add_argument("--offload", action="store_true", help="also DoRA with ephemeral_gpu_offload")
    parser.add_argument("--quantized", action="store_true", help="also bases of 4 and 8 bits")
    parser.add_argument("--one", nargs=2, metavar=("CONFIGURATION", "SEED"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    chosen = configurations(asked)
    if asked.one:
        sys.stdout.write(json.dumps(gain(*chosen[asked.one[0]], asked, int(asked.one[1]))) + "\n")
        return
    console, path = Console(), RESULTS / f"adapters-{asked.name}.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"methods": {}}
    document |= {
        "command": "python -m benchmarks.adapters " + " ".join(sys.argv[1:]),
        "hardware": {"processor": processor(), "threads": torch.get_num_threads(), "device": asked.device},
        "versions": versions(),
        "steps": asked.steps,
        "settings": {name: {"adapter": value[0], "model": value[1]} for name, value in chosen.items()},
    }
    for seed in range(1, asked.seeds + 1):
        for name in chosen:
            if str(seed) in document["methods"].get(name, {}):
                continue
            document["methods"].setdefault(name, {})[str(seed)] = _apart(name, seed)
            path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            console.print(
                f"seed {seed}, {name}: chrF++ {means([document['methods'][name][str(seed)]], 'steps', 'chrf')}"
            )
    if asked.turns:
        document["step_seconds"] = speed(chosen, asked.device, asked.turns)
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    show(document, console)
    draw(document, path.with_suffix(".png"))


def _apart(name: str, seed: int) -> dict[str, Any]:
    """Measure in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.adapters", *sys.argv[1:], "--one", name, str(seed)],
        capture_output=True,
        text=True,
        env=os.environ | {"TQDM_DISABLE": "1"},
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name}, seed {seed}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
