"""What has to hold on a GPU: the tests with the marker `gpu`, and a small whole run that makes the rows of the CPU's.

The run trains a small model on generated text for a round, in float32 and greedily, on the device and on the CPU.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.gpu import shapes
from benchmarks.gpu.measure import Figures, Part, Unsupported
from roundtrip import (
    Optimizer,
    PromptTemplate,
    StepSettings,
    TemplateRecipe,
    TokenDataset,
    build_segments,
    load_recipe,
    train,
    train_step,
)
from roundtrip.recipe.schema import Train
from roundtrip.tokens.batching import step_batches
from roundtrip.tokens.prompt_template import TokenRow

ROOT = Path(__file__).parents[2]
LANGUAGES = ("en", "es")
NUM_PAIRS = 200
NUM_EPOCHS = 6
RECIPE = """
languages = ["en", "es"]

[model]
path = "model"
dtype = "float32"

[data.split]
corpus = { path = "pairs.tsv" }
train = 48
dev = 8
test = 8

[adapter]
rank = 4

[train]
lr = 5e-3
parallel_epochs = 1

[rounds]
count = 1
monolingual_lines = 32
require_better_than_copy = false

[generate]
temperature = 0.0

[filter]
max_length_ratio = 100.0
"""


def run_tests(arguments: Sequence[str], seconds: float) -> Figures:
    """Return how many tests passed, failed and were skipped, and the end of the output where one failed."""
    # In one process, and without the options of plugins, which may be missing where the card is.
    options = ["-o", "addopts=", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, cwd=ROOT
        )
    except subprocess.TimeoutExpired as error:
        output = error.output or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return {"failed": f"not done after {seconds:.0f} s", "output": text.splitlines()[-20:]}
    lines = done.stdout.splitlines()
    # As "3 passed, 1 skipped, 900 deselected in 12.34s".
    counts = re.findall(r"(\d+) (passed|failed|errors?|skipped|deselected|xfailed)", lines[-1] if lines else "")
    figures: Figures = {name: int(number) for number, name in counts} | {"exit_code": done.returncode}
    return figures if done.returncode == 0 else figures | {"output": lines[-60:]}


def run_gpu_tests(part: Part) -> Figures:
    """Run all tests of the tree with the marker `gpu`."""
    if not part.on_gpu:
        raise Unsupported("the gpu tests require a CUDA device")
    if not (ROOT / "tests").is_dir():
        raise Unsupported("there are no tests beside the benchmarks")
    return run_tests(["tests"], part.seconds_left)


def small_pairs() -> Sequence[tuple[str, str]]:
    """Return short sentences of few words, which a small model learns in seconds."""
    return shapes.pairs(NUM_PAIRS, 30, 3, 6)


def save_small_model(folder: Path) -> None:
    """Write a small model that has seen enough of its text, on the CPU, to end its sentences."""
    tokenizer = shapes.train_tokenizer(small_pairs(), 400)
    shape = shapes.Shape("small", 2, 48, 96, 4, 2, len(tokenizer))
    cpu = torch.device("cpu")
    model = shapes.build_model(shape, cpu, initializer_range=0.05).float().requires_grad_(True).train()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    rows: list[TokenRow] = []
    for source, target in (LANGUAGES, LANGUAGES[::-1]):
        template = PromptTemplate(tokenizer, build_segments(tokenizer, TemplateRecipe(), source, target, ()))
        step = 1 if source == LANGUAGES[0] else -1
        rows += template.rows([(pair[::step][0], pair[::step][1]) for pair in small_pairs()])
    table = TokenDataset.of(rows, cpu)
    groups = [group for epoch in range(NUM_EPOCHS) for group in step_batches(table.sizes, 32, epoch)]
    optimizer = Optimizer(dict(model.named_parameters()), Train(lr=5e-3), len(groups))
    settings = StepSettings(tokenizer.pad_token_id, 4096)
    for group in groups:
        train_step(model, optimizer, table, group, settings, seed=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run_on(device: torch.device, folder: Path) -> tuple[float, Path]:
    """Run the recipe on a device; return its seconds and its folder."""
    loaded = load_recipe(str(folder / "small.toml"), [f"model.device={device}"])
    run_dir = folder / f"run-{str(device).replace(':', '-')}"
    seconds, _ = common.timed(lambda: train(loaded, run_dir))
    return seconds, run_dir


def compare_runs(device: torch.device) -> Figures:
    """Return whether a whole run on the device made the same rows as one on the CPU, and how far its losses are off."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_small_model(folder / "model")
        lines = "".join(f"{source}\t{target}\n" for source, target in small_pairs())
        (folder / "pairs.tsv").write_text(lines, encoding="utf-8")
        (folder / "small.toml").write_text(RECIPE, encoding="utf-8")
        cpu_seconds, expected = run_on(torch.device("cpu"), folder)
        (expected).rename(folder / "expected")
        seconds, made = run_on(device, folder)
        return {"seconds": seconds, "seconds_on_cpu": cpu_seconds} | differences(made, folder / "expected")


def differences(made: Path, expected: Path) -> Figures:
    """Return how much two runs have in common."""
    lines, others = (_examples(folder) for folder in (made, expected))
    losses, other_losses = (_losses(folder) for folder in (made, expected))
    metrics, other_metrics = (json.loads((folder / "metrics.json").read_text()) for folder in (made, expected))
    pairs = zip(losses, other_losses, strict=False)
    return {
        "steps_equal": len(losses) == len(other_losses),
        "token_rows_equal": metrics["token_rows"] == other_metrics["token_rows"],
        "rows": len(others),
        "equal_rows": sum(line == other for line, other in zip(lines, others, strict=False)) / max(1, len(others)),
        "largest_loss_difference": max((abs(a - b) / b for a, b in pairs), default=0.0),
    }


def _examples(folder: Path) -> list[str]:
    files = sorted((folder / "examples").iterdir())
    return [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def _losses(folder: Path) -> list[float]:
    events: Any = map(json.loads, (folder / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return [event["loss"] for event in events if event["event"] == "step"]


def measure_part(part: Part) -> None:
    """Run the small run, then the tests, which take the rest of the time."""
    part.rung("checks", "a small whole run", partial(compare_runs, part.device))
    part.rung("checks", "pytest -m gpu", partial(run_gpu_tests, part))
