"""python -m benchmarks.train: a ladder of training, where each row adds one lever to the row above.

The quickstart's model and its pairs, one process, roads in turns: forward and backward over the same rows, optimizer
aside. It begins as the library's defaults do (adapters in float32, sdpa, batches of neighbours in the file, logits at
every position) and ends as a run trains here. Share of the GEMM peak that the same process measures first: tokens/s
times 4 FLOP for each weight (forward, and the gradient of what goes in; the base is frozen), padding not counted.
`done` counts the output layer only where there are labels, which is what is computed from the fourth road on. Memory is
what a pass adds to what is held before it. Writes benchmarks/results/train-NAME.json and .png.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import Linear
from rich.console import Console
from rich.table import Table as Shown

from benchmarks.machine import RESULTS, best, done, facts, parser, peaks
from roundtrip.data.corpora import prepare
from roundtrip.engine import translator
from roundtrip.engine.train_step import loss_sum
from roundtrip.engine.translator import Translator
from roundtrip.models import attention
from roundtrip.models.fused_lora import FusedLinear
from roundtrip.recipe import loader
from roundtrip.tokens.batching import IGNORE, Batch, TokenDataset, collate, pack, token_budget_batches

ROWS_PER_BATCH = 16


def all_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Return the loss as the library has it: logits at every position, in float32."""
    logits = model(input_ids=batch.ids_BT, use_cache=False, **batch.inputs).logits
    targets = batch.labels_BT[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets, ignore_index=IGNORE, reduction="sum"
    )


def neighbours(table: TokenDataset, pad_id: int, size: int) -> list[Batch]:
    """Return batches of rows as they stand in the file, whatever their length."""
    starts = range(0, len(table), size)
    return [collate(table, range(start, min(start + size, len(table))), pad_id) for start in starts]


def alike(table: TokenDataset, pad_id: int, budget: int) -> list[Batch]:
    """Return batches of rows of like length within a budget of tokens."""
    return [collate(table, group, pad_id) for group in token_budget_batches(range(len(table)), table.sizes, budget)]


def packed(table: TokenDataset, budget: int) -> list[Batch]:
    return [pack(table, group) for group in token_budget_batches(range(len(table)), table.sizes, budget, packed=True)]


def row_builder(
    one: Translator,
    batches: Sequence[Batch],
    name: str,
    loss_of: Callable[[Any, Batch], torch.Tensor],
    *,
    fused: bool = False,
) -> Callable[[], None]:
    """Return a pass over all batches.

    Args:
        name: of the attention.
        fused: whether a layer and its adapter are one operation.
    """

    def run() -> None:
        attention.choose(one.base.model, name)
        for layer in one.direction_model.model.modules():
            if isinstance(layer, FusedLinear | Linear):
                layer.__class__ = FusedLinear if fused else Linear
        for batch in batches:
            loss_of(one.direction_model.model, batch).backward()
        for parameter in one.direction_model.parameters().values():
            parameter.grad = None

    return run


