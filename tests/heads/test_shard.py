import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plsc.heads.shard import initialise_rows, shard_bounds

pytestmark = pytest.mark.core


@given(st.integers(1, 200), st.integers(1, 40))
def test_shards_cover_every_class_once(classes, ranks):
    bounds = [shard_bounds(classes, ranks, rank) for rank in range(ranks)]
    assert bounds[0][0] == 0 and bounds[-1][1] == classes
    assert all(before[1] == after[0] for before, after in zip(bounds, bounds[1:]))
    assert max(b - a for a, b in bounds) - min(b - a for a, b in bounds) <= 1


def test_initial_rows_do_not_depend_on_the_sharding():
    def rows(lower, upper):
        weight = paddle.create_parameter([upper - lower, 3], "float32")
        initialise_rows(weight, lower, seed=5)
        return weight.numpy()

    whole = rows(0, 10000)
    np.testing.assert_array_equal(whole, np.concatenate([rows(*shard_bounds(10000, 3, rank)) for rank in range(3)]))
    assert whole.std() == pytest.approx(0.01, rel=0.05) and len(np.unique(whole)) > 29000
