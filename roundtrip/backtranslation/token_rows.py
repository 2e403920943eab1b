"""From the examples of a phase to the token rows that it trains on."""

from collections import Counter
from collections.abc import Sequence
from functools import reduce
from itertools import groupby

import torch
from torch.nn.utils.rnn import pad_sequence

from roundtrip.backtranslation.examples import DENOISING, MONOLINGUAL, Example
from roundtrip.engine.translator import Translator
from roundtrip.runtime.errors import TrainingError
from roundtrip.tokens.batching import TokenDataset
from roundtrip.tokens.row_builder import RowBuilder

# The tables of the checker take several numbers for each token, so many rows are built in parts.
ROWS_AT_ONCE = 2048


def build_token_rows(
    examples: Sequence[Example], translator: Translator, builder: RowBuilder | None, seed: int
) -> tuple[TokenDataset, Counter[str]]:
    """Return the token rows of examples, in their order, and the number of synthetic ones by path and reason.

    New synthetic ones, which come first, are made by the row builder, all others by the text path. Either way gives the
    same row, so a resumed run trains on what it would have trained on. `seed` chooses the rows of the audit.
    """
    device = translator.base.device
    candidates = [example.candidate for example in examples if builder is not None and example.candidate is not None]
    datasets: list[TokenDataset] = []
    counts: Counter[str] = Counter()
    for start in range(0, len(candidates), ROWS_AT_ONCE):
        part = candidates[start : start + ROWS_AT_ONCE]
        ids = [candidate.ids_N.to(device) for candidate in part if candidate.ids_N is not None]
        row_starts = [candidate.row_start for candidate in part if candidate.row_start is not None]
        assert builder is not None and len(ids) == len(part), "a generated candidate has ids"
        rows, reasons = builder.build(
            pad_sequence(ids, batch_first=True),
            torch.tensor([len(ids_N) for ids_N in ids], dtype=torch.int64, device=device),
            [candidate.target for candidate in part],
            [candidate.source for candidate in part],
            row_starts=row_starts if len(row_starts) == len(part) else None,
            seed=seed + start,
        )
        datasets.append(TokenDataset.of_spliced(rows))
        counts += reasons
    for kind, group in groupby(examples[len(candidates) :], key=lambda example: example.kind):
        template = translator.denoising_template if kind == DENOISING else translator.template
        pairs = [(example.source, example.target) for example in group]
        text_rows = template.plain_rows([text for _, text in pairs]) if kind == MONOLINGUAL else template.rows(pairs)
        datasets.append(TokenDataset.of(text_rows, device))
    return reduce(TokenDataset.plus, datasets or [TokenDataset.of([], device)]), counts


def fitting_rows(rows: TokenDataset, translator: Translator, max_length: int, place: str) -> tuple[list[int], int]:
    """Return the rows that have a label and are not too long for recipe and model, and the longest length allowed."""
    limit = min(max_length, translator.base.max_positions or max_length)
    fitting = [i for i, size in enumerate(rows.sizes) if rows.starts[i] < size <= limit]
    if not fitting:
        larger = "train.max_length" if limit == max_length else "model, one with more positions"
        cure = f"start a new run with a larger {larger}"
        raise TrainingError(f"all {len(rows)} rows are over {limit} tokens", place=place, cure=cure)
    return fitting, limit
