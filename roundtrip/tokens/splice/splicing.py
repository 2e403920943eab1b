"""The splice: training rows out of generated ids, as tensors, without text and without waiting for the device.

Shapes: B rows, N positions of a hypothesis (one at least), M of a target, T of a row, L of the
longest middle, V vocabulary.

    head | hypothesis | middle | target | end token        labels on target and end token

Every function here is pure, runs on any device, compiles as one graph, and holds no `.item()`, no boolean index and
no other reason for a host to wait. Whether a row may be spliced is the guard's question; `TrimmedSource.fits_B` is the
answer of the seams alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from roundtrip.tokens.splice.boundary_tables import BoundaryTables
from roundtrip.tokens.splice.vocabulary import BAD, BLANK_LEFT, SPACE

IGNORE = -100
# Flags of a token at the end of a hypothesis, beside those of `vocabulary`.
STOP, BREAK = 16, 32


@dataclass(frozen=True)
class BoundaryTensors:
    """The slots of a template as tensors on one device.

    Attributes:
        head_H: int64, ids in front of the source.
        mid_KL: int64, the middles, padded.
        mid_size_K: int64.
        first_V, last_V, mid_V: int64, see `BoundaryTables`.
        flags_V: uint8, white space, and what ends a hypothesis.
        space: see `BoundaryTables`.
        end_id, pad_id: of a row.
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
class TrimmedSource:
    """Hypotheses made ready for the slot.

    Attributes:
        ids_BN: int64, left-aligned; what stands at and after `size_B` has no meaning.
        size_B: int64.
        mid_B: int64, which middle follows.
        fits_B: bool; False where a seam refuses the first or the last token, or nothing is left.
    """

    ids_BN: torch.Tensor
    size_B: torch.Tensor
    mid_B: torch.Tensor
    fits_B: torch.Tensor


