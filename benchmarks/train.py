"""python -m benchmarks.train: a ladder of training, where each row adds one lever to the row above.

The quickstart's model and its pairs, one process, roads in turns: forward and backward over the same rows, optimizer
aside. It begins as the library's defaults do (adapters in float32, sdpa, batches of neighbours in the file, logits at
every position) and ends as a run trains here. The share is tokens/s times 4 FLOP for each weight (forward, and the
gradient of what goes in; the base is frozen) of the GEMM peak measured first. Writes
benchmarks/results/train-NAME.json; a table is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Shown

from benchmarks.machine import best, gemm_flops, processor
from roundtrip import cookbook, translator
from roundtrip.engine.batch import IGNORE, Batch, Table, by_budget, collate, pack
from roundtrip.engine.step import loss_sum
from roundtrip.models import base
from roundtrip.run import versions
from roundtrip.text.prepare import prepare
from roundtrip.translator import Translator

RESULTS = Path("benchmarks/results")
ROWS_PER_BATCH = 16


def all_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Return the loss as the library has it: logits at every position, in float32."""
    logits = model(input_ids=batch.ids_BT, use_cache=False, **batch.inputs).logits
    targets = batch.labels_BT[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets, ignore_index=IGNORE, reduction="sum"
    )


def neighbours(table: Table, pad_id: int) -> list[Batch]:
    """Return batches of rows as they stand in the file, whatever their length."""
    starts = range(0, len(table), ROWS_PER_BATCH)
    return [collate(table, range(start, min(start + ROWS_PER_BATCH, len(table))), pad_id) for start in starts]


def alike(table: Table, pad_id: int, budget: int) -> list[Batch]:
    """Return batches of rows of like length within a budget of tokens."""
    return [collate(table, group, pad_id) for group in by_budget(range(len(table)), table.sizes, budget)]


def packed(table: Table, budget: int) -> list[Batch]:
    return [pack(table, group) for group in by_budget(range(len(table)), table.sizes, budget, packed=True)]


def road(
    one: Translator, batches: Sequence[Batch], attention: str, loss_of: Callable[[Any, Batch], torch.Tensor]
) -> Callable[[], None]:
    """Return a pass over all batches."""

    def run() -> None:
        base.set_attention(one.base.model, attention)
        for batch in batches:
            loss_of(one.learner.model, batch).backward()
        for parameter in one.learner.parameters().values():
            parameter.grad = None

    return run


def ladder(
    both: Mapping[str, Translator], table: Table, budget: int, *, compiled: bool
) -> dict[str, Callable[[], None]]:
    """Return the roads, from the library's defaults up.

    Args:
        both: by precision of the adapters, `float32` and `base`.
    """
    plain, ours = both["float32"], both["base"]
    pad = plain.base.pad_id
    here = plain.base.device.type
    by_file, by_length = neighbours(table, pad), alike(table, pad, budget)
    steps = {
        "defaults": road(plain, by_file, "sdpa", all_logits),
        "+ rows of like length": road(plain, by_length, "sdpa", all_logits),
        "+ logits at labels": road(plain, by_length, "sdpa", loss_sum),
        "+ adapters as the base": road(ours, by_length, "sdpa", loss_sum),
        "+ eager attention": road(ours, by_length, "eager", loss_sum),
        "packed, sdpa": road(ours, packed(table, budget), "sdpa", loss_sum),
    }
    if here == "cuda" and importlib.util.find_spec("flash_attn") is not None:
        steps["packed, FlashAttention"] = road(ours, packed(table, budget), "flash_attention_2", loss_sum)
    if compiled:
        graph = torch.compile(ours.learner.model, dynamic=True)
        steps["+ torch.compile"] = road(ours, by_length, "eager", lambda model, batch: loss_sum(graph, batch))
    return steps


def show(document: Mapping[str, Any], console: Console) -> None:
    table = Shown(title=f"{document['tokens']:,} tokens of {document['rows']} rows, forward and backward")
    for column in ("road", "tokens/s", "times the first", "share of the GEMM peak"):
        table.add_column(column, justify="left" if column == "road" else "right")
    first = next(iter(document["seconds"].values()))
    for name, seconds in document["seconds"].items():
        rate = document["tokens"] / seconds
        share = rate * 4 * document["weights"] / document["gemm_flops"]
        table.add_row(name, f"{rate:,.0f}", f"{first / seconds:.2f}", f"{share:.0%}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="cpu", help="what to call this machine in the file names")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes minutes")
    asked = parser.parse_args()
    both, table, recipe = {}, None, None
    for dtype in ("float32", "base"):
        loaded = cookbook.load("quickstart", [f"model.device={asked.device}", f"adapter.dtype={dtype}"])
        recipe = loaded.recipe
        one = next(iter(translator.load(recipe, loaded.folder).values()))
        both[dtype] = one
        if table is None:
            with tempfile.TemporaryDirectory() as folder:
                corpora = prepare(recipe, loaded.folder, Path(folder), lambda text: None)
                pairs = [(row[0], row[1]) for row in corpora.train[: asked.rows]]
            table = Table.of(one.template.rows(pairs), one.base.device)
    assert table is not None and recipe is not None
    one = both["base"]
    flops = gemm_flops(one.base.device, one.base.dtype)
    adapter = sum(parameter.numel() for parameter in one.learner.parameters().values())
    weights = sum(parameter.numel() for parameter in one.base.model.parameters()) - 2 * adapter
    with both["float32"].learner.training(), one.learner.training():
        roads = ladder(both, table, recipe.train.tokens_per_forward, compiled=asked.compile)
        seconds = best(roads, asked.turns)
    document = {
        "command": "python -m benchmarks.train " + " ".join(sys.argv[1:]),
        "hardware": {"processor": processor(), "threads": torch.get_num_threads(), "device": str(one.base.device)},
        "versions": versions(),
        "dtype": str(one.base.dtype),
        "gemm_flops": flops,
        "weights": weights,
        "rows": len(table),
        "tokens": sum(table.sizes),
        "seconds": seconds,
    }
    (RESULTS / f"train-{asked.name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    show(document, Console())


if __name__ == "__main__":
    main()
