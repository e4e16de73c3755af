from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.data.sampler import block_indices, epoch_indices


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 2**32), st.integers(0, 100))
def test_ranks_see_every_sample_and_equally_many(num_samples: int, world_size: int, seed: int, epoch: int) -> None:
    parts = [epoch_indices(num_samples, seed, epoch, rank, world_size) for rank in range(world_size)]
    again = [epoch_indices(num_samples, seed, epoch, rank, world_size) for rank in range(world_size)]
    per_rank = math.ceil(num_samples / world_size)
    for part, repeated in zip(parts, again):
        assert part.dtype == np.int64
        assert len(part) == per_rank
        assert np.array_equal(part, repeated)
    whole = np.stack(parts, axis=1).reshape(-1)
    # The first N global positions form the permutation; the rest repeats it.
    assert sorted(whole[:num_samples].tolist()) == list(range(num_samples))
    assert np.array_equal(whole, np.resize(whole[:num_samples], len(whole)))
    counts = np.bincount(whole, minlength=num_samples)
    assert counts.max() - counts.min() <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(50, 200), st.integers(0, 1000), st.integers(0, 100))
def test_epochs_and_seeds_differ(num_samples: int, seed: int, epoch: int) -> None:
    order = epoch_indices(num_samples, seed, epoch, 0, 1)
    assert not np.array_equal(order, epoch_indices(num_samples, seed, epoch + 1, 0, 1))
    assert not np.array_equal(order, epoch_indices(num_samples, seed + 1, epoch, 0, 1))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="num_samples"):
        epoch_indices(0, 0, 0, 0, 1)
    with pytest.raises(ValueError, match="rank"):
        epoch_indices(5, 0, 0, 2, 2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 7), st.integers(0, 100))
def test_blocks_are_dealt_to_ranks_whole_and_each_sample_once(sizes: list[int], world_size: int, epoch: int) -> None:
    blocks = np.cumsum([0, *sizes])
    total, per_rank = int(blocks[-1]), math.ceil(blocks[-1] / world_size)
    parts = [block_indices(blocks, 5, epoch, rank, world_size) for rank in range(world_size)]
    assert all(part.dtype == np.int64 and len(part) == per_rank for part in parts)
    counts = np.bincount(np.concatenate(parts), minlength=total)
    assert len(counts) == total and counts.min() == 1 and counts.sum() == per_rank * world_size
    # A block is split between two ranks at most where the shares meet.
    owners = [np.unique(np.searchsorted(blocks, part, side="right")) for part in parts]
    assert sum(map(len, owners)) <= len(sizes) + 2 * world_size * (1 + world_size * max(sizes) // total)


def test_the_samples_of_a_block_come_at_about_the_same_time_in_another_order_each_epoch() -> None:
    blocks = np.arange(0, 20_001, 20)
    order = block_indices(blocks, 0, 0, 0, 1)
    turns = np.empty(20_000, np.int64)
    turns[order] = np.arange(20_000)
    of_block = turns.reshape(-1, 20)
    assert (of_block.max(axis=1) - of_block.min(axis=1)).max() <= 20 * 18  # a window of 16 blocks, and a block
    assert not np.array_equal(order, block_indices(blocks, 0, 1, 0, 1))
    assert len(set(of_block.argmin(axis=1).tolist())) == 20  # the lines of a block are mixed too
