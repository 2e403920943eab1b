"""The guard's tables of codes: what was put in is found, and nothing else."""

from __future__ import annotations

import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from roundtrip.tokens.splice import pair_lookup
from roundtrip.tokens.splice.pair_lookup import NOTHING, contains, hash_table

CPU = torch.device("cpu")
CODES = st.integers(torch.iinfo(torch.int64).min, NOTHING - 1)


@given(st.sets(CODES), st.sets(CODES))
def test_a_table_holds_what_was_put_in_and_nothing_else(inside: set[int], others: set[int]) -> None:
    asked = [*inside, *others]
    found = contains(torch.tensor(asked, dtype=torch.int64), hash_table(inside, CPU))
    assert found.tolist() == [code in inside for code in asked]


def test_large_tables_of_neighbouring_codes_stay_small() -> None:
    """Codes of pairs and triples of tokens differ in few bits; a table that grew for them would not fit a cache."""
    vocab = 128_000
    pairs = {first * vocab + second for first in range(300) for second in range(0, 100_000, 1000)}
    triples = {pair * vocab + third for pair in list(pairs)[:3000] for third in range(10)}
    for codes in (pairs, triples):
        made = hash_table(codes, CPU)
        assert made.numel() <= 8 * len(codes)
        assert contains(torch.tensor(sorted(codes)), made).all()
        assert not contains(torch.tensor(sorted(codes)) + 7 * vocab**2, made).any()


def test_a_table_grows_where_codes_want_the_same_places() -> None:
    random.seed(3)
    by_place: dict[tuple[int, ...], list[int]] = {}
    while max(map(len, by_place.values()), default=0) < 3:
        code = random.getrandbits(60)
        one = torch.tensor([code])
        at = tuple(
            sorted(int(pair_lookup._place(one, factor, pair_lookup._SMALLEST)) for factor in pair_lookup._FACTORS)
        )
        by_place.setdefault(at, []).append(code)
    crowd = max(by_place.values(), key=len)
    made = hash_table(crowd, CPU)
    assert made.numel() > pair_lookup._SMALLEST
    assert contains(torch.tensor(crowd), made).all()
