"""python -m benchmarks.engine: the engine's choices against the plain roads, in one process on an idle machine.

Three ratios, each the best of several turns taken in alternation:

- precision: the GEMM of a training batch in bfloat16 and in float32, which `model.dtype = "auto"` decides by;
- decoding: our loop against `generate` of transformers, on the quickstart's dev lines and the bare base;
- training: eager against sdpa attention, and logits at labelled positions against all logits.

Writes benchmarks/results/engine-HOST.json, HOST being --name, with hardware, versions and command.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from roundtrip import cookbook, translator
from roundtrip.engine.batch import IGNORE, Table, by_budget, collate, left_pad
from roundtrip.engine.generate import generate, length_limit
from roundtrip.engine.step import loss_sum
from roundtrip.models import base
from roundtrip.plan import directions
from roundtrip.run import versions
from roundtrip.text.prepare import prepare
from roundtrip.translator import Translator

TURNS = 3


def best(roads: dict[str, Callable[[], Any]], turns: int = TURNS) -> dict[str, float]:
    """Return the shortest time of each road in seconds; one turn of warm-up, then A B A B."""
    times: dict[str, list[float]] = {name: [] for name in roads}
    for turn in range(turns + 1):
        for name, road in roads.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            road()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: min(found) for name, found in times.items()}


def precision(device: torch.device) -> dict[str, float]:
    """Return GFLOP/s of a 1024 x 576 by 576 x 1536 product."""

    def road(dtype: torch.dtype) -> Callable[[], None]:
        left, right = (torch.randn(shape, dtype=dtype, device=device) for shape in ((1024, 576), (1536, 576)))
        return lambda: [torch.nn.functional.linear(left, right) for _ in range(20)] and None

    times = best({"bfloat16": road(torch.bfloat16), "float32": road(torch.float32)})
    return {name: 20 * 2 * 1024 * 576 * 1536 / seconds / 1e9 for name, seconds in times.items()}


def decoding(one: Translator, recipe: Any, sources: list[str]) -> dict[str, float]:
    """Return seconds to translate all sources greedily; both roads take the same batches, stops and limits."""
    template = one.template
    prompts = template.prompts(sources)
    limits = [length_limit(one.num_source_tokens(prompt), recipe.generate) for prompt in prompts]
    stops, pad = template.segments.stop_ids, one.base.pad_id

    def plain() -> None:
        lengths = [len(prompt) + limit + 1 for prompt, limit in zip(prompts, limits, strict=True)]
        for group in by_budget(range(len(prompts)), lengths, recipe.generate.tokens_per_batch):
            ids, mask = left_pad([prompts[i] for i in group], pad)
            config = GenerationConfig(
                max_new_tokens=max(limits[i] for i in group) + 1,
                do_sample=False,
                eos_token_id=list(stops),
                pad_token_id=pad,
            )
            device = one.base.device
            model.generate(ids.to(device), attention_mask=mask.to(device), generation_config=config)

    def ours() -> None:
        generate(model, prompts, limits, recipe.generate, pad_id=pad, stop_ids=stops, seed=0)

    with one.learner.generating(adapted=False) as model:
        return best({"transformers": plain, "native": ours}, 2)


def training(one: Translator, pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Return seconds of forward and backward over one batch of 16 rows."""
    rows = one.template.rows(pairs[:16])
    batch = collate(Table.of(rows, one.base.device), range(len(rows)), one.base.pad_id)
    model = one.learner.model

    def ours(attention: str) -> Callable[[], None]:
        def road() -> None:
            base.set_attention(one.base.model, attention)
            loss_sum(model, batch).backward()

        return road

    def all_logits() -> None:
        base.set_attention(one.base.model, "eager")
        logits = model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False).logits
        targets = batch.labels_BT[:, 1:].flatten()
        torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), targets, ignore_index=IGNORE, reduction="sum"
        ).backward()

    with one.learner.training():
        return best({"eager": ours("eager"), "sdpa": ours("sdpa"), "eager, all logits": all_logits}, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="cpu", help="what to call this machine in the file name")
    name = parser.parse_args().name
    loaded = cookbook.load("quickstart")
    recipe = loaded.recipe
    scratch = Path("benchmarks/results/.text")
    scratch.mkdir(exist_ok=True)
    corpora = prepare(recipe, loaded.folder, scratch, lambda text: None)
    one = translator.load(recipe, loaded.folder)[directions(recipe)[0].name]
    pairs = [(row[0], row[1]) for row in corpora.dev]
    document = {
        "command": "python -m benchmarks.engine " + " ".join(sys.argv[1:]),
        "hardware": {"processor": processor(), "threads": torch.get_num_threads(), "device": str(one.base.device)},
        "versions": versions(),
        "dtype": str(one.base.model.dtype),
        "precision_gflops": precision(one.base.device),
        "decoding_seconds_200_lines": decoding(one, recipe, [source for source, _ in pairs]),
        "training_seconds_16_rows": training(one, pairs),
    }
    Path(f"benchmarks/results/engine-{name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def processor() -> str:
    """Return what the machine says of its processor."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return f"{model}; {' '.join(flag for flag in ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16') if flag in flags)}"


if __name__ == "__main__":
    main()
