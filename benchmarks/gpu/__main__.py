"""python -m benchmarks.gpu: everything that only a GPU can tell, in at most eight minutes on one card.

It needs this tree with its dependencies, and no network: models have real shapes and random weights, the tokenizer is
trained on generated text. Packages that are missing (Liger, FlashAttention, bitsandbytes) are skipped aloud; so is what
fails, what does not fit into memory, and what the time does not suffice for. If an error breaks the device for this
process, the parts that are left run in a new one.

- checks: a small whole run against that of the CPU, and `pytest -m gpu`;
- tokens: making rows by the text path and by the splice, 32 to 4,096 at a time, and their share of a round;
- training, generation: ladders with tokens/s, shares of what the card can do, and peak memory;
- optimizer, dora, quantized, compiled: single questions.

Each part writes gpu-PART-DEVICE.json after each of its rungs. The time that a part leaves goes to the parts behind it.
Not run on a GPU so far; a test runs every part on a CPU with `--shapes tiny`.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import common, gpu
from benchmarks.gpu import measure, shapes
from benchmarks.gpu.measure import Part
from roundtrip.runtime import memory

# In the order in which they run, with their weight when the time is divided.
PARTS = {
    "quantized": 2.0,
    "optimizer": 0.5,
    "tokens": 2.0,
    "dora": 1.5,
    "training": 6.0,
    "generation": 6.0,
    "compiled": 1.5,
    "checks": 3.0,
}


def device_name(device: torch.device) -> str:
    """Return the end of a file name: `cpu`, or the GPU's name without its maker."""
    if device.type != "cuda":
        return str(device.type)
    words = re.split(r"[^a-z0-9]+", str(torch.cuda.get_device_name(device)).lower())
    return "-".join(word for word in words if word and word not in ("nvidia", "geforce", "tesla"))


def commit() -> str | None:
    """Return the commit of this tree, with a + where it has changes; None outside of a repository."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def packages() -> dict[str, str | None]:
    """Return the versions of CUDA and of packages that rungs depend on; None for those that are not installed."""
    found: dict[str, str | None] = {"cuda": torch.version.cuda}
    for name in ("accelerate", "triton", "liger-kernel", "flash-attn", "bitsandbytes"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def run_part(name: str, part: Part) -> None:
    """Measure one part and keep what is not the failure of a single rung."""
    module = importlib.import_module(f"benchmarks.gpu.{name}")
    part.report(f"{name}: {part.seconds_left:.0f} s")
    start = time.perf_counter()

    def measured() -> dict[str, Any]:
        module.measure_part(part)
        return {}

    failure = measure.attempt(measured)
    if failure:
        part.report(f"  {name}: {measure.describe(failure)}")
    part.document |= failure
    part.document["seconds"] = time.perf_counter() - start
    part.save()
    # For the next part, and for the tests, which run in a process of their own.
    with suppress(RuntimeError):
        memory.free_after_failure()


def still_works(device: torch.device) -> bool:
    """Return whether the device computes; after an illegal access it does not, until the process ends."""
    try:
        return float(torch.ones(2, device=device).sum()) == 2.0
    except RuntimeError:
        return False


def run_parts(names: Sequence[str], asked: argparse.Namespace, report: Callable[[str], None]) -> list[str]:
    """Run parts, each in its share of the time that is left; return those that a broken device left out."""
    device, end = common.device_of(asked.device), time.perf_counter() + asked.seconds
    peaks, waiting = measure.machine_peaks(device, shapes.dtype_of(device)), list(names)
    if peaks["card_flops"] is None:
        report(f"the data sheet of this device is not known: no MFU, shares of the measured peaks only ({peaks})")
    while waiting:
        now, total = time.perf_counter(), sum(PARTS[name] for name in waiting)
        name = waiting.pop(0)
        path = asked.out / f"gpu-{name}-{device_name(device)}.json"
        document = common.provenance("gpu", device) | {
            "commit": commit(),
            "packages": packages(),
            "part": name,
            "shapes": asked.shapes,
            "peaks": peaks,
            "cases": {},
        }
        deadline = now + max(0.0, end - now) * PARTS[name] / total
        chosen = [shapes.SHAPES[shape] for shape in asked.shapes]
        part = Part(device, chosen, document, partial(common.save, document, path), report, deadline)
        run_part(name, part)
        gpu.show(document, Console(width=200))
        if waiting and not still_works(device):
            asked.seconds = max(0.0, end - time.perf_counter())
            return waiting
    return []


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a parser of names with commas between."""

    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if unknown := [name for name in names if name not in known] or not names:
            raise argparse.ArgumentTypeError(f"{unknown or 'nothing'} is none of {', '.join(known)}")
        return names

    return parse


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=_names(list(PARTS)), default=list(PARTS), help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--shapes", type=_names(list(shapes.SHAPES)), default=["1.5b", "3b"], help="tiny, 1.5b, 3b")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    parser.add_argument("--seconds", type=float, default=480.0, help="for all parts together (480)")
    parser.add_argument("--out", type=Path, default=common.RESULTS, help="folder of the results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    asked, console = parse(arguments), Console(width=200)
    left = run_parts(asked.parts, asked, lambda line: console.print(line, markup=False, highlight=False))
    if not left:
        return 0
    console.print(f"the device does not compute any more; {', '.join(left)} continue in a new process")
    again = ["--parts", ",".join(left), "--shapes", ",".join(asked.shapes), "--device", asked.device]
    again += ["--seconds", str(asked.seconds), "--out", str(asked.out)]
    return subprocess.run([sys.executable, "-m", "benchmarks.gpu", *again]).returncode


if __name__ == "__main__":
    sys.exit(main())
