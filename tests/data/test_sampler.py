from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.data.sampler import epoch_indices


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
