"""The lookup of the guard: codes of neighbouring units, and tables of those that are known; tensors only.

A table is a cuckoo hash (Pagh and Rodler 2004): a code stands at one of two places, so that a lookup is two reads and
no search.

Shapes: B rows, N positions of a hypothesis, P = N + 1 places between and around them, V vocabulary, K places of a
table, a power of two.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch

from roundtrip.tokens.splice.vocabulary import BAD, GLUE_LEFT, GLUE_RIGHT

NOTHING = torch.iinfo(torch.int64).max  # the code of a place that asks nothing, and an empty place of a table
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)  # the golden ratio in 64 bits, odd, so that it has an inverse
# Of the two places of a code: odd factors, and how far their products are shifted before the bits are taken.
_FACTORS = (_ODD, 0xD6E8FEB86659FD93 - (1 << 64))
_SHIFT = 33
_SMALLEST, _LARGEST = 1 << 6, 1 << 31
# Places for each code, and how often codes may push each other out before the table grows.
_ROOM, _ROUNDS = 3, 64


def known_canonical(
    ids_BN: torch.Tensor,
    size_B: torch.Tensor,
    flags_V: torch.Tensor,
    good_K: torch.Tensor,
    merge_overrides_K: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return which rows are known to be canonical, by whole-character tokens alone.

    Args:
        ids_BN: int64, left-aligned; what stands at and after `size_B` has no meaning but must be a token id.
        flags_V: uint8, see `vocabulary`.
        good_K: int64, table of the codes of known-good places.
        traps_K: int64, table of the codes of three tokens, see `pairs`; None where the tokenizer has none.

    Returns:
        good_B, bool. False only means that more has to be asked.
    """
    vocab, num = flags_V.shape[0], ids_BN.shape[1]
    beyond_BN = torch.arange(num, device=ids_BN.device) >= size_B[:, None]
    flagged_BN = flags_V[ids_BN] & (BAD | GLUE_LEFT | GLUE_RIGHT) != 0
    good_B = ~(flagged_BN & ~beyond_BN).any(1)
    if num > 1:
        pair_BM = torch.add(ids_BN[:, 1:], ids_BN[:, :-1], alpha=vocab)
        good_B &= (contains(pair_BM, good_K) | beyond_BN[:, 1:]).all(1)
    if merge_overrides_K is not None and num > 2:
        triple_BM = torch.add(ids_BN[:, 2:], pair_BM[:, :-1], alpha=vocab)
        good_B &= ~(contains(triple_BM, merge_overrides_K) & ~beyond_BN[:, 2:]).any(1)
    return good_B


