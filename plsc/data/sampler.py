"""Decides which samples a rank sees in an epoch, and in which order."""

from __future__ import annotations

import numpy as np


def epoch_indices(num_samples: int, seed: int, epoch: int, rank: int, world_size: int) -> np.ndarray:
    """Returns the samples of a rank in the order of an epoch, int64 [ceil(num_samples / world_size)].

    All ranks take their share of the same permutation, which (seed, epoch) determines, so together they see every
    sample. The permutation wraps around until every rank has equally many samples. Entry `k` is at global position
    `k * world_size + rank`.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, not {num_samples}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside [0, {world_size})")
    permutation = np.random.default_rng((seed, epoch)).permutation(num_samples)
    per_rank = -(-num_samples // world_size)
    positions = np.arange(per_rank, dtype=np.int64) * world_size + rank
    return permutation[positions % num_samples].astype(np.int64, copy=False)
