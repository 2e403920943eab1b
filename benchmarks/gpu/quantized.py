"""A base in 4 and 8 bits by bitsandbytes, loaded as a run loads it: memory, training and decoding.

A quantized base generates through the adapter, since it has no weights that an adapter could be merged into.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.gpu import measure, shapes
from benchmarks.gpu.generation import request_of
from benchmarks.gpu.measure import Figures, Part
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.training import DIRECTIONS, RANK
from roundtrip import StepSettings
from roundtrip.engine.generate import generate
from roundtrip.engine.train_step import loss_sum
from roundtrip.models import direction_model
from roundtrip.models.direction_model import DirectionModel
from roundtrip.recipe.schema import Adapter, Model
from roundtrip.tokens.batching import token_budget_batches

BITS = ("none", "8bit", "4bit")


def save_base(shape: Shape, part: Part, folder: Path) -> bool:
    """Write the model of a shape and its tokenizer."""
    model = shapes.build_model(shape, part.device)
    model.save_pretrained(folder)
    shapes.tokenizer_of(shape).save_pretrained(folder)
    return True


def measure_rung(part: Part, shape: Shape, folder: Path, bits: Any) -> Figures:
    """Return the figures of one precision of the base."""
    if bits != "none":
        measure.require("bitsandbytes")
    name = DIRECTIONS[0]
    spec = Model(path=str(folder), quantize=bits, device=str(part.device), attention="sdpa")
    loading, models = common.timed(
        lambda: direction_model.load({name: spec}, {name: Adapter(rank=RANK)}, folder, one_base=False, seed=1)
    )
    direction: DirectionModel = models[name]
    num_bytes = direction.base.model.get_memory_footprint()
    figures: Figures = {"seconds_to_load": loading, "base_gib": num_bytes / 2**30}
    table = shapes.random_rows(shape, shape.sizes.row_lengths[0], part.device)
    groups = list(token_budget_batches(range(len(table)), table.sizes, shape.sizes.tokens_per_forward))
    settings = StepSettings(0, shape.sizes.tokens_per_forward)

    def train_pass() -> None:
        for group in groups:
            loss_sum(direction.model, settings.batch(table, group)).backward()
        for parameter in direction.parameters().values():
            parameter.grad = None

    with direction.training():
        seconds, peak = measure.seconds_and_peak(part.device, train_pass)
    figures |= {"trained_tokens_per_second": sum(table.sizes) / seconds, "training_peak_gib": peak}
    batch, num_new = shape.sizes.batches[-2], shape.sizes.new
    request = request_of(shapes.random_prompts(shape, batch), num_new)
    with direction.generating() as model:
        seconds, peak = measure.seconds_and_peak(part.device, lambda: generate(model, request))
    return figures | {"generated_tokens_per_second": batch * num_new / seconds, "generating_peak_gib": peak}


def measure_part(part: Part) -> None:
    """Measure the first shape; the model is written to disk first, since bitsandbytes quantizes what is loaded."""
    shape = part.shapes[0]
    with tempfile.TemporaryDirectory() as folder:
        if part.build(shape.name, partial(save_base, shape, part, Path(folder))):
            for bits in BITS:
                name = "not quantized, merged copy" if bits == "none" else f"{bits}, through the adapter"
                part.rung(shape.name, name, partial(measure_rung, part, shape, Path(folder), bits))
