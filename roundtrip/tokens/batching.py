"""Batches of token rows: which rows go together, and the padded or packed tensors.

Shapes: R rows of a dataset, X their tokens one behind the other, B rows of a batch, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from roundtrip.runtime.seeding import derive_seed, permuted_index
from roundtrip.tokens.prompt_template import TokenRow
from roundtrip.tokens.splice.splicing import IGNORE, SplicedRows


@dataclass(frozen=True)
class TokenDataset:
    """All rows of a phase on the device of the model; the host knows only their sizes.

    Attributes:
        ids_X: int32, the tokens of all rows.
        offset_R: int64, where each row begins.
        sizes, starts: tokens of each row, and the position of its first label.

    Example:
        >>> from roundtrip.tokens.prompt_template import TokenRow
        >>> dataset = TokenDataset.of([TokenRow(ids=[5, 6, 7, 2], start=2)], torch.device("cpu"))
        >>> len(dataset), dataset.sizes, dataset.starts
        (1, [4], [2])
    """

    ids_X: torch.Tensor
    offset_R: torch.Tensor
    sizes: list[int]
    starts: list[int]

    def __len__(self) -> int:
        return len(self.sizes)

    @classmethod
    def of(cls, rows: Sequence[TokenRow], device: torch.device | str = "cpu") -> TokenDataset:
        """Make a dataset of rows that were encoded as text."""
        sizes = [len(row.ids) for row in rows]
        flat = torch.tensor([token for row in rows for token in row.ids], dtype=torch.int32)
        return cls(flat.to(device), _offsets(sizes, device), sizes, [row.start for row in rows])

    @classmethod
    def of_spliced(cls, rows: SplicedRows) -> TokenDataset:
        """Make a dataset of spliced rows; the host waits for the device once, for their sizes."""
        sizes, starts = torch.stack([rows.size_B, rows.start_B]).tolist()
        device = rows.ids_BT.device
        live_BT = torch.arange(rows.ids_BT.shape[1], device=device) < rows.size_B[:, None]
        return cls(rows.ids_BT[live_BT].to(torch.int32), _offsets(sizes, device), sizes, starts)

    def plus(self, other: TokenDataset) -> TokenDataset:
        """Return both datasets as one, the other's rows behind these."""
        offset_R = torch.cat([self.offset_R, other.offset_R + len(self.ids_X)])
        ids_X = torch.cat([self.ids_X, other.ids_X])
        return TokenDataset(ids_X, offset_R, self.sizes + other.sizes, self.starts + other.starts)

    def select(self, indices: Sequence[int]) -> TokenDataset:
        """Return a dataset of some rows, in the given order."""
        index_R = torch.tensor(indices, dtype=torch.int64, device=self.offset_R.device)
        sizes, starts = ([values[i] for i in indices] for values in (self.sizes, self.starts))
        return TokenDataset(self.ids_X, self.offset_R[index_R], sizes, starts)


def _offsets(sizes: Sequence[int], device: torch.device | str) -> torch.Tensor:
    size_R = torch.tensor(sizes, dtype=torch.int64)
    return (size_R.cumsum(0) - size_R).to(device)


@dataclass(frozen=True)
class Batch:
    """A batch for training: ids, int64, and labels, IGNORE where a token is no target."""

    ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    # Further arguments of the model: `attention_mask` where rows are padded; where they stand one behind the other in a
    # single row, the positions and bounds that keep them apart.
    inputs: Mapping[str, Any]

    def predictions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keep_BT, bool, the positions that predict a label, and targets_N, int64, these labels in order."""
        targets_BT = self.labels_BT[:, 1:]
        keep_BT = torch.zeros_like(self.labels_BT, dtype=torch.bool)
        keep_BT[:, :-1] = targets_BT != IGNORE
        return keep_BT, targets_BT[targets_BT != IGNORE]


def _columns(dataset: TokenDataset, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return offset_B, size_B and start_B of some rows, on the device of the dataset."""
    columns = torch.tensor([[i, dataset.sizes[i], dataset.starts[i]] for i in indices], dtype=torch.int64)
    index_B, size_B, start_B = columns.to(dataset.ids_X.device, non_blocking=True).unbind(1)
    return dataset.offset_R[index_B], size_B, start_B


