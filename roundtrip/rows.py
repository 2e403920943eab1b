"""From a block to the token rows that a phase trains on."""

from __future__ import annotations

from collections import Counter
from functools import reduce

import torch

from roundtrip.block import PLAIN, Block
from roundtrip.engine.batch import Table
from roundtrip.tokens.road import Road
from roundtrip.tokens.template import Template

# The lookups of the guard take fifteen numbers for each token, so a large block goes in pieces.
ROWS_AT_ONCE = 2048


def of_block(
    block: Block, template: Template, road: Road | None, device: torch.device, seed: int
) -> tuple[Table, Counter[str]]:
    """Return the rows of a block: synthetic ones by their road, real ones, and all that is read back, by strings.

    A row is the same by either road, so a run that goes on learns from what it would have learnt from.

    Args:
        template: of the direction that learns.
        road: how synthetic rows are made; None where the phase has none.
        seed: chooses the rows of the audit.

    Returns:
        The rows in the order of the block, and how many synthetic ones went which road, by reason.

    Raises:
        RoadError: see `Road.rows`.
    """
    if block.rows and block.rows[0][0] == PLAIN:
        return Table.of(template.plain_rows([text for _, _, text in block.rows]), device), Counter()
    num_written = 0 if block.hypotheses is None else len(block.hypotheses.size_B)
    plain = Table.of(template.rows([(source, target) for _, source, target in block.rows[num_written:]]), device)
    if block.hypotheses is None or road is None or not num_written:
        return plain, Counter()
    tables: list[Table] = []
    counts: Counter[str] = Counter()
    for start in range(0, num_written, ROWS_AT_ONCE):
        some = slice(start, min(start + ROWS_AT_ONCE, num_written))
        rows, found = road.rows(
            block.hypotheses.ids_BN[some].to(device),
            block.hypotheses.size_B[some].to(device),
            [target for _, _, target in block.rows[some]],
            [source for _, source, _ in block.rows[some]],
            prompts=block.prompts[some] if block.prompts is not None else None,
            seed=seed + start,
        )
        tables.append(Table.of_spliced(rows))
        counts += found
    return reduce(Table.plus, [*tables, plain]), counts
