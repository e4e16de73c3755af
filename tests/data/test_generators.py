"""The generators of many images."""

import numpy as np
import pytest

from plsc.data.generators import generators_of


@pytest.mark.core
@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1, 2**32, 2**70])
@pytest.mark.parametrize(("epoch", "last"), [(0, 5), (3, 2**32 - 1), (2**32 - 1, 2**32), (2**33, 9)])
def test_they_are_those_that_numpy_seeds_one_by_one(seed, epoch, last):
    positions = np.array([0, 1, last])
    for position, rng in zip(positions.tolist(), generators_of(seed, epoch, positions)):
        wanted = np.random.default_rng((seed, epoch, position))
        assert rng.bit_generator.state == wanted.bit_generator.state
        assert (
            rng.normal() == wanted.normal() and rng.integers(9, size=3).tolist() == wanted.integers(9, size=3).tolist()
        )
    assert not list(generators_of(seed, epoch, positions[:0]))
