"""The random generators of many images, in a fraction of the time that NumPy takes to seed each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

# The constants of numpy.random.SeedSequence (Melissa O'Neill's seed_seq), which will not change: NEP 19.
_POOL, _STATE = 4, 8  # words
_FIRST, _STEP = 0x43B0D7E5, 0x931E8875  # to hash what goes into the pool
_FIRST_OUT, _STEP_OUT = 0x8B51F9DD, 0x58F38DED  # and what comes out of it
_LEFT, _RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_SHIFT, _LIMIT = np.uint32(16), 1 << 32


def generators_of(seed: int, epoch: int, positions: np.ndarray) -> Iterator[np.random.Generator]:
    """Yields `numpy.random.default_rng((seed, epoch, position))` for each position.

    Args:
        seed: The seed, at least 0.
        epoch: The epoch, from 0.
        positions: The positions, int64 [n], from 0.

    Yields:
        A generator, with the same numbers to the bit.
    """
    if max(seed, epoch, int(positions.max(initial=0))) >= _LIMIT:  # such numbers have two words each
        for position in positions.tolist():
            yield np.random.default_rng((seed, epoch, position))
        return
    for state in _states(seed, epoch, positions):
        yield np.random.Generator(np.random.PCG64(_Seed(state)))  # type: ignore[arg-type]


class _Seed(np.random.bit_generator.ISeedSequence):  # type: ignore[misc]
    """A seed whose words are known."""

    def __init__(self, words: np.ndarray) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """Returns the words, uint64 [4], which is what PCG64 asks for."""
        return self._words


class _Hash:
    """The hash of `SeedSequence`, whose constants depend on how often it was called."""

    def __init__(self, first: int, step: int) -> None:
        self._constant, self._step = first, step

    def __call__(self, words: np.ndarray) -> np.ndarray:
        """Returns the hashes of words, uint32 [n]."""
        words = words ^ np.uint32(self._constant)
        self._constant = self._constant * self._step % _LIMIT
        words *= np.uint32(self._constant)
        words ^= words >> _SHIFT
        return words


def _states(seed: int, epoch: int, positions: np.ndarray) -> np.ndarray:
    """Returns the four words with which PCG64 begins for each position, uint64 [n, 4]."""
    hashed = _Hash(_FIRST, _STEP)
    entropy = (np.full(len(positions), number, np.uint32) for number in (seed, epoch))
    pool = [hashed(words) for words in (*entropy, positions.astype(np.uint32), np.zeros(len(positions), np.uint32))]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                mixed: np.ndarray = _LEFT * pool[target] - _RIGHT * hashed(pool[source])
                pool[target] = mixed ^ (mixed >> _SHIFT)
    hashed = _Hash(_FIRST_OUT, _STEP_OUT)
    words = np.stack([hashed(pool[k % _POOL]) for k in range(_STATE)], axis=1).astype(np.uint64)
    return words[:, ::2] | words[:, 1::2] << np.uint64(32)