def ladder(
    both: Mapping[str, Translator], table: TokenDataset, budget: int, *, compiled: bool
) -> dict[str, Callable[[], None]]:
    """Return the roads, from the library's defaults up.

    Args:
        both: by precision of the adapters, `float32` and `base`.
    """
    plain, ours = both["float32"], both["base"]
    pad = plain.base.pad_id
    here = plain.base.device.type
    by_length = alike(table, pad, budget)
    # As many batches of rows as they come as there are of rows of like length.
    large = neighbours(table, pad, -(-len(table) // len(by_length)))
    steps = {
        "defaults, 16 rows": row_builder(plain, neighbours(table, pad, ROWS_PER_BATCH), "sdpa", all_logits),
        "+ larger batches": row_builder(plain, large, "sdpa", all_logits),
        "+ rows of like length": row_builder(plain, by_length, "sdpa", all_logits),
        "+ logits at labels": row_builder(plain, by_length, "sdpa", loss_sum),
        "+ adapters as the base": row_builder(ours, by_length, "sdpa", loss_sum),
        "+ eager attention": row_builder(ours, by_length, "eager", loss_sum),
        "+ packed rows, varlen attention": row_builder(ours, packed(table, budget), "varlen", loss_sum),
        "+ LoRA in one operation": row_builder(ours, packed(table, budget), "varlen", loss_sum, fused=True),
        "packed rows, sdpa with a mask": row_builder(ours, packed(table, budget), "sdpa", loss_sum, fused=True),
    }
    if here == "cuda" and importlib.util.find_spec("flash_attn") is not None:
        flash = packed(table, budget)
        steps["packed rows, FlashAttention"] = row_builder(ours, flash, "flash_attention_2", loss_sum, fused=True)
    if compiled:
        graph = torch.compile(ours.direction_model.model, dynamic=True)
        steps["padded, torch.compile"] = row_builder(
            ours, by_length, "eager", lambda model, batch: loss_sum(graph, batch)
        )
    return steps


def with_liger(liger: Translator, table: TokenDataset, budget: int) -> dict[str, Callable[[], None]]:
    """Return the roads with Liger's kernels, which change the model they are on."""

    def fused(model: Any, batch: Batch) -> torch.Tensor:
        return loss_sum(model, batch, fused=True)

    more = {"packed rows, varlen, Liger": row_builder(liger, packed(table, budget), "varlen", fused, fused=True)}
    if importlib.util.find_spec("flash_attn") is not None:
        flash = packed(table, budget)
        more["packed rows, FlashAttention, Liger"] = row_builder(liger, flash, "flash_attention_2", fused, fused=True)
    return more


def show(document: Mapping[str, Any], console: Console) -> None:
    table = Shown(title=f"{document['tokens']:,} tokens of {document['rows']} rows, forward and backward")
    for column in ("road", "tokens/s", "times the first", "share of the GEMM peak", "done", "memory, GiB"):
        table.add_column(column, justify="left" if column == "road" else "right")
    first = next(iter(document["seconds"].values()))
    for name, seconds in document["seconds"].items():
        share, needed = shares(document, seconds)
        rate, memory = document["tokens"] / seconds, document["peak_bytes"][name] / 2**30
        table.add_row(name, f"{rate:,.0f}", f"{first / seconds:.2f}", f"{share:.0%}", f"{needed:.0%}", f"{memory:.2f}")
    console.print(table)


def shares(document: Mapping[str, Any], seconds: float) -> tuple[float, float]:
    """Return the share of the peak as if all weights were used for each token, and that of what is needed."""
    per_weight = 4 / seconds / document["gemm_flops"]
    needed = done(document, document["tokens"], document["labels"])
    return document["tokens"] * document["weights"] * per_weight, needed * per_weight


def draw(document: Mapping[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(document["seconds"])
    figure, panel = pyplot.subplots(figsize=(8, 0.8 + 0.4 * len(names)))
    found = [100 * shares(document, document["seconds"][name])[0] for name in names]
    bars = panel.barh(names, found, color="tab:blue")
    panel.bar_label(bars, [f"{value:.0f} %" for value in found], padding=3, fontsize="small")
    panel.invert_yaxis()
    panel.set(xlabel="share of the GEMM peak, %", xlim=(0, 100))
    panel.set_title(document["hardware"]["processor"], fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def load(device: str, *changes: str) -> tuple[Any, Translator]:
    loaded = loader.load_recipe("quickstart", [f"model.device={device}", *changes])
    return loaded, next(iter(translator.load(loaded.recipe, loaded.folder).values()))


def main() -> None:
    asking = parser(__doc__, turns=3)
    asking.add_argument("--rows", type=int, default=128)
    asking.add_argument("--compile", action="store_true", help="also torch.compile, which takes minutes")
    asked = asking.parse_args()
    loaded, ours = load(asked.device)
    _, plain = load(asked.device, "adapter.dtype=float32")
    recipe = loaded.recipe
    with tempfile.TemporaryDirectory() as folder:
        corpora = prepare(recipe, loaded.folder, Path(folder), lambda text: None)
        pairs = [(row[0], row[1]) for row in corpora.train[: asked.rows]]
    table = TokenDataset.of(ours.template.rows(pairs), ours.base.device)
    budget = recipe.train.max_tokens_per_microbatch
    document = facts("train", ours)
    with plain.direction_model.training(), ours.direction_model.training():
        row_builders = ladder({"float32": plain, "base": ours}, table, budget, compiled=asked.compile)
        seconds, memory = best(row_builders, asked.turns), peaks(row_builders)
    if ours.base.device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None:
        _, liger = load(asked.device, "model.use_liger_kernel=true")
        with liger.direction_model.training():
            row_builders = with_liger(liger, table, budget)
            seconds, memory = seconds | best(row_builders, asked.turns), memory | peaks(row_builders)
    document |= {
        "rows": len(table),
        "tokens": sum(table.sizes),
        "labels": sum(table.sizes) - sum(table.starts),
        "max_tokens_per_microbatch": budget,
        "seconds": seconds,
        "peak_bytes": memory,
    }
    path = RESULTS / f"train-{asked.name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    show(document, Console())
    draw(document, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
