"""DoRA with and without `ephemeral_gpu_offload`: the time to add the adapters, and the time and memory of a pass.

A run with the option keeps the base in host memory until its adapters are made ("DoRA with offload, base in host
memory"), one without it moves the base first ("DoRA, base on the device"); the other rungs are for comparison.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks import common
from benchmarks.gpu import measure, shapes
from benchmarks.gpu.measure import Figures, Part
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.training import DIRECTIONS, RANK, Rung, Setup, pass_of
from roundtrip.models import adapters
from roundtrip.recipe.schema import Adapter

LORA, DORA = Adapter(rank=RANK), Adapter(rank=RANK, method="dora")
OFFLOADED = DORA.model_copy(update={"ephemeral_gpu_offload": True})
# The adapter, and whether the base is in host memory while adapters are added.
RUNGS = {
    "LoRA, base on the device": (LORA, False),
    "DoRA, base on the device": (DORA, False),
    "DoRA with offload, base on the device": (OFFLOADED, False),
    "DoRA, base in host memory": (DORA, True),
    "DoRA with offload, base in host memory": (OFFLOADED, True),
}


def measure_rung(device: torch.device, shape: Shape, adapter: Adapter, on_host: bool) -> Figures:
    """Return the seconds and the peak memory of adding two adapters, and those of a pass with one of them."""
    base = shapes.build_model(shape, device)
    if on_host:
        base.to("cpu")
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    adding, model = common.timed(lambda: adapters.add_adapters(base, dict.fromkeys(DIRECTIONS, adapter), 1))
    figures: Figures = {"seconds_to_add": adding}
    if device.type == "cuda":
        figures["peak_gib_to_add"] = torch.cuda.max_memory_allocated(device) / 2**30
    figures["seconds_to_move"], _ = common.timed(lambda: model.to(device))
    length = shape.sizes.row_lengths[0]
    setup = Setup(shape, base, model, tables={length: shapes.random_rows(shape, length, device)})
    rung = Rung("", fused=True)
    _, packed = setup.prepare(rung, length)
    seconds, peak = measure.seconds_and_peak(device, pass_of(setup, rung, setup.tables[length], packed))
    rate = sum(setup.tables[length].sizes) / seconds
    return figures | {"tokens_per_second": rate, "ms": 1000 * seconds, "peak_gib": peak}


def measure_part(part: Part) -> None:
    """Measure the first shape."""
    shape = part.shapes[0]
    for name, (adapter, on_host) in RUNGS.items():
        part.rung(shape.name, name, partial(measure_rung, part.device, shape, adapter, on_host))
