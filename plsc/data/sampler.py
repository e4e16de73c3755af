"""Which samples a rank sees in an epoch, and in which order."""

from __future__ import annotations

import numpy as np


def epoch_indices(num_samples: int, seed: int, epoch: int, rank: int, world_size: int) -> np.ndarray:
    """Return int64 [ceil(num_samples / world_size)], this rank's samples of ``epoch`` in order.

    All ranks cut the same permutation of (seed, epoch), so together they see every sample; the permutation is
    continued from its own start until every rank has equally many. Entry ``k`` is at global position
    ``k * world_size + rank``.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, not {num_samples}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside [0, {world_size})")
    permutation = np.random.default_rng((seed, epoch)).permutation(num_samples)
    per_rank = -(-num_samples // world_size)
    positions = np.arange(per_rank, dtype=np.int64) * world_size + rank
    return permutation[positions % num_samples].astype(np.int64, copy=False)