def collate(dataset: TokenDataset, indices: Sequence[int], pad_id: int) -> Batch:
    """Return some rows of a dataset, padded on the right; labels are the target and its end token."""
    offset_B, size_B, start_B = _columns(dataset, indices)
    position_T = torch.arange(max(dataset.sizes[i] for i in indices), device=dataset.ids_X.device)
    live_BT = position_T < size_B[:, None]
    # Behind its end a row meets the next one, the last row the end of the dataset.
    source_BT = (offset_B[:, None] + position_T).clamp(max=len(dataset.ids_X) - 1)
    ids_BT = torch.where(live_BT, dataset.ids_X[source_BT].long(), pad_id)
    labels_BT = torch.where(live_BT & (position_T >= start_B[:, None]), ids_BT, IGNORE)
    return Batch(ids_BT, labels_BT, {"attention_mask": live_BT.long()})


def pack(dataset: TokenDataset, indices: Sequence[int]) -> Batch:
    """Return some rows of a dataset one behind the other in a single row, without padding.

    FlashAttention reads `cu_seq_lens`; other attentions make a mask of the positions, which begin at 0 with each row.
    """
    device = dataset.ids_X.device
    offset_B, size_B, start_B = _columns(dataset, indices)
    longest, total = max(dataset.sizes[i] for i in indices), sum(dataset.sizes[i] for i in indices)
    end_B = size_B.cumsum(0)
    row_T = torch.repeat_interleave(torch.arange(len(indices), device=device), size_B, output_size=total)
    position_T = torch.arange(total, device=device) - (end_B - size_B)[row_T]
    ids_T = dataset.ids_X[offset_B[row_T] + position_T].long()
    # A row's first token is never a label, so that no row is predicted from the one before it.
    labels_T = torch.where(position_T >= start_B[row_T].clamp(min=1), ids_T, IGNORE)
    bounds = torch.nn.functional.pad(end_B, (1, 0)).to(torch.int32)
    inputs = {"position_ids": position_T[None], "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    return Batch(ids_T[None], labels_T[None], inputs | {"max_length_q": longest, "max_length_k": longest})


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids_BT and mask_BT, padded on the left, as decoding needs it."""
    width = max(len(prompt) for prompt in prompts)
    ids_BT = torch.tensor([[*(width - len(prompt)) * [pad_id], *prompt] for prompt in prompts], dtype=torch.int64)
    size_B = torch.tensor([len(prompt) for prompt in prompts])
    return ids_BT, (torch.arange(width) >= width - size_B[:, None]).long()


def step_batches(lengths: Sequence[int], batch_size: int, seed: int) -> list[list[int]]:
    """Return the rows of each optimizer step: rows of similar length together, steps in random order.

    Rows are shuffled before the (stable) sort, so that rows of one length have other neighbours in each pass.
    """
    size = len(lengths)
    order = sorted((permuted_index(i, size, seed, 0) for i in range(size)), key=lambda i: lengths[i])
    groups = [order[start : start + batch_size] for start in range(0, size, batch_size)]
    return [groups[permuted_index(i, len(groups), derive_seed(seed, "steps"), 0)] for i in range(len(groups))]


def token_budget_batches(
    indices: Sequence[int], lengths: Sequence[int], max_tokens: int, *, packed: bool = False
) -> Iterator[list[int]]:
    """Split indices into groups whose size stays within a budget of tokens, longest rows first.

    The size of a group is the sum of its rows if `packed`, else rows times longest; a longer row is a group by itself.
    """
    group: list[int] = []
    longest = total = 0
    for index in sorted(indices, key=lambda i: -lengths[i]):
        longest, total = max(longest, lengths[index]), total + lengths[index]
        if group and (total if packed else longest * (len(group) + 1)) > max_tokens:
            yield group
            group, longest, total = [], lengths[index], lengths[index]
        group.append(index)
    if group:
        yield group
