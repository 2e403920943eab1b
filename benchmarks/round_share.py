"""The share of a round that goes into making rows, with a real model on real lines, for `benchmarks.tokens --round`.

Writes nothing itself: the figures are the part `round` of benchmarks/results/tokens-NAME.json.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import common
from benchmarks.common import timed
from roundtrip import Optimizer, StepSettings, TokenDataset, Translator, build_row_builder, train_step
from roundtrip.recipe.plan import directions, num_parallel
from roundtrip.tokens.batching import step_batches
from roundtrip.tokens.compatibility import BuildOptions

FACTORS = (1, 10, 100)


def measure(device: str, num_lines: int) -> dict[str, Any]:
    """Time one phase of en-es: generating its sources, making its rows by each variant, training on them.

    The base is as loaded, its adapters new; nothing is filtered, all lines are trained on, with as many parallel pairs
    as the recipe mixes in. Decoding is counted apart: both variants need texts for the filters, and in the loop a
    thread decodes while the device generates. A generator that is N times as fast is a projection: its seconds divided
    by N.
    """
    loaded, both = common.quickstart(device)
    recipe, corpora = loaded.recipe, common.corpora_of(loaded.recipe, loaded.folder)
    direction = directions(recipe)[0]
    forward, reverse = both[direction.name], both[direction.reverse.name]
    targets = [corpora.mono[direction.target][i][0] for i in range(num_lines)]
    dev = [(source, target) for source, target in (corpora.dev[i] for i in range(len(corpora.dev)))]
    options = BuildOptions(device=forward.base.device)
    row_builder, report = build_row_builder(reverse.template, forward.template, dev, options)
    reverse.translate(targets[:2], recipe.generate)  # the first call includes what the library loads
    generation, translations = timed(lambda: reverse.translate(targets, recipe.generate))
    hypotheses, texts = translations.hypotheses, translations.texts
    pairs = list(zip(texts, targets, strict=True))

    def by_text() -> TokenDataset:
        return TokenDataset.of(forward.template.rows(pairs), forward.base.device)

    def by_splice() -> tuple[TokenDataset, dict[str, int]]:
        rows, counts = row_builder.build(hypotheses.ids_BN, hypotheses.size_B, targets, texts)
        return TokenDataset.of_spliced(rows), dict(counts)

    _, counts = by_splice()
    variants: dict[str, Callable[[], Any]] = {
        "decode": lambda: [reverse.template.hypothesis_text(ids) for ids in hypotheses.lists()],
        "text": by_text,
        "splice": by_splice,
    }
    handling = common.best(variants, 5)
    number = num_parallel(recipe, num_lines, len(corpora.train))
    parallel = [(source, target) for source, target in (corpora.train[i] for i in range(number))]
    table = TokenDataset.of(forward.template.rows(pairs + parallel), forward.base.device)
    training, num_steps = timed(lambda: _train(recipe, forward, table))
    return {
        "lines": num_lines,
        "parallel_pairs": number,
        "steps": num_steps,
        "device": str(forward.base.device),
        "dtype": str(forward.base.dtype),
        "verdict": report.mode,
        "by_reason": counts,
        "generation_seconds": generation,
        "generated_tokens": int(hypotheses.size_B.sum()),
        "training_seconds": training,
        "handling_seconds": handling,
        "shares": {
            str(factor): {
                name: seconds / (generation / factor + training + seconds) for name, seconds in handling.items()
            }
            for factor in FACTORS
        },
    }


def _train(recipe: Any, forward: Translator, table: TokenDataset) -> int:
    """Take every step of a phase and return their number."""
    groups, model = step_batches(table.sizes, recipe.train.batch_size, 0), forward.direction_model
    optimizer = Optimizer(model.parameters(), recipe.train, len(groups), model.adapter)
    with model.training() as packed:
        settings = StepSettings(forward.base.pad_id, recipe.train.max_tokens_per_microbatch, packed=packed)
        for number, group in enumerate(groups):
            train_step(model.model, optimizer, table, group, settings, seed=number)
    return len(groups)
