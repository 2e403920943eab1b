"""Seeds derived from names, and permutations derived from seeds: there is no random state to save."""

import hashlib
from functools import lru_cache


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on all parts and on nothing else."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def permuted_index(index: int, size: int, seed: int, epoch: int) -> int:
    """Return the value at `index` of a random permutation of range(size), without a table.

    A Feistel network over the next even power of two permutes; values outside the range are permuted again
    until they fall inside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    value = index
    while True:
        left, right = value >> half_bits, value & mask
        for key in _keys(seed, epoch):
            left, right = right, left ^ (_mix(right ^ key) & mask)
        value = left << half_bits | right
        if value < size:
            return value


@lru_cache(maxsize=64)
def _keys(seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(derive_seed(seed, epoch, number) for number in range(4))


def _mix(value: int) -> int:
    """Scramble 64 bits (the finalizer of SplitMix64)."""
    value &= 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
