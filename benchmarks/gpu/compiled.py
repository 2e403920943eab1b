"""torch.compile under two adapters, on a few layers of the real width: see `benchmarks.compiled`.

After both directions were seen once a switch between them must compile nothing; results are compared with those of the
model that is not compiled, in the precision of the base.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks import compiled
from benchmarks.gpu import shapes
from benchmarks.gpu.measure import Figures, Part
from benchmarks.gpu.shapes import Shape
from roundtrip.models import adapters, base_model, prepacked_linear
from roundtrip.recipe.schema import Adapter

NUM_ROWS, LENGTH = 16, 128


def build_models(shape: Shape, device: torch.device) -> tuple[Any, Any]:
    """Return a PEFT model with two adapters that change something, and a merged copy of its base."""
    base = shapes.build_model(shape, device, num_hidden_layers=shape.sizes.compiled_layers)
    merged_copy = base_model.merged_copy_of(base, next(base.parameters()).device)
    # torch.compile cannot trace weights in the layout of oneDNN.
    prepacked_linear.restore_linear(merged_copy)
    peft_model = adapters.add_adapters(base, dict.fromkeys(compiled.NAMES, Adapter(rank=8)), 1)
    for name in compiled.NAMES:
        for parameter in adapters.parameters(peft_model, name).values():
            torch.nn.init.normal_(parameter, std=0.02)
    return peft_model, merged_copy


def measure_variant(part: Part, shape: Shape, title: str) -> Figures:
    """Return the figures of one variant; on a CPU, where nobody waits for machine code, the graphs alone are made."""
    generator = torch.Generator().manual_seed(1)
    rows = (NUM_ROWS, LENGTH) if part.on_gpu else (2, 8)
    ids_BT = torch.randint(5, shape.vocab_size, rows, generator=generator).to(part.device)
    backend = "inductor" if part.on_gpu else "eager"
    build = partial(build_models, shape, part.device)
    return {"backend": backend, **compiled.measure_variant(title, build, ids_BT, backend)}


def measure_part(part: Part) -> None:
    """Measure the first shape."""
    shape = part.shapes[0]
    case = f"{shape.name}, layers: {shape.sizes.compiled_layers}"
    for title in compiled.TITLES:
        part.rung(case, title, partial(measure_variant, part, shape, title))
