"""A random permutation of 0 .. n - 1 that is computed, not stored.

An epoch of a trillion tokens has a billion windows; a shuffled list of them would be 8 GB on every
rank. A Feistel network is a bijection whatever its round function does, so eight rounds of integer
mixing permute a power of two, and cycle walking (apply again until the value is below n) brings
that to any n in fewer than two applications on average (Black and Rogaway, "Ciphers with arbitrary
finite domains", 2002; below 32 values it takes more). Any element is found in constant time and
memory, which is what makes the data position of a run one integer.

The values are part of the resume guarantee: a change here changes the data order of every run, so
the tests pin some.
"""

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_ROUNDS = 8  # even, so that halves of unequal width are back in their places at the end
_SMALLEST_BITS = 6  # halves of one or two bits reach only few of the permutations
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # splitmix64's

U64 = npt.NDArray[np.uint64]


def mix(values: U64, key: int) -> U64:
    """Scatters 64-bit integers: the finaliser of splitmix64 applied to ``values + key``."""
    mixed = values + np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MULTIPLIERS[0]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MULTIPLIERS[1]
    return mixed ^ (mixed >> np.uint64(31))


@lru_cache(maxsize=64)
def keys(name: str, count: int) -> tuple[int, ...]:
    """``count`` independent 64-bit keys derived from ``name``."""
    return tuple(
        int.from_bytes(hashlib.sha256(f"{name}/{i}".encode()).digest()[:8], "little")
        for i in range(count)
    )


def permute(indices: npt.ArrayLike, n: int, name: str) -> npt.NDArray[np.int64]:
    """Where the permutation called ``name`` of 0 .. n - 1 sends each of ``indices``.

    >>> permute([0, 1, 2, 3, 4], 5, "example").tolist()
    [1, 3, 0, 4, 2]

    Args:
        indices: integers in 0 .. n - 1, any shape.
        n: size of the permuted range, at least 1.
        name: chooses the permutation; every name gives an unrelated one.
    """
    values = np.array(indices, dtype=np.int64)
    assert n >= 1
    assert values.size == 0 or (values.min() >= 0 and values.max() < n), "index outside 0 .. n - 1"
    flat: U64 = values.reshape(-1).astype(np.uint64)
    outside = np.arange(flat.size)
    round_keys = keys(name, _ROUNDS)
    bits = max(_SMALLEST_BITS, (n - 1).bit_length())
    while outside.size:
        flat[outside] = _feistel(flat[outside], bits, round_keys)
        outside = outside[flat[outside] >= n]
    return flat.astype(np.int64).reshape(values.shape)


def _feistel(values: U64, bits: int, round_keys: tuple[int, ...]) -> U64:
    """One bijection of 0 .. 2**bits - 1; left and right halves may differ by one bit."""
    left_bits, right_bits = bits // 2, bits - bits // 2
    left = values >> np.uint64(right_bits)
    right = values & np.uint64((1 << right_bits) - 1)
    for key in round_keys:
        scrambled = mix(right, key) & np.uint64((1 << left_bits) - 1)
        left, right = right, left ^ scrambled
        left_bits, right_bits = right_bits, left_bits
    return (left << np.uint64(right_bits)) | right
