"""The splice: training rows out of generated ids, as tensors: head | hypothesis | middle | target | end token.

Shapes: B rows, N positions of a hypothesis (at least one), M of a target, T of a row, K middles, L positions of the
longest one, V vocabulary. Every function is pure, compiles as one graph, and never makes the host wait for the device.
Boundaries are covered here; `canonicality` decides whether a source is canonical inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from roundtrip.tokens.prompt_segments import Segments
from roundtrip.tokens.prompt_template import PromptTemplate, TokenRow
from roundtrip.tokens.splice.boundary_tables import BoundaryTables
from roundtrip.tokens.splice.vocabulary import BAD, LEADING_SPACE, SPACE

IGNORE = -100
# Flags of a token at the end of a hypothesis, beside those of `vocabulary`.
STOP, BREAK = 16, 32


@dataclass(frozen=True)
class BoundaryTensors:
    """`BoundaryTables` on one device: ids int64, the middles padded.

    `flags_V` is uint8: SPACE and LEADING_SPACE of `vocabulary`, and what ends a hypothesis.
    """

    head_H: torch.Tensor
    mid_KL: torch.Tensor
    mid_size_K: torch.Tensor
    first_V: torch.Tensor
    last_V: torch.Tensor
    mid_V: torch.Tensor
    flags_V: torch.Tensor
    space: int
    end_id: int
    pad_id: int


@dataclass(frozen=True)
class SplicedRows:
    """Training rows, int64, right-padded: ids, tokens of each row, and the position of its first label."""

    ids_BT: torch.Tensor
    size_B: torch.Tensor
    start_B: torch.Tensor

    def padded(self) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask`, `labels` and `position_ids`, all int64 of shape (B, T)."""
        position_T = torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device)
        live_BT = position_T < self.size_B[:, None]
        return {
            "input_ids": self.ids_BT,
            "attention_mask": live_BT.long(),
            "labels": torch.where(live_BT & (position_T >= self.start_B[:, None]), self.ids_BT, IGNORE),
            "position_ids": torch.where(live_BT, position_T, 0),
        }

    def to_rows(self, indices: Sequence[int]) -> list[TokenRow]:
        """Return some rows as lists on the host, in the given order."""
        index_R = torch.tensor(indices, dtype=torch.int64, device=self.ids_BT.device)
        rows = zip(*(column[index_R].tolist() for column in (self.ids_BT, self.size_B, self.start_B)), strict=True)
        return [TokenRow(ids[:size], start) for ids, size, start in rows]


def boundary_tensors(
    tables: BoundaryTables, flags_V: torch.Tensor, reverse: PromptTemplate, forward: PromptTemplate
) -> BoundaryTensors:
    """Put the boundary tables of the forward template on the device of `flags_V`, uint8, see `vocabulary`."""
    end_id, pad_id = forward.segments.end_id, forward.tokenizer.pad_token_id
    pad_id = end_id if pad_id is None else pad_id
    width = max(len(mid) for mid in tables.mids)
    mids = [[*mid, *(width - len(mid)) * [pad_id]] for mid in tables.mids]
    fixed = (tables.head, mids, [len(mid) for mid in tables.mids])
    head_H, mid_KL, mid_size_K, first_V, last_V, mid_V = (
        torch.tensor(values, dtype=torch.int64, device=flags_V.device)
        for values in (*fixed, tables.first_V, tables.last_V, tables.mid_V)
    )
    flags_V = with_end_flags(flags_V, reverse.segments)
    return BoundaryTensors(head_H, mid_KL, mid_size_K, first_V, last_V, mid_V, flags_V, tables.space, end_id, pad_id)


def with_end_flags(flags_V: torch.Tensor, segments: Segments) -> torch.Tensor:
    """Return flags with those of the ids that end a hypothesis, some of which this vocabulary may not have."""
    ends = (*segments.stop_ids, *segments.break_ids)
    size = max(flags_V.shape[0], 1 + max(ends, default=0))
    flags_V = torch.nn.functional.pad(flags_V, (0, size - flags_V.shape[0]), value=BAD)
    for ids, flag in ((segments.stop_ids, STOP), (segments.break_ids, BREAK)):
        flags_V[torch.tensor(ids, dtype=torch.int64, device=flags_V.device)] |= flag
    return flags_V


