"""Rows of token ids into batches: which rows go together, and the padded tensors.

Shapes: B rows, T positions, V vocabulary, N labelled positions of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from roundtrip.text.stream import derive, shuffled
from roundtrip.tokens.template import Row

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """A right-padded batch for training.

    Attributes:
        ids_BT, mask_BT, labels_BT: int64; labels are IGNORE where nothing is to be learnt.
    """

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    labels_BT: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids_BT.to(device), self.mask_BT.to(device), self.labels_BT.to(device))


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """Pad rows on the right; labels are the target and its end token."""
    width = max(len(row.ids) for row in rows)
    ids_BT = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    labels_BT = torch.full_like(ids_BT, IGNORE)
    for number, row in enumerate(rows):
        size = len(row.ids)
        ids_BT[number, :size] = torch.tensor(row.ids)
        mask_BT[number, :size] = 1
        labels_BT[number, row.start : size] = ids_BT[number, row.start : size]
    return Batch(ids_BT, mask_BT, labels_BT)


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids_BT and mask_BT with the padding in front, as decoding needs it."""
    width = max(len(prompt) for prompt in prompts)
    ids_BT = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for number, prompt in enumerate(prompts):
        ids_BT[number, width - len(prompt) :] = torch.tensor(prompt)
        mask_BT[number, width - len(prompt) :] = 1
    return ids_BT, mask_BT


def steps(lengths: Sequence[int], rows_per_step: int, seed: int) -> list[list[int]]:
    """Return the rows of each optimizer step: neighbours in length, steps in random order.

    Rows are shuffled before the (stable) sort, so that rows of one length meet other neighbours in each pass.
    """
    size = len(lengths)
    order = sorted((shuffled(i, size, seed, 0) for i in range(size)), key=lambda i: lengths[i])
    groups = [order[start : start + rows_per_step] for start in range(0, size, rows_per_step)]
    return [groups[shuffled(i, len(groups), derive(seed, "steps"), 0)] for i in range(len(groups))]


def by_budget(indices: Sequence[int], lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Split indices into groups whose padded size (rows times longest) stays within a budget of tokens.

    A row that is longer than the budget goes alone.
    """
    group: list[int] = []
    longest = 0
    for index in sorted(indices, key=lambda i: -lengths[i]):
        longest = max(longest, lengths[index])
        if group and longest * (len(group) + 1) > max_tokens:
            yield group
            group, longest = [], lengths[index]
        group.append(index)
    if group:
        yield group
