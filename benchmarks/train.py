"""python -m benchmarks.train: a ladder of training optimizations, where each row adds one to the row above.

The quickstart's model and its pairs, one process, variants in turns: forward and backward over the same rows, without
the optimizer. It begins with the library's defaults (adapters in float32, sdpa, batches in file order, logits at every
position) and ends as a run trains here. Share of the GEMM peak that the same process measures first: tokens/s times
4 FLOP for each weight (forward, and the gradient of the input; the base is frozen), padding not counted. `done` counts
the output layer only where there are labels, which is what is computed from the fourth variant on. Memory is what a
pass adds to what is held before it. Writes benchmarks/results/train-NAME.json and .png.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import Linear
from rich.console import Console

from benchmarks import common
from roundtrip.engine.train_step import loss_sum
from roundtrip.engine.translator import Translator
from roundtrip.models import attention
from roundtrip.models.fused_lora import FusedLinear
from roundtrip.tokens.batching import Batch, TokenDataset, collate, pack, token_budget_batches
from roundtrip.tokens.splice.splicing import IGNORE

ROWS_PER_BATCH = 16


def all_logits(model: Any, batch: Batch) -> Any:
    """Return the loss as the library computes it: logits at every position, in float32."""
    logits = model(input_ids=batch.ids_BT, use_cache=False, **batch.inputs).logits
    targets = batch.labels_BT[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets, ignore_index=IGNORE, reduction="sum"
    )


def in_file_order(table: TokenDataset, pad_id: int, size: int) -> list[Batch]:
    """Return batches of a fixed number of rows in file order, whatever their length."""
    starts = range(0, len(table), size)
    return [collate(table, range(start, min(start + size, len(table))), pad_id) for start in starts]


def by_length(table: TokenDataset, pad_id: int, budget: int) -> list[Batch]:
    """Return batches of rows of similar length within a budget of tokens."""
    return [collate(table, group, pad_id) for group in token_budget_batches(range(len(table)), table.sizes, budget)]


def packed(table: TokenDataset, budget: int) -> list[Batch]:
    """Return rows without padding, one behind the other, within a budget of tokens."""
    return [pack(table, group) for group in token_budget_batches(range(len(table)), table.sizes, budget, packed=True)]


def one_pass(
    forward: Translator,
    batches: Sequence[Batch],
    attention_name: str,
    loss_of: Callable[[Any, Batch], Any],
    *,
    fused: bool = False,
) -> Callable[[], None]:
    """Return a function that takes one pass over all batches.

    Args:
        fused: whether a layer and its adapter are one operation.
    """

    def run() -> None:
        attention.choose(forward.base.model, attention_name)
        for layer in forward.direction_model.model.modules():
            if isinstance(layer, FusedLinear | Linear):
                layer.__class__ = FusedLinear if fused else Linear
        for batch in batches:
            loss_of(forward.direction_model.model, batch).backward()
        for parameter in forward.direction_model.parameters().values():
            parameter.grad = None

    return run


def ladder(plain: Translator, ours: Translator, table: TokenDataset, budget: int) -> dict[str, Callable[[], None]]:
    """Return the variants, from the library's defaults up.

    Args:
        plain: with adapters in float32.
        ours: with adapters in the precision of the base.
    """
    pad = plain.base.pad_id
    similar, packs = by_length(table, pad, budget), packed(table, budget)
    # As many batches in file order as there are batches of rows of similar length.
    large = in_file_order(table, pad, -(-len(table) // len(similar)))
    return {
        "defaults, 16 rows": one_pass(plain, in_file_order(table, pad, ROWS_PER_BATCH), "sdpa", all_logits),
        "+ larger batches": one_pass(plain, large, "sdpa", all_logits),
        "+ rows of like length": one_pass(plain, similar, "sdpa", all_logits),
        "+ logits at labels": one_pass(plain, similar, "sdpa", loss_sum),
        "+ adapters as the base": one_pass(ours, similar, "sdpa", loss_sum),
        "+ eager attention": one_pass(ours, similar, "eager", loss_sum),
        "+ packed rows, varlen attention": one_pass(ours, packs, "varlen", loss_sum),
        "+ LoRA in one operation": one_pass(ours, packs, "varlen", loss_sum, fused=True),
        "packed rows, sdpa with a mask": one_pass(ours, packs, "sdpa", loss_sum, fused=True),
    }


def shares(document: Mapping[str, Any], seconds: float) -> tuple[float, float]:
    """Return the share of the peak as if all weights were used for each token, and that of what is needed."""
    per_weight = 4 / seconds / document["gemm_flops"]
    needed = common.needed_products(document, document["tokens"], document["labels"])
    return document["tokens"] * document["weights"] * per_weight, needed * per_weight


def show(document: Mapping[str, Any], console: Console) -> None:
    first = next(iter(document["seconds"].values()))
    rows = []
    for name, seconds in document["seconds"].items():
        share, needed = shares(document, seconds)
        rate, memory = document["tokens"] / seconds, document["peak_bytes"][name] / 2**30
        rows.append((name, f"{rate:,.0f}", f"{first / seconds:.2f}", f"{share:.0%}", f"{needed:.0%}", f"{memory:.2f}"))
    title = f"{document['tokens']:,} tokens of {document['rows']} rows, forward and backward"
    columns = ("variant", "tokens/s", "times the first", "share of the GEMM peak", "done", "memory, GiB")
    common.print_table(console, title, columns, rows)


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw the share of the GEMM peak as a bar for each variant."""
    names = list(document["seconds"])
    values = [100 * shares(document, document["seconds"][name])[0] for name in names]
    with common.plot(path, (8, 0.8 + 0.4 * len(names)), title=document["hardware"]["processor"]) as axes:
        panel = axes[0, 0]
        bars = panel.barh(names, values, color="tab:blue")
        panel.bar_label(bars, [f"{value:.0f} %" for value in values], padding=3, fontsize="small")
        panel.invert_yaxis()
        panel.set(xlabel="share of the GEMM peak, %", xlim=(0, 100))


def main() -> None:
    parser = common.parser(__doc__, turns=3, device=True)
    parser.add_argument("--rows", type=int, default=128)
    asked = parser.parse_args()

    loaded, ours_by_name = common.quickstart(asked.device)
    _, plain_by_name = common.quickstart(asked.device)
    ours, plain = (next(iter(translators.values())) for translators in (ours_by_name, plain_by_name))
    for parameter in plain.direction_model.parameters().values():
        parameter.data = parameter.data.float()
    corpora = common.corpora_of(loaded.recipe, loaded.folder)
    pairs = [(row[0], row[1]) for row in corpora.train[: asked.rows]]
    table = TokenDataset.of(ours.template.rows(pairs), ours.base.device)
    budget = loaded.recipe.train.max_tokens_per_microbatch
    document = common.model_provenance("train", ours)
    with plain.direction_model.training(), ours.direction_model.training():
        variants = ladder(plain, ours, table, budget)
        seconds, memory = common.best(variants, asked.turns), common.peaks(variants)
    document |= {
        "rows": len(table),
        "tokens": sum(table.sizes),
        "labels": sum(table.sizes) - sum(table.starts),
        "tokens_per_forward": budget,
        "seconds": seconds,
        "peak_bytes": memory,
    }
    common.finish(document, common.result_path("train", asked.name), show, draw)


if __name__ == "__main__":
    main()
