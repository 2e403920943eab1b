"""Is a row of tokens canonical inside? A lookup of its pairs on the device, and the memory of known pairs.

Shapes: B rows, R some of them, N positions of a hypothesis, M = N - 1 pairs, V vocabulary, K known codes. The code of a
pair is `first * V + second`. Pairs that are not known are settled by the host, all of a batch together.
"""

from collections.abc import Iterable, Mapping

import torch

from roundtrip.tokens.splice.pair_rules import PairRules
from roundtrip.tokens.splice.vocabulary import BAD, PARTIAL

# Why a row is not proved; of a row, the first that holds.
PROVED, SPECIAL, PAIR, BOUNDARY, EMPTY = range(5)
REASONS = ("", "special or unreachable token", "not canonical inside", "merges at a boundary", "empty")

_END = torch.iinfo(torch.int64).max  # closes every table, so that no search ends outside of it


class CanonicalityChecker:
    """What is known of the pairs of one tokenizer, on one device; `num_asked` counts those that the host settled."""

    def __init__(self, pairs: PairRules, device: torch.device) -> None:
        self.pairs = pairs
        self.flags_V = torch.from_numpy(pairs.vocabulary.flags_V).to(device)
        vocab = len(self.flags_V)
        first, second, third = torch.from_numpy(pairs.merge_override_triples_C3).unbind(1)
        self.merge_overrides_K = sorted_table(((first * vocab + second) * vocab + third).tolist(), device)
        self.good_K = self.bad_K = sorted_table((), device)
        self.num_asked = 0

    def lookup(self, ids_BN: torch.Tensor, size_B: torch.Tensor) -> torch.Tensor:
        """Return which rows are known to be canonical, bool, without a sync; False means that more has to be asked.

        What stands at and after `size_B` has no meaning but must be a token id.
        """
        vocab, num = len(self.flags_V), ids_BN.shape[1]
        beyond_BN = torch.arange(num, device=ids_BN.device) >= size_B[:, None]
        good_B = ~self._any_flag(ids_BN, size_B, BAD | PARTIAL)
        if num > 1:
            pair_BM = torch.add(ids_BN[:, 1:], ids_BN[:, :-1], alpha=vocab)
            good_B &= (contains(self.good_K, pair_BM) | beyond_BN[:, 1:]).all(1)
            if len(self.merge_overrides_K) > 1:
                triple_BM = torch.add(ids_BN[:, 2:], pair_BM[:, :-1], alpha=vocab)
                good_B &= ~(contains(self.merge_overrides_K, triple_BM) & ~beyond_BN[:, 2:]).any(1)
        return good_B

    def verify(self, ids_BN: torch.Tensor, size_B: torch.Tensor) -> torch.Tensor:
        """Return for each row PROVED, SPECIAL, or PAIR where its pairs, all known then, do not prove it canonical."""
        good_B = self.lookup(ids_BN, size_B)
        open_R = (~good_B).nonzero()[:, 0]
        if len(open_R) and self._settle_new(ids_BN[open_R], size_B[open_R]):
            good_B = self.lookup(ids_BN, size_B)
        special_B = self._any_flag(ids_BN, size_B, BAD)
        return torch.where(good_B, PROVED, torch.where(special_B, SPECIAL, PAIR))

    def _any_flag(self, ids_BN: torch.Tensor, size_B: torch.Tensor, flags: int) -> torch.Tensor:
        live_BN = torch.arange(ids_BN.shape[1], device=ids_BN.device) < size_B[:, None]
        return ((self.flags_V[ids_BN] & flags != 0) & live_BN).any(1)

    def _settle_new(self, ids_RN: torch.Tensor, size_R: torch.Tensor) -> bool:
        """Settle the unknown pairs of the rows that only these decide; return whether there were any."""
        vocab = len(self.flags_V)
        live_RM = torch.arange(1, ids_RN.shape[1], device=ids_RN.device) < size_R[:, None]
        pair_RM = torch.add(ids_RN[:, 1:], ids_RN[:, :-1], alpha=vocab)
        lost_R = self._any_flag(ids_RN, size_R, BAD | PARTIAL) | (contains(self.bad_K, pair_RM) & live_RM).any(1)
        new_RM = live_RM & ~contains(self.good_K, pair_RM) & ~lost_R[:, None]
        codes = pair_RM[new_RM].unique().tolist()
        canonical = dict(zip(codes, self.pairs.settle([divmod(code, vocab) for code in codes]), strict=True))
        self.num_asked += len(codes)
        self.add_known((code for code in codes if canonical[code]), (code for code in codes if not canonical[code]))
        return bool(codes)

    def add_known(self, good: Iterable[int], bad: Iterable[int]) -> None:
        """Add codes of pairs to what is known."""
        device = self.flags_V.device
        self.good_K = torch.cat([self.good_K, sorted_table(good, device)]).unique()
        self.bad_K = torch.cat([self.bad_K, sorted_table(bad, device)]).unique()

    def state(self) -> dict[str, torch.Tensor]:
        """Return what is known, for a checkpoint: sorted int64 `good` and `bad`, on the CPU."""
        return {"good": self.good_K[:-1].cpu(), "bad": self.bad_K[:-1].cpu()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Add what `state` returned."""
        self.add_known(state["good"].tolist(), state["bad"].tolist())


def sorted_table(codes: Iterable[int], device: torch.device) -> torch.Tensor:
    """Return distinct codes in order, int64, with an end mark behind them."""
    return torch.tensor([*codes, _END], dtype=torch.int64).unique().to(device)


def contains(table_K: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return which codes, each below the end mark, stand in a sorted table."""
    return table_K[torch.searchsorted(table_K, codes)] == codes
