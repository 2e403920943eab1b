"""Making training rows of generated ids on the device: text path against splice, and their share of a whole round.

The text path decodes, renders and encodes on the host. `syncs` counts how often the host waited for the GPU in a call
(`torch.cuda.set_sync_debug_mode`); `exact` is the share of rows equal to those of the text path, `proved` that of the
rows that the checker let pass. Of the round, `of_round` is the time of making rows over that of generating the sources
by our loop, training on the rows, and making them; with a round that takes the text path, decoding waits for nothing
else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from benchmarks import batches, common, row_variants
from benchmarks.batches import Case, Kit
from benchmarks.gpu import measure, shapes
from benchmarks.gpu.generation import Models
from benchmarks.gpu.measure import Figures, Part
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.training import DIRECTIONS, RANK
from benchmarks.row_variants import Timed
from benchmarks.tokens import right_rows
from roundtrip import Generate, Optimizer, StepSettings, TokenDataset, train_step
from roundtrip.engine.generate import generate
from roundtrip.engine.request import GenerationRequest, StopRule
from roundtrip.models import adapters
from roundtrip.recipe.schema import Adapter, Train
from roundtrip.tokens.batching import step_batches

ROWS_PER_STEP = 64


def variants_of(kit: Kit, case: Case) -> dict[str, Timed]:
    """Return the ways to make the rows of a batch."""
    text = {
        "text path": Timed(lambda: row_variants.by_text(kit, case)),
        "text path, fewest calls": Timed(lambda: row_variants.by_fewest_calls(kit, case)),
    }
    ours = row_variants.splice_variants(kit, case, False) if kit.row_builder.checker is not None else {}
    chosen = {name: variant for name, variant in ours.items() if "cold" not in name}
    return (
        text | chosen | {"RowBuilder.build": Timed(lambda: row_variants.by_builder(kit.row_builder, case, case.texts))}
    )


def num_syncs(device: torch.device, call: Callable[[], Any]) -> int | None:
    """Return how often the host waits for the GPU in a call; None without one."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def measure_variant(device: torch.device, case: Case, variant: Timed) -> Figures:
    """Return the figures of one way to make the rows of a batch."""
    seconds = measure.median_seconds(variant.run, turns=7, seconds=1.0)
    return {
        "ms": 1000 * seconds,
        "rows_per_second": len(case.targets) / seconds,
        "syncs": num_syncs(device, variant.run),
        **right_rows(variant.run(), case.expected),
    }


def generation_seconds(models: Models, kit: Kit, case: Case, *, cuda_graphs: bool) -> float:
    """Return the seconds in which our loop generates sources as long as those of a case, by the reverse direction."""
    prompts = kit.reverse.prompts(case.targets)
    limits = [max(1, len(ids) - 1) for ids in case.hypotheses]
    settings = Generate(temperature=0.0, cuda_graphs=cuda_graphs, max_tokens_per_batch=65_536)
    request = GenerationRequest(prompts, limits, settings, StopRule([]), 0)
    return measure.median_seconds(lambda: generate(models.merged_copy, request), turns=1)


def training_seconds(models: Models, case: Case, device: torch.device, max_tokens: int) -> float:
    """Return the seconds in which an adapter is trained on the rows of a case, once."""
    table = TokenDataset.of(case.expected, device)
    groups = step_batches(table.sizes, ROWS_PER_STEP, 0)
    name = DIRECTIONS[0]
    optimizer = Optimizer(adapters.parameters(models.peft_model, name), Train(), len(groups), Adapter(rank=RANK))
    settings = StepSettings(0, max_tokens)
    adapters.activate(models.peft_model, name, train=True)

    def steps(number: int) -> None:
        for group in groups[:number]:
            train_step(models.peft_model, optimizer, table, group, settings, seed=1)

    steps(2)  # warm-up
    seconds, _ = common.timed(lambda: steps(len(groups)))
    adapters.freeze(models.peft_model)
    return seconds


def measure_models(part: Part, shape: Shape, kit: Kit, case: Case) -> Figures:
    """Return the seconds that the models take in a round of some lines of one direction."""
    models = Models.of(shape, part.device)
    return {
        "generation_seconds": generation_seconds(models, kit, case, cuda_graphs=part.on_gpu),
        "training_seconds": training_seconds(models, case, part.device, shape.sizes.tokens_per_forward),
    }


def share_of_round(variant: Timed, seconds_of_models: float) -> Figures:
    """Return the time of one way to make the rows of a round, and its share."""
    seconds = measure.median_seconds(variant.run, turns=5, seconds=2.0)
    return {"ms": 1000 * seconds, "of_round": seconds / (seconds_of_models + seconds)}


def measure_round(part: Part, shape: Shape, kit: Kit, case: Case) -> None:
    """Measure a round: first the models, then each way to make its rows."""
    title, name = f"{shape.name}, a round of {len(case.targets)} lines", "the models"
    if part.rung(title, name, partial(measure_models, part, shape, kit, case)):
        seconds = sum(part.document["cases"][title][name].values())
        for variant_name, variant in variants_of(kit, case).items():
            part.rung(title, variant_name, partial(share_of_round, variant, seconds))


def cases_of(kit: Kit, shape: Shape, device: torch.device) -> Mapping[int, Case]:
    """Return a case of each number of rows that is measured."""
    lines, sizes = shapes.lines_of(shape), shape.sizes
    return {number: batches.case(kit, lines[:number], device) for number in {*sizes.row_batches, sizes.round_lines}}


def measure_part(part: Part) -> None:
    """Measure every batch with the text of the first shape, and then a round with its model."""
    part.document["formula"] = " ".join((__doc__ or "").partition("\n\n")[2].split())
    shape = part.shapes[0]
    kit = part.build(
        "tokenizer and tables",
        lambda: batches.kit(shapes.tokenizer_of(shape), shapes.lines_of(shape), part.device),
    )
    cases = None if kit is None else part.build("text", lambda: cases_of(kit, shape, part.device))
    if kit is None or cases is None:
        return
    part.document["vocabulary"] = len(kit.forward.tokenizer)
    measure_round(part, shape, kit, cases[shape.sizes.round_lines])
    for number in shape.sizes.row_batches:
        for name, variant in variants_of(kit, cases[number]).items():
            part.rung(f"{number} rows", name, partial(measure_variant, part.device, cases[number], variant))
