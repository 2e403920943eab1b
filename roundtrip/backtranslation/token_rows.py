"""From a block to the token rows that a phase trains on."""

from __future__ import annotations

from collections import Counter
from functools import reduce
from itertools import groupby

import torch

from roundtrip.backtranslation.examples import EARLIER, NOISED, PLAIN, REAL, SYNTHETIC, PhaseExamples
from roundtrip.engine.translator import DirectionTemplates
from roundtrip.tokens.batching import TokenDataset
from roundtrip.tokens.prompt_template import TokenRow
from roundtrip.tokens.row_builder import RowBuilder

# The lookups of the guard take fifteen numbers for each token, so a large block goes in pieces.
ROWS_AT_ONCE = 2048


def token_rows_of(
    block: PhaseExamples,
    templates: DirectionTemplates,
    row_builder: RowBuilder | None,
    device: torch.device,
    seed: int,
    synthetic_weight: float = 1.0,
) -> tuple[TokenDataset, Counter[str]]:
    """Return the rows of a block: new synthetic ones by their road, all others, and all that is read back, by strings.

    A row is the same by either road, so a run that goes on learns from what it would have learnt from.

    Args:
        templates: of the direction that learns.
        road: how synthetic rows are made; None where the phase has none.
        seed: chooses the rows of the audit.
        synthetic_weight: what the loss of a synthetic row counts, where a real one counts 1.

    Returns:
        The rows in the order of the block, and how many synthetic ones went which road, by reason.

    Raises:
        RowBuilderError: see `RowBuilder.build`.
    """
    num_written = 0 if block.hypotheses is None or row_builder is None else len(block.hypotheses.size_B)
    tables: list[TokenDataset] = []
    counts: Counter[str] = Counter()
    for start in range(0, num_written, ROWS_AT_ONCE):
        some = slice(start, min(start + ROWS_AT_ONCE, num_written))
        assert block.hypotheses is not None and row_builder is not None
        rows, found = row_builder.build(
            block.hypotheses.ids_BN[some].to(device),
            block.hypotheses.size_B[some].to(device),
            [target for _, _, target in block.rows[some]],
            [source for _, source, _ in block.rows[some]],
            prompts=block.prompts[some] if block.prompts is not None else None,
            seed=seed + start,
        )
        tables.append(TokenDataset.of_spliced(rows, synthetic_weight))
        counts += found
    for kind, group in groupby(block.rows[num_written:], key=lambda row: row[0]):
        weight = synthetic_weight if kind in {SYNTHETIC, EARLIER} else 1.0
        tables.append(TokenDataset.of(_by_strings(kind, list(group), templates), device, weight))
    return reduce(TokenDataset.plus, tables or [TokenDataset.of([], device)]), counts


def _by_strings(kind: str, rows: list[list[str]], templates: DirectionTemplates) -> list[TokenRow]:
    """Return rows of one kind, encoded as text."""
    if kind == PLAIN:
        return templates.real.plain_rows([text for _, _, text in rows])
    template = {REAL: templates.real, NOISED: templates.noised}.get(kind, templates.synthetic)
    return template.rows([(source, target) for _, source, target in rows])
