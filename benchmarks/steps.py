"""python -m benchmarks.steps: how long one step takes, of generation and of training, by models of two shapes.

Random weights, so that no file is needed: `small` is the model of recipes/multi30k-base.toml in float32, `smollm2` has
the shape of SmolLM2-135M in bfloat16 (all of its weights learn here, which an adapter would not). Prompts of 25 tokens
and 40 new ones, 256 rows; training rows of 40 tokens. On a GPU also with graphs. What a GPU shows here is how long it
takes to launch: a step of 128 rows takes as long as one of 32. Writes benchmarks/results/steps-NAME.json.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.machine import RESULTS, best, parser, processor
from roundtrip.backtranslation.run_folder import versions
from roundtrip.engine.generate import generate
from roundtrip.engine.request import GenerationRequest, StopRule
from roundtrip.engine.train_step import StepSettings, train_step
from roundtrip.models import attention
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe.schema import Generate, Train
from roundtrip.tokens.batching import TokenDataset
from roundtrip.tokens.prompt_template import TokenRow

# Layers, width, heads, vocabulary, precision.
SHAPES = {"small": (6, 256, 4, 6000, torch.float32), "smollm2": (30, 576, 9, 49152, torch.bfloat16)}
NEW = 40


def model_of(shape: str, device: str) -> Any:
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
    return LlamaForCausalLM(config).to(device=device, dtype=dtype)


def measure(shape: str, device: str, rows: int, turns: int) -> dict[str, float]:
    """Return milliseconds of one step by road."""
    model = model_of(shape, device)
    found = {}
    row_builders = {"generate": False, "generate, graphs": True} if device == "cuda" else {"generate": False}
    for row_builder, graphs in row_builders.items():
        settings = Generate(cuda_graphs=graphs, max_tokens_per_batch=10**6)

        def write(settings: Generate = settings) -> None:
            model.eval()
            prompts = [list(range(5, 30))] * rows
            generate(model, GenerationRequest(prompts, [NEW] * rows, settings, StopRule([1]), 1))

        found[f"{row_builder}, {rows} rows"] = best({"": write}, turns)[""] / (NEW + 1) * 1000
    optimizer = Optimizer(dict(model.named_parameters()), Train(), 1000)
    table = TokenDataset.of([TokenRow(list(range(5, 45)), 20)] * 128, device)
    for kind in ("sdpa", "eager"):
        for size in (32, 128):

            def learn(size: int = size) -> None:
                model.train()
                train_step(model, optimizer, table, range(size), StepSettings(0, 10**6), seed=1)

            attention.choose(model, kind)
            found[f"learn, {kind}, {size} rows"] = best({"": learn}, turns)[""] * 1000
    return found


def main() -> None:
    asking = parser(__doc__, turns=3)
    asking.add_argument("--rows", type=int, default=256)
    asked = asking.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    document = {
        "hardware": processor(),
        "versions": versions(),
        "milliseconds": {shape: measure(shape, device, asked.rows, asked.turns) for shape in SHAPES},
    }
    path = RESULTS / f"steps-{asked.name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for shape, found in document["milliseconds"].items():
        sys.stdout.write("".join(f"{shape}, {row_builder}: {value:.1f} ms\n" for row_builder, value in found.items()))


if __name__ == "__main__":
    main()
