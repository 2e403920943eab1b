"""Splice and text path side by side: rows made both ways, on lines and under attack."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from roundtrip.tokens.adversarial import AdversarialRows
from roundtrip.tokens.prompt_template import PromptTemplate, TokenRow
from roundtrip.tokens.row_builder import SPLICED, RowBuilder, first_difference, ragged
from roundtrip.tokens.splice.pair_rules import OnProgress, silent


def audit_rules(
    row_builder: RowBuilder, lines: Sequence[tuple[str, str]], number: int, seed: int, on_progress: OnProgress = silent
) -> tuple[dict[str, int], str | None]:
    """Attack the device checker with rows whose text is spelt in other tokens than the tokenizer's.

    Returns:
        How many `rows` there were, how many were `accepted`, how many are `canonical` by the text path, and the `false
        accepts` among them; and a description of the first of these, None where there is none.
    """
    assert row_builder.checker is not None
    canonical = canonical_hypotheses(row_builder.reverse_template, lines)
    targets = [target for _, target in lines]
    counts = {"rows": 0, "accepted": 0, "canonical": 0, "false accepts": 0}
    fault = None
    attacked = list(AdversarialRows(row_builder.checker.pairs.vocabulary, seed).rows(canonical, number))
    for start in range(0, len(attacked), 256):
        some = attacked[start : start + 256]
        made = compare_rows(row_builder, some, [targets[(start + i) % len(targets)] for i in range(len(some))])
        for ids, reason, expected, got in zip(some, *made, strict=True):
            counts["rows"] += 1
            counts["accepted"] += reason == SPLICED
            counts["canonical"] += got == expected
            if reason == SPLICED and got != expected:
                counts["false accepts"] += 1
                what = first_difference(row_builder.forward_template.tokenizer, got.ids, expected.ids)
                fault = fault or f"the audit found a row that the rules let through: {ids}: {what}"
        on_progress("attacking the checker", start + len(some), len(attacked))
    return counts, fault


def compare_rows(
    row_builder: RowBuilder, hypotheses: Sequence[Sequence[int]], targets: Sequence[str]
) -> tuple[list[str], list[TokenRow], list[TokenRow]]:
    """Make rows both ways.

    Returns:
        SPLICED or the reason against it for each row; the rows of the text path; the spliced ones, proved or not.
    """
    assert row_builder.tensors is not None
    ids_BN, length_B = ragged(hypotheses, row_builder.tensors.head_H.device, row_builder.tensors.pad_id)
    size_B = torch.minimum(row_builder.find_ends(ids_BN)[0], length_B)
    texts = [
        row_builder.reverse_template.hypothesis_text(ids[:size])
        for ids, size in zip(hypotheses, size_B.tolist(), strict=True)
    ]
    expected = row_builder.forward_template.rows(list(zip(texts, targets, strict=True)))
    rows, reasons = row_builder.splice(ids_BN, size_B, targets, texts)
    return reasons, expected, rows.to_rows()


def canonical_hypotheses(reverse_template: PromptTemplate, lines: Sequence[tuple[str, str]]) -> list[list[int]]:
    """Return the ids of each pair's source as the reverse direction would generate it."""
    rows = reverse_template.rows([(target, source) for source, target in lines])
    return [row.ids[row.start : -1] for row in rows]
