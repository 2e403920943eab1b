"""What share of a round of the quickstart goes into making rows: a real model on real lines."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from roundtrip.data.corpora import Corpora, prepare
from roundtrip.engine import translator
from roundtrip.engine.train_step import StepSettings, train_step
from roundtrip.engine.translator import Translator
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe import loader
from roundtrip.recipe.plan import directions, num_parallel
from roundtrip.tokens import compatibility
from roundtrip.tokens.batching import TokenDataset, step_batches

T = TypeVar("T")
FACTORS = (1, 10, 100)


def measure(device: str, num_lines: int) -> dict[str, Any]:
    """Time one block of en-es: generating its sources, making its rows by each road, learning from them.

    The base is as loaded, its adapters fresh; nothing is judged, all lines are learnt from, with as many real pairs as
    the recipe mixes in. Decoding stands apart: both roads need texts for the judge, and in the loop a thread decodes
    while the device writes. A generator that is N times as fast is a projection: its seconds are divided by N.
    """
    loaded = loader.load_recipe("quickstart")
    models = {name: spec.model_copy(update={"device": device}) for name, spec in loaded.recipe.model.items()}
    recipe = loaded.recipe.model_copy(update={"model": models})
    with tempfile.TemporaryDirectory() as folder:
        corpora = prepare(recipe, loaded.folder, Path(folder), lambda text: None)
        return _measured(recipe, translator.load(recipe, loaded.folder), corpora, num_lines)


def _measured(recipe: Any, both: dict[str, Translator], corpora: Corpora, num_lines: int) -> dict[str, Any]:
    direction = directions(recipe)[0]
    one, other = both[direction.name], both[direction.reverse.name]
    writer, learner = other.template, one.template
    targets = [corpora.mono[direction.target][i][0] for i in range(num_lines)]
    dev = [(source, target) for source, target in (corpora.dev[i] for i in range(len(corpora.dev)))]
    row_builder, found = compatibility.build_row_builder(writer, learner, dev, device=one.base.device)
    other.translate(targets[:2], recipe.generate, 0)  # the first call pays for what the library loads
    generation, written = clocked(lambda: other.translate(targets, recipe.generate, 0))
    ids_BN, size_B = written.hypotheses.ids_BN, written.hypotheses.size_B
    pairs = list(zip(written.texts, targets, strict=True))

    def by_strings() -> TokenDataset:
        return TokenDataset.of(learner.rows(pairs), one.base.device)

    def by_road() -> tuple[TokenDataset, dict[str, int]]:
        rows, counts = row_builder.rows(ids_BN, size_B, targets, written.texts)
        return TokenDataset.of_spliced(rows), dict(counts)

    _, (_, counts) = clocked(by_road)  # the first time pairs are settled
    handling = {
        "decode": best(lambda: [writer.hypothesis_text(ids) for ids in written.hypotheses.lists()]),
        "strings": best(by_strings),
        "road": best(by_road),
    }
    number = num_parallel(recipe, num_lines, len(corpora.train))
    real = [tuple(corpora.train[i]) for i in range(number)]
    table = TokenDataset.of(learner.rows(pairs + real), one.base.device)
    training, num_steps = clocked(lambda: _learn(recipe, one, table))
    return {
        "lines": num_lines,
        "real_pairs": number,
        "steps": num_steps,
        "device": str(one.base.device),
        "dtype": str(one.base.dtype),
        "verdict": found.row_builder,
        "by_reason": counts,
        "generation_seconds": generation,
        "generated_tokens": int(size_B.sum()),
        "training_seconds": training,
        "handling_seconds": handling,
        "shares": {
            str(factor): {
                name: seconds / (generation / factor + training + seconds) for name, seconds in handling.items()
            }
            for factor in FACTORS
        },
    }


def _learn(recipe: Any, one: Translator, table: TokenDataset) -> int:
    """Take every step of a block."""
    groups = step_batches(table.sizes, recipe.train.batch_size, 0)
    optimizer = Optimizer(one.direction_model.parameters(), recipe.train, len(groups), one.direction_model.adapter)
    with one.direction_model.training() as packed:
        settings = StepSettings(one.base.pad_id, recipe.train.max_tokens_per_microbatch, packed=packed)
        for number, group in enumerate(groups):
            train_step(one.direction_model.model, optimizer, table, group, settings, seed=number)
    return len(groups)


def clocked(row_builder: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that something took, the device waited for, and what it made."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    made = row_builder()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, made


def best(row_builder: Callable[[], Any], turns: int = 5) -> float:
    return min(clocked(row_builder)[0] for _ in range(turns))
