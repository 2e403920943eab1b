"""python -m benchmarks.steps: how long one step of generation and of training takes, for models of two shapes.

Random weights, so that no file is needed: `small` is the model of recipes/multi30k-base.toml in float32, `smollm2` has
the shape of SmolLM2-135M in bfloat16 (all of its weights are trained here, unlike with an adapter). Prompts of 25
tokens and 40 new ones, 256 rows; training rows of 40 tokens. On a GPU also with CUDA graphs. On a GPU this measures
the launch overhead: a step of 128 rows takes as long as one of 32. Writes benchmarks/results/steps-NAME.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import common
from roundtrip import Optimizer, StepSettings, TokenDataset, train_step
from roundtrip.engine.generate import generate
from roundtrip.engine.request import GenerationRequest, StopRule
from roundtrip.models import attention
from roundtrip.recipe.schema import Generate, Train
from roundtrip.tokens.prompt_template import TokenRow

# Layers, width, heads, vocabulary, precision.
SHAPES = {"small": (6, 256, 4, 6000, "float32"), "smollm2": (30, 576, 9, 49152, "bfloat16")}
NUM_NEW = 40


def build_model(shape: str, device: str) -> Any:
    """Return a Llama of a shape of SHAPES with random weights."""
    layers, width, heads, vocabulary, dtype = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(device=device, dtype=getattr(torch, dtype))


def measure(shape: str, device: str, rows: int, turns: int) -> dict[str, float]:
    """Return milliseconds of one step by variant."""
    model = build_model(shape, device)
    milliseconds = {}
    variants = {"generate": False, "generate, graphs": True} if device == "cuda" else {"generate": False}
    for variant, graphs in variants.items():
        settings = Generate(cuda_graphs=graphs, max_tokens_per_batch=10**6)

        def run_generation(settings: Generate = settings) -> None:
            model.eval()
            prompts = [list(range(5, 30))] * rows
            generate(model, GenerationRequest(prompts, [NUM_NEW] * rows, settings, StopRule([1]), 1))

        milliseconds[f"{variant}, {rows} rows"] = common.best({"": run_generation}, turns)[""] / (NUM_NEW + 1) * 1000
    optimizer = Optimizer(dict(model.named_parameters()), Train(), 1000)
    table = TokenDataset.of([TokenRow(list(range(5, 45)), 20)] * 128, device)
    for kind in ("sdpa", "eager"):
        for size in (32, 128):

            def run_step(size: int = size) -> None:
                model.train()
                train_step(model, optimizer, table, range(size), StepSettings(0, 10**6), seed=1)

            attention.choose(model, kind)
            milliseconds[f"train, {kind}, {size} rows"] = common.best({"": run_step}, turns)[""] * 1000
    return milliseconds


def show(document: Mapping[str, Any], console: Console) -> None:
    shapes = document["milliseconds"]
    variants = dict.fromkeys(variant for figures in shapes.values() for variant in figures)
    rows = [(v, *(f"{shapes[shape][v]:.1f}" if v in shapes[shape] else "" for shape in shapes)) for v in variants]
    common.print_table(console, "milliseconds of one step", ["variant", *shapes], rows)


def main() -> None:
    parser = common.parser(__doc__, turns=3, device=True)
    parser.add_argument("--rows", type=int, default=256)
    asked = parser.parse_args()
    device = common.device_of(asked.device).type
    document = common.provenance("steps", device)
    document["milliseconds"] = {shape: measure(shape, device, asked.rows, asked.turns) for shape in SHAPES}
    common.finish(document, common.result_path("steps", asked.name), show)


if __name__ == "__main__":
    main()
