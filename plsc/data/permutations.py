"""Random permutations that give any entry without computing the others: Feistel networks with cycle walking.

`KeyedPermutation` is for many entries of one permutation: its tables make an entry cheap. `permuted` is for a few
entries of each of many permutations: it has no tables, and takes a key with each entry.
"""

from __future__ import annotations

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # what keys that must differ are apart
_ROUNDS = 8


class KeyedPermutation:
    """A random permutation of [0, N) that gives any entry without computing the others.

    It is a Feistel network (Luby and Rackoff, 1988): a number is split into two halves of bits, and each round changes
    one half by a random function of the other, which can be undone. The functions are tables of random numbers of about
    sqrt(N) entries. The network permutes the numbers below a power of two. One that comes out as N or more goes in
    again until it is below N (cycle walking; Black and Rogaway, 2002), which takes less than two turns on average.

    Args:
        size: N.
        rng: Draws the tables.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self._size = size
        bits = max(2, (size - 1).bit_length())
        self._low = bits // 2
        lower, upper = 1 << self._low, 1 << (bits - self._low)
        self._mask = lower - 1
        self._rounds = [
            (rng.integers(0, upper, lower, np.int64), rng.integers(0, lower, upper, np.int64))
            for _ in range(_ROUNDS // 2)
        ]

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """Returns the entries at places in [0, N), int64 [n]; they are quickest in pieces that fit into a cache."""
        entries = self._turn(places)
        while len(outside := np.flatnonzero(entries >= self._size)):
            entries[outside] = self._turn(entries[outside])
        return entries

    def _turn(self, numbers: np.ndarray) -> np.ndarray:
        low, high = numbers & self._mask, numbers >> self._low
        for of_low, of_high in self._rounds:
            high ^= of_low[low]
            low ^= of_high[high]
        return (high << self._low) | low


def keys_of(seed: int, *numbers: object) -> np.ndarray:
    """Returns a key of a random permutation for each combination of integers or int64 [n], uint64 [n]."""
    key = np.full(1, np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    for number in numbers:
        key = _mixed(key + np.asarray(number).astype(np.uint64) * GOLDEN)
    return key


def permuted(places: np.ndarray, sizes: object, keys: np.ndarray) -> np.ndarray:
    """Returns where random permutations send numbers.

    It is a Feistel network over the next power of two, which is walked until the result is small enough: a permutation
    of [0, size) for each key, without a table.

    Args:
        places: Numbers, of which those outside [0, size) stay as they are, int64 [n].
        sizes: Size of each permutation, or of all, int64 [n] or an int.
        keys: Key of each permutation, or of all, uint64 [n] or [1].

    Returns:
        Numbers in [0, size), int64 [n].
    """
    found = places.copy()
    sizes, keys = np.broadcast_to(np.asarray(sizes), places.shape), np.broadcast_to(keys, places.shape)
    # float64 holds all sizes below 2^53, so the logarithm is exact where it matters.
    bits = np.frexp(np.maximum(sizes - 1, 0).astype(np.float64))[1].astype(np.uint64)
    left = np.flatnonzero((places >= 0) & (places < sizes))
    # The rotation sends a number to each of a few others equally often, to which alone the network would need many
    # rounds.
    turned = (keys[left] >> np.uint64(32)).astype(np.int64)
    found[left] = (places[left] + turned) % sizes[left]
    while len(left):
        found[left] = _feistel(found[left].astype(np.uint64), bits[left], keys[left]).astype(np.int64)
        left = left[found[left] >= sizes[left]]
    return found


def _feistel(values: np.ndarray, bits: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Returns values of so many bits that a permutation of all such values sends these to."""
    one = np.uint64(1)
    low_bits = bits >> one
    low_mask, high_mask = (one << low_bits) - one, (one << (bits - low_bits)) - one
    low, high = values & low_mask, values >> low_bits
    for number in range(0, _ROUNDS, 2):
        high ^= _mixed(keys + low * GOLDEN + np.uint64(number)) & high_mask
        low ^= _mixed(keys + high * GOLDEN + np.uint64(number + 1)) & low_mask
    return high << low_bits | low


def _mixed(values: np.ndarray) -> np.ndarray:
    """Returns random numbers that depend on every bit of the given ones, uint64 [n] (the finalizer of SplitMix64)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
