"""Is a row canonical inside? A lookup on the device, and the memory of pairs behind it.

Shapes: B rows, N positions of a hypothesis, P = N + 1 places between and around them, V vocabulary, K known pairs.

A row is good when each place between two of its units is known to be good. Two lookups: `lookup`, without a sync, for
rows whose tokens are whole characters, which in most languages are nearly all; `codes` for rows with characters cut
across tokens. What neither knows is settled by the host, for all rows of a batch together, and known from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch

from roundtrip.tokens.splice.pair_lookup import NOTHING, contains, hash_table, known_canonical, place_codes
from roundtrip.tokens.splice.pair_rules import PairRules
from roundtrip.tokens.splice.vocabulary import BAD, TokenGroup

# Why a row is not proved; reasons of a row, the first that holds.
PROVED, SPECIAL, PAIR, BOUNDARY, EMPTY = range(5)
REASONS = ("", "special or unreachable token", "not canonical inside", "merges at a seam", "empty")

# A seam's own question about a unit of several tokens: is it left whole there?
AskBoundary = Callable[[TokenGroup], bool]


class _Place(NamedTuple):
    """A place that is not known: its code and triple, the units around it and the one in front of these."""

    code: int
    triple: int
    front: TokenGroup
    left: TokenGroup
    right: TokenGroup


class CanonicalityChecker:
    """What is known of the pairs of one tokenizer, on one device.

    Attributes:
        num_asked: how many pairs the host has settled.
    """

    def __init__(self, pairs: PairRules, device: torch.device) -> None:
        self.pairs = pairs
        self.flags_V = torch.from_numpy(pairs.vocabulary.flags_V).to(device)
        random = torch.Generator().manual_seed(20)
        self.mix_V = torch.randint(-(1 << 62), 1 << 62, self.flags_V.shape, generator=random).to(device)
        vocab = len(self.flags_V)
        first, second, third = torch.from_numpy(pairs.merge_override_triples_C3).unbind(1)
        merge_overrides = ((first * vocab + second) * vocab + third).tolist()
        self.merge_overrides_K = hash_table(merge_overrides, device) if merge_overrides else None
        self.num_asked = 0
        self._good: set[int] = set()
        self._bad: set[int] = set()
        self.good_K = self.bad_K = hash_table((), device)

    def lookup(self, ids_BN: torch.Tensor, size_B: torch.Tensor) -> torch.Tensor:
        """Return which rows are known to be canonical; see `lookup`."""
        return known_canonical(ids_BN, size_B, self.flags_V, self.good_K, self.merge_overrides_K)

    def verify(
        self,
        ids_BN: torch.Tensor,
        size_B: torch.Tensor,
        good_B: torch.Tensor,
        fits_B: torch.Tensor,
        salts: tuple[int, int],
        ask_first: AskBoundary,
        ask_last: AskBoundary,
    ) -> torch.Tensor:
        """Settle what `lookup` left open: one look at the device, at most one call of the tokenizer.

        Args:
            good_B: what `lookup` returned.
            fits_B: what the tables of the seams say, see `splice.TrimmedSource`.
            salts: a number for each of the two seams, the same whenever their question is the same.
            ask_first, ask_last: settle a first or last unit of several tokens.

        Returns:
            reason_B, int64: PROVED, SPECIAL, PAIR, SEAM or EMPTY.
        """
        reason_B = torch.where(fits_B, torch.where(good_B, PROVED, PAIR), torch.where(size_B > 0, BOUNDARY, EMPTY))
        rows = (reason_B == PAIR).nonzero()[:, 0]
        if not len(rows):
            return reason_B
        ids_RN, size_R = ids_BN[rows], size_B[rows]
        live_RN = torch.arange(ids_RN.shape[1], device=rows.device) < size_R[:, None]
        special_R = ((self.flags_V[ids_RN] & BAD != 0) & live_RN).any(1)
        found_RP, triples_RP = place_codes(ids_RN, size_R, self.flags_V, self.mix_V, salts)
        known_RP = contains(found_RP, self.good_K) | (found_RP == NOTHING)
        known_R = (known_RP | contains(triples_RP, self.good_K) & (triples_RP != NOTHING)).all(1)
        reason_R = torch.where(special_R, SPECIAL, torch.where(known_R, PROVED, PAIR))
        if self.merge_overrides_K is not None and ids_RN.shape[1] > 2:
            vocab = len(self.flags_V)
            triple_RM = (ids_RN[:, :-2] * vocab + ids_RN[:, 1:-1]) * vocab + ids_RN[:, 2:]
            overridden_R = (contains(triple_RM, self.merge_overrides_K) & live_RN[:, 2:]).any(1)
            reason_R = torch.where(overridden_R & (reason_R == PROVED), PAIR, reason_R)
            known_R |= overridden_R
        # One place that is known to be wrong is enough: what else the row asks need not be settled.
        wrong_RP = contains(found_RP, self.bad_K) & ((triples_RP == NOTHING) | contains(triples_RP, self.bad_K))
        wrong_RP &= found_RP != NOTHING
        at_boundary_R = wrong_RP[:, 0] | wrong_RP.gather(1, size_R[:, None])[:, 0]
        reason_R = torch.where((reason_R == PAIR) & at_boundary_R, BOUNDARY, reason_R)
        open_R = (~known_R & ~special_R & ~wrong_RP.any(1)).nonzero()[:, 0]
        if len(open_R):
            rows_RP = torch.stack([found_RP[open_R], triples_RP[open_R]], -1)
            judged = self._settle(ids_RN[open_R], size_R[open_R], rows_RP, ask_first, ask_last)
            reason_R = reason_R.index_put((open_R,), torch.tensor(judged, device=rows.device))
        return reason_B.index_put((rows,), reason_R)

    def _settle(
        self,
        ids_RN: torch.Tensor,
        size_R: torch.Tensor,
        codes_RP2: torch.Tensor,
        ask_first: AskBoundary,
        ask_last: AskBoundary,
    ) -> list[int]:
        """Look at rows on the host: settle every place that is not known, then judge them.

        Args:
            codes_RP2: int64, code and triple of each place, see `codes`.
        """
        asked = [
            self._places(ids[:size], row)
            for ids, size, row in zip(ids_RN.tolist(), size_R.tolist(), codes_RP2.tolist(), strict=True)
        ]
        pairs = {one.code: one for row in asked for one in row if one.code not in self._bad}
        inner = {code: (one.left, one.right) for code, one in pairs.items() if one.left and one.right}
        answers = dict(zip(inner, self.pairs.settle(list(inner.values())), strict=True))
        for code, one in pairs.items():
            if code not in inner:
                answers[code] = ask_last(one.left) if one.left else ask_first(one.right)
        self._learn(answers)
        # What is not right everywhere may be right behind what stands in front of it.
        behind = {
            one.triple: (one.front, one.left, one.right)
            for row in asked
            for one in row
            if one.code in self._bad
            and one.triple != NOTHING
            and one.triple not in self._good
            and one.triple not in self._bad
        }
        self._learn(dict(zip(behind, self.pairs.settle_behind(list(behind.values())), strict=True)))
        return [self._judged(row) for row in asked]

    def _places(self, ids: list[int], row: list[list[int]]) -> list[_Place]:
        """Return the places of a row that are not known to be good."""
        groups = self.pairs.vocabulary.groups(ids)
        found = []
        at = 0
        # Places come in order: the first unit's, those between units, the last unit's.
        for number, group in enumerate([*groups, ()]):
            code, triple = row[at]
            if code != NOTHING and code not in self._good:
                left = groups[number - 1] if number else ()
                found.append(_Place(code, triple, groups[number - 2] if number > 1 else (), left, group))
            at += len(group)
        return found

    def _judged(self, row: list[_Place]) -> int:
        wrong = [one for one in row if one.code in self._bad and one.triple not in self._good]
        if any(not one.left or not one.right for one in wrong):
            return BOUNDARY
        return PAIR if wrong else PROVED

    def _learn(self, answers: Mapping[int, bool]) -> None:
        self.num_asked += len(answers)
        self.add_known(
            (code for code, good in answers.items() if good), (code for code, good in answers.items() if not good)
        )

    def add_known(self, good: Iterable[int], bad: Iterable[int]) -> None:
        """Add codes to what is known."""
        self.good_K = self._kept(self._good, good, self.good_K)
        self.bad_K = self._kept(self._bad, bad, self.bad_K)

    def _kept(self, known: set[int], new: Iterable[int], table_K: torch.Tensor) -> torch.Tensor:
        before = len(known)
        known.update(new)
        return table_K if len(known) == before else hash_table(known, self.flags_V.device)

    def state(self) -> dict[str, torch.Tensor]:
        """Return what is known, for a checkpoint: sorted int64 `good` and `bad`."""
        return {
            name: torch.tensor(sorted(of), dtype=torch.int64) for name, of in (("good", self._good), ("bad", self._bad))
        }

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up what `state` gave."""
        self.add_known(state["good"].tolist(), state["bad"].tolist())