def find_ends(new_BN: torch.Tensor, flags_V: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find where hypotheses end, by position: at the first stop token, or behind the first line break.

    Returns size_B, int64, tokens without the stop token, and finished_B, bool. What follows an end may be padding of
    any value that is no token, such as -100.
    """
    num = new_BN.shape[1]
    flags_BN = flags_V[new_BN.clamp(0, flags_V.shape[0] - 1)]
    outside_BN = (new_BN < 0) | (new_BN >= flags_V.shape[0])
    ended_BN = (flags_BN & (STOP | BREAK) != 0) | outside_BN
    end_B = torch.where(ended_BN, 0, 1).cumprod(1).sum(1)
    end_B1 = end_B.clamp(max=num - 1)[:, None]
    is_token_B = ~outside_BN.gather(1, end_B1)[:, 0]
    by_break_B = (flags_BN.gather(1, end_B1)[:, 0] & BREAK != 0) & is_token_B
    inside_B = end_B < num
    return end_B + (inside_B & by_break_B), inside_B & is_token_B


def trim_source(
    ids_BN: torch.Tensor, size_B: torch.Tensor, tensors: BoundaryTensors
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Strip white space from hypotheses, and replace first and last token by what they become in the source slot.

    Returns ids_BN, left-aligned; size_B; mid_B, which middle follows; and fits_B, bool, False where the first or last
    token merges at its boundary, or nothing is left.
    """
    num = ids_BN.shape[1]
    position_N = torch.arange(num, device=ids_BN.device)
    # An id beyond the vocabulary becomes the end token, which no row passes with.
    ids_BN = torch.where((ids_BN >= 0) & (ids_BN < tensors.first_V.shape[0]), ids_BN, tensors.end_id)
    ids_BN = torch.where(position_N < size_B[:, None], ids_BN, tensors.pad_id)
    visible_BN = ((tensors.flags_V[ids_BN] & SPACE) == 0) & (position_N < size_B[:, None])
    # argmax finds the first of equals; a row without visible text ends up with size 0.
    lead_B = visible_BN.to(torch.uint8).argmax(1)
    end_B = num - visible_BN.flip(1).to(torch.uint8).argmax(1)
    any_B = visible_BN.gather(1, lead_B[:, None])[:, 0]
    if tensors.space >= 0:
        before_B = ids_BN.gather(1, (lead_B - 1).clamp(min=0)[:, None])[:, 0]
        # A space that the head leaves to the slot stays in front of a token that begins with none.
        leading_B = (tensors.flags_V[ids_BN.gather(1, lead_B[:, None])[:, 0]] & LEADING_SPACE) != 0
        lead_B = lead_B - ((lead_B > 0) & (before_B == tensors.space) & ~leading_B).long()
    size_B = torch.where(any_B, end_B - lead_B, 0)
    ids_BN = ids_BN.gather(1, (position_N + lead_B[:, None]).clamp(max=num - 1))
    first_B = tensors.first_V[ids_BN[:, 0]]
    ids_BN = torch.where(position_N == 0, first_B.clamp(min=0)[:, None], ids_BN)
    at_B1 = (size_B - 1).clamp(min=0)[:, None]
    before_B = ids_BN.gather(1, at_B1)[:, 0]
    last_B = tensors.last_V[before_B]
    ids_BN = ids_BN.scatter(1, at_B1, last_B.clamp(min=0)[:, None])
    # The only token of a row is first and last: what became of it must still be right as the first.
    alone_B = tensors.first_V[ids_BN[:, 0]] == ids_BN[:, 0]
    fits_B = any_B & (first_B >= 0) & (last_B >= 0) & alone_B
    return ids_BN, size_B, tensors.mid_V[before_B], fits_B


def splice_rows(
    source_BN: torch.Tensor,
    source_size_B: torch.Tensor,
    mid_B: torch.Tensor,
    target_BM: torch.Tensor,
    target_size_B: torch.Tensor,
    tensors: BoundaryTensors,
) -> SplicedRows:
    """Join head, source, middle, target and end token into rows of width H + N + L + M + 1.

    The source is from `trim_source`; targets are their ids in the slot, right-padded with any value.
    """
    (num_rows, num), device = source_BN.shape, source_BN.device
    head, mid, target = len(tensors.head_H), tensors.mid_KL.shape[1], target_BM.shape[1]
    width = head + num + mid + target + 1
    position_T = torch.arange(width, device=device)
    source_end_B = head + source_size_B
    start_B = source_end_B + tensors.mid_size_K[mid_B]
    end_B = start_B + target_size_B
    # Each part is written where the one before it ends, over what that one's padding left there.
    ids_BT = source_BN.new_full((num_rows, width), tensors.pad_id)
    ids_BT[:, :head] = tensors.head_H
    ids_BT[:, head : head + num] = source_BN
    for part_BX, at_B in ((tensors.mid_KL[mid_B], source_end_B), (target_BM, start_B)):
        ids_BT.scatter_(1, at_B[:, None] + position_T[: part_BX.shape[1]], part_BX)
    ids_BT.scatter_(1, end_B[:, None], tensors.end_id)
    size_B = end_B + 1
    return SplicedRows(torch.where(position_T < size_B[:, None], ids_BT, tensors.pad_id), size_B, start_B)
