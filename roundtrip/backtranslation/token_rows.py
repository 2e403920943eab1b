"""From the examples of a phase to the token rows that it trains on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import reduce
from itertools import groupby

import torch
from torch.nn.utils.rnn import pad_sequence

from roundtrip.backtranslation.examples import DENOISING, MONOLINGUAL, Example
from roundtrip.engine.translator import DirectionTemplates
from roundtrip.tokens.batching import TokenDataset
from roundtrip.tokens.prompt_template import TokenRow
from roundtrip.tokens.row_builder import RowBuilder

# The tables of the guard take several numbers for each token, so many rows are built in parts.
ROWS_AT_ONCE = 2048


def build_token_rows(
    examples: Sequence[Example],
    templates: DirectionTemplates,
    builder: RowBuilder | None,
    device: torch.device,
    seed: int,
) -> tuple[TokenDataset, Counter[str]]:
    """Return the token rows of examples: new synthetic ones by a row builder, all others by the text path.

    Either way gives the same row, so a resumed run trains on what it would have trained on.

    Args:
        examples: those with a candidate, whose ids are at hand, come first.
        templates: of the direction that trains.
        builder: how synthetic rows are made; None where the phase has none.
        seed: chooses the rows of the audit.

    Returns:
        The rows in the order of the examples, and the number of synthetic rows by path and reason.

    Raises:
        RowBuilderError: see `RowBuilder.build`.
    """
    spliceable = [example for example in examples if builder is not None and example.candidate is not None]
    datasets: list[TokenDataset] = []
    counts: Counter[str] = Counter()
    for start in range(0, len(spliceable), ROWS_AT_ONCE):
        part = spliceable[start : start + ROWS_AT_ONCE]
        candidates = [example.candidate for example in part if example.candidate is not None]
        ids = [candidate.ids_N for candidate in candidates if candidate.ids_N is not None]
        prompts = [candidate.prompt for candidate in candidates if candidate.prompt is not None]
        assert builder is not None and len(ids) == len(part), "a generated candidate has ids"
        rows, reasons = builder.build(
            pad_sequence([ids_N.to(device) for ids_N in ids], batch_first=True),
            torch.tensor([len(ids_N) for ids_N in ids], dtype=torch.int64, device=device),
            [example.target for example in part],
            [example.source for example in part],
            prompts=prompts if len(prompts) == len(part) else None,
            seed=seed + start,
        )
        datasets.append(TokenDataset.of_spliced(rows))
        counts += reasons
    for kind, group in groupby(examples[len(spliceable) :], key=lambda example: example.kind):
        datasets.append(TokenDataset.of(_text_rows(kind, list(group), templates), device))
    return reduce(TokenDataset.plus, datasets or [TokenDataset.of([], device)]), counts


def _text_rows(kind: str, examples: Sequence[Example], templates: DirectionTemplates) -> list[TokenRow]:
    """Return rows of one kind, encoded as text."""
    if kind == MONOLINGUAL:
        return templates.parallel.plain_rows([example.target for example in examples])
    template = templates.denoising if kind == DENOISING else templates.parallel
    return template.rows([(example.source, example.target) for example in examples])
