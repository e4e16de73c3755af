"""The choice of class centres that take part in a step: the labelled ones, and others drawn at random.

An et al., Partial FC, ICCV Workshops 2021, section 3.3.
"""

from __future__ import annotations

import math

import numpy as np


def sample_rows(rows: int, positives: np.ndarray, ratio: float, key: tuple[int, ...]) -> np.ndarray:
    """Draws the rows of a shard that take part in a step.

    They are all positives, and as many others as make up `ratio * rows`, where every subset of that size is equally
    likely. For ratios up to a half the work grows with the number of rows drawn, not with the shard.

    Args:
        rows: The number of rows in the shard.
        positives: Distinct rows that must take part, ascending. If there are more than `ratio * rows`, only they do.
        ratio: The fraction of the rows, in (0, 1).
        key: The seed of the draw, such as (seed, step, rank).

    Returns:
        Distinct rows, ascending, int64.
    """
    budget = max(math.ceil(ratio * rows), len(positives))
    negatives, candidates = budget - len(positives), rows - len(positives)
    if negatives <= 0:
        return positives.astype("int64")
    rng = np.random.default_rng(key)
    if 2 * negatives <= candidates:
        chosen = _distinct(rng, candidates, negatives)
    else:
        chosen = np.delete(np.arange(candidates), _distinct(rng, candidates, candidates - negatives))
    # The k-th row that is not positive: k plus the positives before it.
    chosen += np.searchsorted(positives - np.arange(len(positives)), chosen, side="right")
    return np.sort(np.concatenate([positives, chosen]), kind="stable").astype("int64")  # stable merges sorted runs


def _distinct(rng: np.random.Generator, limit: int, count: int) -> np.ndarray:
    """Draws `count` distinct integers in [0, limit), ascending; `count` is at most half of `limit`."""
    drawn = np.empty(0, dtype="int64")
    while len(drawn) < count:
        # As many draws as are expected to give the missing values in spite of repetitions, and a few more.
        draws = limit * math.log((limit - len(drawn)) / (limit - count))
        extra = int(draws + 4.0 * math.sqrt(draws)) + 16
        drawn = np.sort(np.concatenate([drawn, rng.integers(limit, size=extra)]))
        # np.unique does the same with a hash table from NumPy 2.3 on, which takes 70 times as long as to sort.
        drawn = drawn[np.diff(drawn, prepend=-1) > 0]
    # If there are too many, some are left out at random, so that no value is preferred.
    surplus = len(drawn) - count
    return np.delete(drawn, rng.choice(len(drawn), surplus, replace=False)) if surplus else drawn
