"""Decides which samples a rank sees in an epoch, and in which order."""

from __future__ import annotations

import numpy as np

from plsc.data.permutations import KeyedPermutation

WINDOW_BLOCKS = 16  # the number of blocks whose samples are mixed
MIXED_FILES = 4  # the number of files whose blocks are mixed, where files are read in turn
LARGE = 1 << 24  # samples, of which a permutation in memory takes 128 MiB and about a second on every rank
_PIECE = 1 << 15


def epoch_indices(num_samples: int, seed: int, epoch: int, rank: int, world_size: int) -> np.ndarray:
    """Returns the samples of a rank in the order of an epoch, [ceil(num_samples / world_size)].

    All ranks take their share of the same permutation, which (seed, epoch) determines, so together they see every
    sample. The permutation wraps around until every rank has equally many samples. Entry `k` is at global position
    `k * world_size + rank`.

    Returns:
        The samples, int64; int32 if there are `LARGE` samples or more, for which no rank computes the places of others.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, not {num_samples}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside [0, {world_size})")
    per_rank = -(-num_samples // world_size)
    if num_samples >= LARGE:
        permutation = KeyedPermutation(num_samples, np.random.default_rng((seed, epoch)))
        order = np.empty(per_rank, np.int32 if num_samples <= 1 << 31 else np.int64)
        for first in range(0, per_rank, _PIECE):
            positions = np.arange(first, min(first + _PIECE, per_rank)) * world_size + rank
            order[first : first + _PIECE] = permutation(positions % num_samples)
        return order
    whole = np.random.default_rng((seed, epoch)).permutation(num_samples)
    positions = np.arange(per_rank, dtype=np.int64) * world_size + rank
    return whole[positions % num_samples].astype(np.int64, copy=False)


def samples_at(num_samples: int, seed: int, epoch: int, positions: np.ndarray) -> np.ndarray:
    """Returns the samples at some positions of the order that `epoch_indices` gives to a single rank, int64 [P].

    Args:
        num_samples: Number of samples.
        seed: Seed of the order.
        epoch: Number of the epoch.
        positions: Places in the order, in [0, num_samples), int64 [P].
    """
    if num_samples < LARGE:
        return epoch_indices(num_samples, seed, epoch, 0, 1)[positions]
    permutation = KeyedPermutation(num_samples, np.random.default_rng((seed, epoch)))
    found = np.empty(len(positions), np.int64)
    for first in range(0, len(positions), _PIECE):
        found[first : first + _PIECE] = permutation(positions[first : first + _PIECE])
    return found


def block_indices(
    blocks: np.ndarray, seed: int, epoch: int, rank: int, world_size: int, window: int = WINDOW_BLOCKS
) -> np.ndarray:
    """Returns the samples of a rank for data whose blocks are read as a whole, int64 [ceil(num_samples / world_size)].

    (seed, epoch) determines an order of the blocks, which is the same on all ranks. Each rank takes a consecutive share
    of their samples, the last ones from the beginning again until all shares are equally long. Within its share a rank
    mixes the samples of neighbouring blocks: a sample comes up to `window` blocks late.

    Args:
        blocks: First sample of each block, and the number of samples, int64 [B + 1].
        seed: Seed of the orders.
        epoch: Number of the epoch.
        rank: Rank to draw for.
        world_size: Number of ranks.
        window: Number of blocks whose samples are mixed.
    """
    num_samples = int(blocks[-1])
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, not {num_samples}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside [0, {world_size})")
    per_rank = -(-num_samples // world_size)
    positions = np.arange(rank * per_rank, (rank + 1) * per_rank, dtype=np.int64)
    samples, turns = samples_in_turn(blocks, positions % num_samples, (seed, epoch))
    return mix_blocks(samples, turns + positions // num_samples * (len(blocks) - 1), (seed, epoch, rank), window)


def samples_in_turn(blocks: np.ndarray, positions: np.ndarray, key: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the samples at some positions of an order of whole blocks, and the turns of their blocks, both int64 [P].

    Args:
        blocks: First sample of each block, and the number of samples, int64 [B + 1].
        positions: Places in the order, ascending, int64 [P].
        key: Seed of the order of the blocks.
    """
    permuted = np.random.default_rng(key).permutation(len(blocks) - 1)
    ends = np.cumsum(np.diff(blocks)[permuted])
    turns = np.searchsorted(ends, positions, side="right")
    return blocks[permuted[turns] + 1] - ends[turns] + positions, turns


def mix_blocks(samples: np.ndarray, turns: np.ndarray, key: tuple[int, ...], window: int = WINDOW_BLOCKS) -> np.ndarray:
    """Returns the samples mixed with those of the `window` blocks that come next, int64 [P].

    Args:
        samples: The samples, block by block, int64 [P].
        turns: Turn of the block of each sample, int64 [P].
        key: Seed of the mixing.
        window: Number of blocks whose samples are mixed.
    """
    mixing = np.random.default_rng(key).random(len(samples))
    return samples[np.argsort(turns + window * mixing, kind="stable")]


def mixed_turns(groups: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """Returns an order of things that belong to groups, in which groups come in turn and neighbouring ones are mixed.

    Args:
        groups: Number of the group of each thing, int64 [n]; the numbers are 0 to G - 1.
        width: Number of groups that are mixed: a thing comes up to `width` groups after the first of its group.
        rng: Draws the order.

    Returns:
        The turn of each thing, a permutation of 0 to n - 1, int64 [n].
    """
    begins = rng.permutation(int(groups.max()) + 1)
    order = np.argsort(begins[groups] + width * rng.random(len(groups)), kind="stable")
    turns = np.empty(len(groups), np.int64)
    turns[order] = np.arange(len(groups))
    return turns
