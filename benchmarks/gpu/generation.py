"""The generation ladder: greedy decoding through the adapter, from a merged copy, by our loop, and with graphs.

Prompts of one length, so many new tokens for each, no stop tokens. `ms_per_step` is half of the new tokens by the
difference to a call that generates the other half, so that reading the prompts is not in it. A step has to read all
weights and the keys and values so far (`of_bandwidth`, of the copy rate that the same process measures, and
`of_card_bandwidth`, of the data sheet), and to multiply each weight with each row (`of_gemm`, 2 FLOP for each, of the
peak that the same process measures): which of the two is larger binds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks import common
from benchmarks.gpu import measure, shapes
from benchmarks.gpu.measure import Figures, Part, Unsupported
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.training import DIRECTIONS, RANK
from roundtrip import Generate
from roundtrip.engine.generate import generate, generate_hf
from roundtrip.engine.request import GenerationRequest, StopRule
from roundtrip.models import adapters, base_model
from roundtrip.recipe.schema import Adapter
from roundtrip.tokens.batching import left_pad

# Seconds that compiling the decode step of a real model may take.
COMPILE_SECONDS = 60.0
# A number of new tokens in, ids out.
Engine = Callable[[int], Any]


@dataclass(frozen=True)
class Models:
    """A base under two adapters, and the merged copy of one of them."""

    peft_model: Any
    merged_copy: Any

    @classmethod
    def of(cls, shape: Shape, device: torch.device) -> Models:
        base = shapes.build_model(shape, device)
        merged_copy = base_model.merged_copy_of(base, next(base.parameters()).device)
        peft_model = adapters.add_adapters(base, dict.fromkeys(DIRECTIONS, Adapter(rank=RANK)), 1)
        adapters.activate(peft_model, DIRECTIONS[0], train=False)
        adapters.write_merged(merged_copy, peft_model, DIRECTIONS[0])
        return cls(peft_model, merged_copy)


def request_of(prompts: Sequence[Sequence[int]], num_new: int, *, cuda_graphs: bool = False) -> GenerationRequest:
    """Return a request for so many new tokens of each prompt, in one batch."""
    settings = Generate(temperature=0.0, cuda_graphs=cuda_graphs, max_tokens_per_batch=10**9)
    return GenerationRequest(prompts, [num_new - 1] * len(prompts), settings, StopRule([]), 0)


def static_cache(model: Any, prompts: Sequence[Sequence[int]], num_new: int) -> torch.Tensor:
    """Generate by transformers with a static cache, whose steps it compiles on a GPU, with CUDA graphs."""
    from transformers import CompileConfig, GenerationConfig

    device = next(model.parameters()).device
    ids_BT, mask_BT = (tensor.to(device) for tensor in left_pad(prompts, 0))
    settings: dict[str, Any] = {}
    if device.type == "cuda":
        settings = {"compile_config": CompileConfig(mode="reduce-overhead", dynamic=False)}
    config = GenerationConfig(
        max_new_tokens=num_new, do_sample=False, pad_token_id=0, cache_implementation="static", **settings
    )
    ids_BS: torch.Tensor = model.generate(ids_BT, attention_mask=mask_BT, generation_config=config)
    return ids_BS


def engines(models: Models, prompts: Sequence[Sequence[int]], device: torch.device) -> dict[str, Engine]:
    """Return the rungs for some prompts, the usual way first."""
    plain, graphs = partial(request_of, prompts), partial(request_of, prompts, cuda_graphs=True)

    def with_graphs(num_new: int) -> Any:
        if device.type != "cuda":
            raise Unsupported("CUDA graphs require a CUDA device")
        return generate(models.merged_copy, graphs(num_new))

    return {
        "generate, through the adapter": lambda num_new: generate_hf(models.peft_model, plain(num_new)),
        "generate, merged copy": lambda num_new: generate_hf(models.merged_copy, plain(num_new)),
        "our loop": lambda num_new: generate(models.merged_copy, plain(num_new)),
        "our loop, CUDA graphs": with_graphs,
        "generate, static cache, torch.compile": partial(static_cache, models.merged_copy, prompts),
    }


def measure_engine(part: Part, shape: Shape, models: Models, batch: int, engine: Engine) -> Figures:
    """Return the figures of one engine for a batch of some rows."""
    sizes, peaks = shape.sizes, part.document["peaks"]
    # The longer call first: its static cache is large enough for the shorter one, which need not be compiled again.
    seconds, peak = measure.seconds_and_peak(part.device, lambda: engine(sizes.new), turns=2)
    half = sizes.new // 2
    shorter = min(common.timed(lambda: engine(half))[0] for _ in range(2))
    step = (seconds - shorter) / (sizes.new - half)
    weights = shapes.num_weights(models.merged_copy)
    # In the middle of the steps that are counted.
    context = sizes.prompt + sizes.new - (sizes.new - half) // 2
    num_bytes = weights * models.merged_copy.dtype.itemsize + batch * context * shape.cache_bytes
    products = 2 * weights * batch + 4 * shape.num_layers * shape.hidden_size * context * batch
    figures: Figures = {"tokens_per_second": batch * sizes.new / seconds, "seconds": seconds, "peak_gib": peak}
    if step <= 0:
        return figures | {"note": "the steps took no time that could be told from that of the prompts"}
    card_bytes = peaks["card_bytes"]
    return figures | {
        "ms_per_step": 1000 * step,
        "of_bandwidth": num_bytes / peaks["copy_bytes"] / step,
        "of_card_bandwidth": num_bytes / card_bytes / step if card_bytes else None,
        "of_gemm": products / peaks["gemm_flops"] / step,
    }


def measure_part(part: Part) -> None:
    """Measure the ladder for each shape and batch; what compiles comes last, for one batch of each shape."""
    part.document["formula"] = " ".join((__doc__ or "").partition("\n\n")[2].split())
    for shape in part.shapes:
        models = part.build(shape.name, partial(Models.of, shape, part.device))
        if models is None:
            continue
        prompts = shapes.random_prompts(shape, max(shape.sizes.batches))
        for compiled in (False, True):
            batches = shape.sizes.batches if not compiled else shape.sizes.batches[-2:-1]
            for batch in batches:
                for name, engine in engines(models, prompts[:batch], part.device).items():
                    if ("compile" in name) == compiled:
                        part.rung(
                            f"{shape.name}, {batch} rows",
                            name,
                            partial(measure_engine, part, shape, models, batch, engine),
                            needs=COMPILE_SECONDS if compiled and part.on_gpu else 0.0,
                        )
        del models
