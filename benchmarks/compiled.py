"""python -m benchmarks.compiled: does torch.compile take a base under two adapters, without a recompile at each switch?

A Llama of a few layers with random weights, two LoRA adapters, the same inputs. Each variant is called for the two
directions in alternation; after each call the graphs that torch has compiled so far are counted, and the result is
compared with the one of the variant that is not compiled. Variants:

- PEFT model, evaluation: `set_adapter`, forward;
- PEFT model, training: `set_adapter`, forward and backward, as a phase of a run does;
- merged copy: its weights are replaced in its memory for each direction, forward.

Writes benchmarks/results/compiled-NAME.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import common
from roundtrip.models import adapters, base_model, prepacked_linear
from roundtrip.recipe.schema import Adapter

NAMES = ("en-es", "es-en")
TURNS = 4
TITLES = ("PEFT, evaluation", "PEFT, training", "merged copy")
# A direction and a model in, something to compare out.
Variant = Callable[[str, Any], Any]


def build_models(layers: int, device: torch.device) -> tuple[Any, Any]:
    """Return a PEFT model with two adapters, and a merged copy of its base."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000, hidden_size=256, intermediate_size=512, num_hidden_layers=layers, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).to(device).requires_grad_(False)
    merged_copy = base_model.merged_copy_of(model, next(model.parameters()).device)
    # torch.compile cannot trace weights in the layout of oneDNN.
    prepacked_linear.restore_linear(merged_copy)
    peft_model = adapters.add_adapters(model, dict.fromkeys(NAMES, Adapter(rank=8)), 1)
    for name in NAMES:
        for parameter in adapters.parameters(peft_model, name).values():
            torch.nn.init.normal_(parameter, std=0.05)
    return peft_model, merged_copy


def compare(variant: Variant, timed_part: Variant, plain: Any, compiled: Any) -> dict[str, Any]:
    """Call a variant for the two directions in alternation, with the plain and the compiled model.

    Args:
        timed_part: the part of the variant that is timed.
    """
    torch._dynamo.utils.counters.clear()
    num_graphs, seconds, difference = [], [], 0.0
    for _ in range(TURNS):
        for name in NAMES:
            expected = variant(name, plain)
            elapsed, result = common.timed(partial(variant, name, compiled))
            seconds.append(round(elapsed, 3))
            difference = max(difference, float((result - expected).abs().max()))
            num_graphs.append(int(torch._dynamo.utils.counters["stats"]["unique_graphs"]))
    times = common.best(
        {"plain": lambda: timed_part(NAMES[0], plain), "compiled": lambda: timed_part(NAMES[0], compiled)}, 5
    )
    return {
        "graphs_after_each_call": num_graphs,
        "seconds_of_each_call": seconds,
        "largest_difference": difference,
        "recompiles_after_both_were_seen": num_graphs[-1] - num_graphs[1],
        "speed": times["plain"] / times["compiled"],
    }


def measure_variant(
    title: str, build: Callable[[], tuple[Any, Any]], ids_BT: torch.Tensor, backend: str = "inductor"
) -> dict[str, Any]:
    """Return what was counted and timed of one variant of TITLES, with new models.

    Args:
        build: returns a PEFT model with adapters of NAMES, and a merged copy of its base.
        ids_BT: inputs, on the device of the models.
    """
    peft_model, merged_copy = build()

    def forward(name: str, model: Any) -> torch.Tensor:
        with torch.no_grad():
            return torch.as_tensor(model(input_ids=ids_BT, use_cache=False).logits)

    def evaluate(name: str, model: Any) -> torch.Tensor:
        adapters.activate(peft_model, name, train=False)
        return forward(name, model)

    def train(name: str, model: Any) -> torch.Tensor:
        adapters.activate(peft_model, name, train=True)
        model(input_ids=ids_BT, use_cache=False).logits.float().square().mean().backward()
        grads = [parameter.grad for parameter in adapters.parameters(peft_model, name).values()]
        flat = torch.cat([grad.flatten() for grad in grads if grad is not None])
        for parameter in adapters.parameters(peft_model, name).values():
            parameter.grad = None
        return flat

    def merge(name: str, model: Any) -> torch.Tensor:
        adapters.write_merged(merged_copy, peft_model, name)
        return forward(name, model)

    variants: dict[str, tuple[Variant, Variant]] = dict(
        zip(TITLES, ((evaluate, evaluate), (train, train), (merge, forward)), strict=True)
    )
    variant, timed_part = variants[title]
    torch._dynamo.reset()
    plain = merged_copy if variant is merge else peft_model
    # Past this limit torch would continue without compiling, and the count would not grow.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        return compare(variant, timed_part, plain, torch.compile(plain, backend=backend))


def measure(layers: int, device: torch.device) -> dict[str, Any]:
    """Return what was counted and timed of each variant."""
    ids_BT = torch.randint(5, 1000, (4, 32), generator=torch.Generator().manual_seed(1)).to(device)
    return {title: measure_variant(title, partial(build_models, layers, device), ids_BT) for title in TITLES}


def show(document: Mapping[str, Any], console: Console) -> None:
    columns = ("variant", "graphs after each call", "recompiles later", "largest difference", "speed")
    rows = [
        (
            name,
            " ".join(map(str, figures["graphs_after_each_call"])),
            str(figures["recompiles_after_both_were_seen"]),
            f"{figures['largest_difference']:.1e}",
            f"{figures['speed']:.2f} x",
        )
        for name, figures in document["variants"].items()
    ]
    common.print_table(console, f"two adapters, {2 * TURNS} calls in alternation", columns, rows)


def main() -> None:
    parser = common.parser(__doc__, device=True)
    parser.add_argument("--layers", type=int, default=4)
    asked = parser.parse_args()
    device = common.device_of(asked.device)
    document = common.provenance("compiled", device) | {"variants": measure(asked.layers, device)}
    common.finish(document, common.result_path("compiled", asked.name), show)


if __name__ == "__main__":
    main()
