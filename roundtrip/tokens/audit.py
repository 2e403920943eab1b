"""Both roads side by side: rows made by the splice and by strings, on lines and under attack."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from roundtrip.tokens.adversarial import AdversarialRows
from roundtrip.tokens.prompt_template import PromptTemplate
from roundtrip.tokens.row_builder import SPLICED, RowBuilder, first_difference
from roundtrip.tokens.splice import splicing as splices

# Called with what is being done, how far it is, and how far it goes.
OnProgress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Say nothing."""


def audit_rules(
    row_builder: RowBuilder, lines: Sequence[tuple[str, str]], number: int, seed: int, on_progress: OnProgress = silent
) -> tuple[dict[str, int], str | None]:
    """Attack a road of the device guard with rows that are spelt otherwise.

    Returns:
        How many `rows` there were, how many were `accepted`, how many are `canonical` by strings, and the `false
        accepts` among them; and the first of these in words, None where there is none.
    """
    assert row_builder.guard is not None and row_builder.into is not None
    canonical = writer_ids(row_builder.writer, lines)
    targets = [target for _, target in lines]
    counts = {"rows": 0, "accepted": 0, "canonical": 0, "false accepts": 0}
    fault = None
    attacked = list(AdversarialRows(row_builder.guard.pairs.vocabulary, seed).rows(canonical, number))
    for start in range(0, len(attacked), 256):
        some = attacked[start : start + 256]
        reasons, expected, got = compare_rows(
            row_builder, some, [targets[(start + i) % len(targets)] for i in range(len(some))]
        )
        for ids, reason, want, have in zip(some, reasons, expected, got, strict=True):
            taken = reason == SPLICED
            counts["rows"] += 1
            counts["accepted"] += taken
            counts["canonical"] += have == want
            if taken and have != want:
                counts["false accepts"] += 1
                what = first_difference(row_builder.template.tokenizer, have[0], want[0])
                fault = fault or f"the audit found a row that the rules let through: {ids}: {what}"
        on_progress("attacking the guard", start + len(some), len(attacked))
    return counts, fault


def compare_rows(
    row_builder: RowBuilder, hypotheses: Sequence[Sequence[int]], targets: Sequence[str]
) -> tuple[list[str], list[tuple[list[int], int]], list[tuple[list[int], int]]]:
    """Make rows both ways.

    Returns:
        SPLICED or the reason against it for each row; (ids, start) by strings; the same by the splice, taken or not.
    """
    assert row_builder.into is not None
    device = row_builder.into.head_H.device
    width = max(1, max(map(len, hypotheses)))
    ids_BN = torch.tensor(
        [[*row, *(width - len(row)) * [row_builder.into.pad_id]] for row in hypotheses], device=device
    )
    sizes = torch.tensor([len(row) for row in hypotheses], device=device)
    size_B = torch.minimum(splices.find_ends(ids_BN, row_builder.into.flags_V)[0], sizes)
    texts = [
        row_builder.writer.hypothesis_text(ids[:size]) for ids, size in zip(hypotheses, size_B.tolist(), strict=True)
    ]
    expected = [(row.ids, row.start) for row in row_builder.template.rows(list(zip(texts, targets, strict=True)))]
    rows, reasons = row_builder.spliced(ids_BN, size_B, targets, texts)
    found = zip(rows.ids_BT.tolist(), rows.size_B.tolist(), rows.start_B.tolist(), strict=True)
    return reasons, expected, [(ids[:size], start) for ids, size, start in found]


def writer_ids(writer: PromptTemplate, lines: Sequence[tuple[str, str]]) -> list[list[int]]:
    """Return the ids of each pair's source as the writer would write it."""
    rows = writer.rows([(target, source) for source, target in lines])
    return [row.ids[row.start : -1] for row in rows]