def place_codes(
    ids_BN: torch.Tensor,
    size_B: torch.Tensor,
    flags_V: torch.Tensor,
    mix_V: torch.Tensor,
    salts: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the code of every place of rows that may hold characters cut across tokens.

    Two single tokens have the code `first * V + second`, exactly. A unit of several tokens gives a 62-bit hash of
    both units, made negative. In front of the first and behind the last unit stands a code only where that unit is
    several tokens or no whole character: for single ones the seams have a table.

    Args:
        mix_V: int64, a random number for each token, of which hashes are made.
        salts: of the two seams.

    Returns:
        codes_BP, int64: place p is in front of token p; NOTHING where nothing is asked.
        triples_BP, int64: the same with the unit in front, where there is one; for pairs that depend on it.
    """
    (num_rows, num), vocab, device = ids_BN.shape, flags_V.shape[0], ids_BN.device
    place_P = torch.arange(num + 1, device=device)
    size_B1 = size_B[:, None]
    flags_BN = flags_V[ids_BN]
    edge_BP = torch.ones((num_rows, num + 1), dtype=torch.bool, device=device)
    edge_BP[:, 1:num] = ((flags_BN[:, 1:] & GLUE_LEFT) | (flags_BN[:, :-1] & GLUE_RIGHT)) == 0
    edge_BP |= place_P >= size_B1
    # The unit before place p begins at `before`, the unit behind it ends at `after`.
    begin_BP = torch.where(edge_BP, place_P, 0).cummax(1).values
    before_BP = torch.cat([begin_BP[:, :1], begin_BP[:, :-1]], 1)
    end_BP = torch.where(edge_BP, place_P, num).flip(1).cummin(1).values.flip(1)
    after_BP = torch.minimum(torch.cat([end_BP[:, 1:], end_BP[:, -1:]], 1), size_B1)
    powers_P, inverses_P = _powers(num + 1, device)
    sums_BP = torch.nn.functional.pad((mix_V[ids_BN] * powers_P[:-1]).cumsum(1), (1, 0))
    window_BP = (sums_BP.gather(1, after_BP) - sums_BP.gather(1, before_BP)) * inverses_P[before_BP]
    boundary_BP = torch.where(place_P == size_B1, salts[1], torch.where(place_P == 0, salts[0], 0))
    hashed_BP = _spread(window_BP + boundary_BP + (after_BP - before_BP))
    plain_BP = torch.full_like(hashed_BP, NOTHING)
    plain_BP[:, 1:num] = torch.add(ids_BN[:, 1:], ids_BN[:, :-1], alpha=vocab)
    plain_BP = plain_BP.masked_fill((place_P == 0) | (place_P == size_B1), NOTHING)
    glued_BP = torch.nn.functional.pad(flags_BN & (GLUE_LEFT | GLUE_RIGHT) != 0, (1, 1))
    clean_BP = ~(glued_BP[:, :-1] & (place_P > 0) | glued_BP[:, 1:] & (place_P < size_B1))
    single_BP = (place_P - before_BP <= 1) & (after_BP - place_P <= 1) & clean_BP
    asked_BP = edge_BP & (place_P <= size_B1)
    codes_BP = torch.where(asked_BP, torch.where(single_BP, plain_BP, hashed_BP), NOTHING)
    behind_BP = asked_BP & (before_BP > 0) & (place_P < size_B1)
    triples_BP = _spread(codes_BP.gather(1, before_BP) * _ODD + codes_BP)
    return codes_BP, torch.where(behind_BP, triples_BP, NOTHING)


def contains(codes: torch.Tensor, table_K: torch.Tensor) -> torch.Tensor:
    """Return which codes stand in a table; NOTHING has no meaning there."""
    first, second = (table_K[_place(codes, factor, table_K.numel())] for factor in _FACTORS)
    return (first == codes) | (second == codes)


def hash_table(codes: Iterable[int], device: torch.device) -> torch.Tensor:
    """Return a table of codes, none of them twice."""
    codes_X = torch.tensor(list(codes), dtype=torch.int64)
    size = max(_SMALLEST, 1 << (_ROOM * len(codes_X) - 1).bit_length())
    while (found_K := _filled(codes_X, size)) is None:
        assert size < _LARGEST, "three codes have the same two places"
        size *= 2
    return found_K.to(device)


def _filled(codes_X: torch.Tensor, size: int) -> torch.Tensor | None:
    """Return a table of a size; None where its codes find no rest."""
    table_K = torch.full((size,), NOTHING)
    which_X = torch.zeros_like(codes_X)
    at_X = torch.stack([_place(codes_X, factor, size) for factor in _FACTORS])
    open_X = torch.arange(len(codes_X))
    owner_K = torch.full((size,), -1)
    for _ in range(_ROUNDS):
        place_X = at_X[which_X[open_X], open_X]
        pushed_X = owner_K[place_X]
        owner_K[place_X] = open_X  # where several want one place, one of them gets it
        lost_X = open_X[owner_K[place_X] != open_X]
        pushed_X = pushed_X[pushed_X >= 0].unique()
        open_X = torch.cat([lost_X, pushed_X])
        if not len(open_X):
            taken_K = owner_K >= 0
            table_K[taken_K] = codes_X[owner_K[taken_K]]
            return table_K
        which_X[open_X] = 1 - which_X[open_X]
    return None


def _place(codes: torch.Tensor, factor: int, size: int) -> torch.Tensor:
    return ((codes * factor) >> _SHIFT) & (size - 1)


def _spread(hash_BP: torch.Tensor) -> torch.Tensor:
    """Mix the bits of a hash and make it a negative number that no pair of single tokens has."""
    mixed = hash_BP * _ODD
    return (mixed ^ (mixed >> 29)) | torch.iinfo(torch.int64).min


@lru_cache(maxsize=64)
def _powers(num: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the powers of an odd number and of its inverse, modulo 2^64, as int64."""
    inverse = pow(_ODD, -1, 1 << 64)
    tables = ([_signed(pow(base, i, 1 << 64)) for i in range(num)] for base in (_ODD % (1 << 64), inverse))
    powers, inverses = (torch.tensor(table, dtype=torch.int64, device=device) for table in tables)
    return powers, inverses


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