@dataclass(frozen=True)
class SplicedRows:
    """Training rows, right-padded.

    Attributes:
        ids_BT: int64.
        size_B: int64, tokens of each row.
        start_B: int64, place of the first label.
    """

    ids_BT: torch.Tensor
    size_B: torch.Tensor
    start_B: torch.Tensor

    def padded(self) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask`, `labels` and `position_ids`, all int64 of shape (B, T)."""
        place_T = torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device)
        live_BT = place_T < self.size_B[:, None]
        return {
            "input_ids": self.ids_BT,
            "attention_mask": live_BT.long(),
            "labels": torch.where(live_BT & (place_T >= self.start_B[:, None]), self.ids_BT, IGNORE),
            "position_ids": torch.where(live_BT, place_T, 0),
        }

    def packed(self, capacity: int) -> dict[str, torch.Tensor]:
        """Return all rows one behind the other in a single one of a given size.

        Args:
            capacity: tokens of the packed row, known to the host; what does not fit is lost, so it must hold all.

        Returns:
            `input_ids`, `labels`, `position_ids`, int64 of shape (1, capacity), positions starting over with each
            row, and `cu_seq_lens`, int32 of shape (B + 2,): where each row begins, the end of the last one, and
            `capacity`, so that the padding is a sequence of its own, without labels.
        """
        padded = self.padded()
        rows, width = self.ids_BT.shape
        ends_B = self.size_B.cumsum(0)
        starts_B = ends_B - self.size_B
        place_BT = torch.where(padded["attention_mask"] == 1, starts_B[:, None] + padded["position_ids"], capacity)
        place_X = place_BT.clamp(max=capacity).reshape(-1)
        total = ends_B[-1:]
        rest_C = torch.arange(capacity, device=self.ids_BT.device)
        fills = {"input_ids": 0, "labels": IGNORE, "position_ids": 0}
        packed = {}
        for name, fill in fills.items():
            line = torch.full((capacity + 1,), fill, dtype=torch.int64, device=self.ids_BT.device)
            packed[name] = line.scatter(0, place_X, padded[name].reshape(-1))[None, :capacity]
        packed["input_ids"] = torch.where(rest_C < total, packed["input_ids"], self.ids_BT[:1, :1])
        packed["position_ids"] = torch.where(rest_C < total, packed["position_ids"], rest_C - total)
        bounds = [torch.zeros_like(total), ends_B, torch.full_like(total, capacity)]
        packed["cu_seq_lens"] = torch.cat(bounds).to(torch.int32)
        return packed


def boundary_tensors(
    tables: BoundaryTables,
    flags_V: torch.Tensor,
    stop_ids: tuple[int, ...],
    break_ids: tuple[int, ...],
    end_id: int,
    pad_id: int,
) -> BoundaryTensors:
    """Put slots on the device of `flags_V`.

    Args:
        flags_V: uint8, see `vocabulary`.
        stop_ids, break_ids: of the template that the hypotheses are written with, see `Segments`.
        end_id: closes every row.
        pad_id: fills rows; any id of the vocabulary.
    """
    device = flags_V.device
    flags_V = with_end_flags(flags_V, stop_ids, break_ids)
    width = max(len(mid) for mid in tables.mids)
    mids = [[*mid, *(width - len(mid)) * [pad_id]] for mid in tables.mids]
    arrays = (tables.first_V, tables.last_V, tables.mid_V)
    first_V, last_V, mid_V = (torch.from_numpy(array).to(device) for array in arrays)
    return BoundaryTensors(
        torch.tensor(tables.head, dtype=torch.int64, device=device),
        torch.tensor(mids, dtype=torch.int64, device=device),
        torch.tensor([len(mid) for mid in tables.mids], device=device),
        first_V,
        last_V,
        mid_V,
        flags_V,
        tables.space,
        end_id,
        pad_id,
    )


def with_end_flags(flags_V: torch.Tensor, stop_ids: tuple[int, ...], break_ids: tuple[int, ...]) -> torch.Tensor:
    """Return flags with those of the ids that end a hypothesis, some of which this vocabulary may not have."""
    size = max(flags_V.shape[0], 1 + max((*stop_ids, *break_ids), default=0))
    flags_V = torch.nn.functional.pad(flags_V, (0, size - flags_V.shape[0]), value=BAD)
    for ids, flag in ((stop_ids, STOP), (break_ids, BREAK)):
        flags_V[torch.tensor(ids, dtype=torch.int64, device=flags_V.device)] |= flag
    return flags_V


def find_ends(new_BN: torch.Tensor, flags_V: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find where hypotheses end, by position: at the first stop token, or behind the first line break.

    Args:
        new_BN: int64, what generation wrote behind the prompt; what follows an end has no meaning, and may be
            padding of any value that is no token (such as -100).
        flags_V: of a `BoundaryTensors`.

    Returns:
        size_B, int64, tokens without the stop token; finished_B, bool.
    """
    num = new_BN.shape[1]
    flags_BN = flags_V[new_BN.clamp(0, flags_V.shape[0] - 1)]
    outside_BN = (new_BN < 0) | (new_BN >= flags_V.shape[0])
    ended_BN = (flags_BN & (STOP | BREAK) != 0) | outside_BN
    place_B = torch.where(ended_BN, 0, 1).cumprod(1).sum(1)
    at_B1 = place_B.clamp(max=num - 1)[:, None]
    by_break_B = (flags_BN.gather(1, at_B1)[:, 0] & BREAK != 0) & ~outside_BN.gather(1, at_B1)[:, 0]
    inside_B = place_B < num
    return place_B + (inside_B & by_break_B), inside_B & ~outside_BN.gather(1, at_B1)[:, 0]


def trim_source(ids_BN: torch.Tensor, size_B: torch.Tensor, to: BoundaryTensors) -> TrimmedSource:
    """Make hypotheses ready for the slot: strip white space, and turn first and last token into what stands there.

    Args:
        ids_BN: int64, generated ids, any value at and after `size_B`.
        size_B: int64, from `ends`.
    """
    num = ids_BN.shape[1]
    place_N = torch.arange(num, device=ids_BN.device)
    # An id that no token has is taken for the end token, which the guard refuses.
    ids_BN = torch.where((ids_BN >= 0) & (ids_BN < to.first_V.shape[0]), ids_BN, to.end_id)
    ids_BN = torch.where(place_N < size_B[:, None], ids_BN, to.pad_id)
    says_BN = ((to.flags_V[ids_BN] & SPACE) == 0) & (place_N < size_B[:, None])
    # argmax finds the first of equals; a row that says nothing ends up with size 0.
    lead_B = says_BN.to(torch.uint8).argmax(1)
    end_B = num - says_BN.flip(1).to(torch.uint8).argmax(1)
    any_B = says_BN.gather(1, lead_B[:, None])[:, 0]
    if to.space >= 0:
        before_B = ids_BN.gather(1, (lead_B - 1).clamp(min=0)[:, None])[:, 0]
        # A space that the head leaves to the slot stays in front of a token that brings none.
        brings_B = (to.flags_V[ids_BN.gather(1, lead_B[:, None])[:, 0]] & BLANK_LEFT) != 0
        lead_B = lead_B - ((lead_B > 0) & (before_B == to.space) & ~brings_B).long()
    size_B = torch.where(any_B, end_B - lead_B, 0)
    ids_BN = ids_BN.gather(1, (place_N + lead_B[:, None]).clamp(max=num - 1))
    first_B = to.first_V[ids_BN[:, 0]]
    ids_BN = torch.where(place_N == 0, first_B.clamp(min=0)[:, None], ids_BN)
    at_B1 = (size_B - 1).clamp(min=0)[:, None]
    before_B = ids_BN.gather(1, at_B1)[:, 0]
    last_B = to.last_V[before_B]
    ids_BN = ids_BN.scatter(1, at_B1, last_B.clamp(min=0)[:, None])
    # The only token of a row is first and last: what became of it must still be right as the first.
    alone_B = to.first_V[ids_BN[:, 0]] == ids_BN[:, 0]
    fits_B = any_B & (first_B >= 0) & (last_B >= 0) & alone_B
    return TrimmedSource(ids_BN, size_B, to.mid_V[before_B], fits_B)


def splice_rows(
    source: TrimmedSource, target_BM: torch.Tensor, target_size_B: torch.Tensor, into: BoundaryTensors
) -> SplicedRows:
    """Join head, source, middle, target and end token into rows.

    Args:
        source: from `trim`.
        target_BM: int64, ids of the targets in their slot, right-padded with any value.
        target_size_B: int64.

    Returns:
        Rows of width H + N + L + M + 1; trim it where the host knows the longest row.
    """
    (num_rows, num), device = source.ids_BN.shape, source.ids_BN.device
    head, mid, target = len(into.head_H), into.mid_KL.shape[1], target_BM.shape[1]
    width = head + num + mid + target + 1
    place_T = torch.arange(width, device=device)
    source_end_B = head + source.size_B
    start_B = source_end_B + into.mid_size_K[source.mid_B]
    end_B = start_B + target_size_B
    # Each part is written where the one before it ends, over what that one's padding left there.
    ids_BT = source.ids_BN.new_full((num_rows, width), into.pad_id)
    ids_BT[:, :head] = into.head_H
    ids_BT[:, head : head + num] = source.ids_BN
    for part_BX, at_B in ((into.mid_KL[source.mid_B], source_end_B), (target_BM, start_B)):
        ids_BT.scatter_(1, at_B[:, None] + place_T[: part_BX.shape[1]], part_BX)
    ids_BT.scatter_(1, end_B[:, None], into.end_id)
    size_B = end_B + 1
    return SplicedRows(torch.where(place_T < size_B[:, None], ids_BT, into.pad_id), size_B, start_B)
