"""python -m benchmarks.compiled: does torch.compile take a base under two adapters, without a recompile at each switch?

A Llama of a few layers with random weights, two LoRA adapters, the same inputs. Each road is called for one direction,
then the other, to and fro; after each call the graphs that torch has compiled so far are counted, and what comes out is
compared with the plain road. Roads:

- PEFT model, evaluation: `set_adapter`, forward;
- PEFT model, training: `set_adapter`, forward and backward, as a phase of a run does;
- scratch copy: its weights are written anew in place for each direction, forward.

Writes benchmarks/results/compiled-NAME.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Shown
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.machine import best, processor
from roundtrip.backtranslation.run_folder import versions
from roundtrip.models import adapters, base_model
from roundtrip.recipe.schema import Adapter

RESULTS = Path("benchmarks/results")
NAMES = ("en-es", "es-en")
TURNS = 4


def made(layers: int, device: torch.device) -> tuple[Any, Any]:
    """Return a PEFT model with two adapters, and a plain copy of its base."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000, hidden_size=256, intermediate_size=512, num_hidden_layers=layers, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).to(device).requires_grad_(False)
    merged_copy = base_model.merged_copy_of(model)
    two = adapters.add_adapters(model, dict.fromkeys(NAMES, Adapter(rank=8)), 1)
    for name in NAMES:
        for parameter in adapters.parameters(two, name).values():
            torch.nn.init.normal_(parameter, std=0.05)
    return two, merged_copy


def graphs() -> int:
    """Return how many graphs have been compiled in this process since the last reset."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


RowBuilder = Callable[[str, Any], torch.Tensor]


def counted(row_builder: RowBuilder, work: RowBuilder, plain: Any, compiled: Any) -> dict[str, Any]:
    """Call a compiled road for each direction in turns.

    Args:
        road: takes a direction and a model, returns what to compare.
        work: the part of it that is timed.
    """
    torch._dynamo.utils.counters.clear()
    seen, seconds, apart = [], [], 0.0
    for _ in range(TURNS):
        for name in NAMES:
            expected = row_builder(name, plain)
            start = time.perf_counter()
            found = row_builder(name, compiled)
            seconds.append(round(time.perf_counter() - start, 3))
            apart = max(apart, float((found - expected).abs().max()))
            seen.append(graphs())
    times = best({"plain": lambda: work(NAMES[0], plain), "compiled": lambda: work(NAMES[0], compiled)}, 5)
    return {
        "graphs_after_each_call": seen,
        "seconds_of_each_call": seconds,
        "largest_difference": apart,
        "recompiles_after_both_were_seen": seen[-1] - seen[1],
        "speed": times["plain"] / times["compiled"],
    }


def measure(layers: int, device: torch.device) -> dict[str, Any]:
    ids = torch.randint(5, 1000, (4, 32), generator=torch.Generator().manual_seed(1)).to(device)

    def evaluated(name: str, model: Any) -> torch.Tensor:
        adapters.activate(two, name, train=False)
        with torch.no_grad():
            return torch.as_tensor(model(input_ids=ids, use_cache=False).logits)

    def trained(name: str, model: Any) -> torch.Tensor:
        adapters.activate(two, name, train=True)
        model(input_ids=ids, use_cache=False).logits.float().square().mean().backward()
        grads = [parameter.grad for parameter in adapters.parameters(two, name).values()]
        found = torch.cat([grad.flatten() for grad in grads if grad is not None])
        for parameter in adapters.parameters(two, name).values():
            parameter.grad = None
        return found

    def rewritten(name: str, model: Any) -> torch.Tensor:
        adapters.write_merged(merged_copy, two, name)
        with torch.no_grad():
            return torch.as_tensor(model(input_ids=ids, use_cache=False).logits)

    found = {}

    def forward(name: str, model: Any) -> torch.Tensor:
        with torch.no_grad():
            return torch.as_tensor(model(input_ids=ids, use_cache=False).logits)

    row_builders = {"PEFT, evaluation": (evaluated, evaluated), "PEFT, training": (trained, trained)}
    row_builders["scratch copy"] = (rewritten, forward)
    # Past this limit torch would go on without compiling, and the count would stand still.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for title, (row_builder, work) in row_builders.items():
        two, merged_copy = made(layers, device)
        torch._dynamo.reset()
        plain = merged_copy if title == "scratch copy" else two
        found[title] = counted(row_builder, work, plain, torch.compile(plain))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="cpu", help="what to call this machine in the file names")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, default=4)
    asked = parser.parse_args()
    found = measure(asked.layers, torch.device(asked.device))
    document = {
        "command": "python -m benchmarks.compiled " + " ".join(sys.argv[1:]),
        "hardware": {"processor": processor(), "threads": torch.get_num_threads(), "device": asked.device},
        "versions": versions(),
        "roads": found,
    }
    (RESULTS / f"compiled-{asked.name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    table = Shown(title=f"two adapters, {2 * TURNS} calls in turns")
    for column in ("road", "graphs after each call", "recompiles later", "largest difference", "speed"):
        table.add_column(column)
    for name, one in found.items():
        table.add_row(
            name,
            " ".join(map(str, one["graphs_after_each_call"])),
            str(one["recompiles_after_both_were_seen"]),
            f"{one['largest_difference']:.1e}",
            f"{one['speed']:.2f} x",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
