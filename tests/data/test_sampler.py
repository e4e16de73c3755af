from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.data import sampler
from plsc.data.permutations import KeyedPermutation
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


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 9), st.integers(0, 2**32), st.integers(0, 100))
def test_large_data_is_permuted_by_shares(num_samples: int, world_size: int, seed: int, epoch: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sampler, "LARGE", 1)
        patched.setattr(sampler, "_PIECE", 97)
        parts = [epoch_indices(num_samples, seed, epoch, rank, world_size) for rank in range(world_size)]
    assert all(part.dtype == np.int32 and len(part) == math.ceil(num_samples / world_size) for part in parts)
    whole = np.stack(parts, axis=1).reshape(-1)
    assert np.array_equal(np.sort(whole[:num_samples]), np.arange(num_samples))
    assert np.array_equal(whole, np.resize(whole[:num_samples], len(whole)))


@pytest.mark.parametrize("size", [1 << 16, 100_003, (1 << 17) - 1, 50_001])
def test_a_keyed_permutation_looks_random(size: int) -> None:
    rng = np.random.default_rng(7)
    orders = np.stack([KeyedPermutation(size, rng)(np.arange(size)) for _ in range(20)])
    # Statistics of uniform permutations, all within five standard deviations: fixed points, order, neighbours,
    # neighbours in bits, and the same places of different epochs.
    assert abs((orders == np.arange(size)).sum() - 20) < 5 * math.sqrt(20)
    scaled = (orders - (size - 1) / 2) / math.sqrt((size**2 - 1) / 12)
    for lag in (1, 2, 3, 128, 256, 4096):
        assert abs((scaled[:, lag:] * scaled[:, :-lag]).mean()) < 5 / math.sqrt(scaled.size - 20 * lag)
        steps = np.sort((orders[:, lag:] - orders[:, :-lag]) % size, axis=1)
        share = steps.shape[1] / size  # of independent numbers as many come twice as a Poisson distribution says
        assert abs((np.diff(steps, axis=1) == 0).mean() - 1 + (1 - math.exp(-share)) / share) < 0.01
    assert abs((scaled[1:] * scaled[:-1]).mean()) < 5 / math.sqrt(scaled.size)
    for bit in range(size.bit_length() - 1):
        flipped = np.arange(size) ^ (1 << bit)
        near = np.flatnonzero(flipped < size)
        assert abs((scaled[:, near] * scaled[:, flipped[near]]).mean()) < 7 / math.sqrt(20 * len(near))
    cells = 32  # of places and of entries
    counts = np.stack([
        np.histogram2d(np.arange(size), order, bins=cells, range=[[0, size], [0, size]])[0] for order in orders
    ])  # fmt: skip
    expected = size / cells**2
    chi = ((counts - expected) ** 2 / expected).sum() / 20
    assert abs(chi - (cells - 1) ** 2) < 5 * math.sqrt(2 * (cells - 1) ** 2 / 20) + 31  # counts of rows are fixed


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
    assert len(counts) == total and counts.min() >= 1 and counts.max() - counts.min() <= 1
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
