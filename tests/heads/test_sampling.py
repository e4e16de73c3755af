import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.heads.sampling import sample_rows


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.floats(0.01, 0.999), st.integers(0, 40), st.integers(0, 10**6))
def test_positives_are_in_and_the_budget_is_kept(rows, ratio, wanted, seed):
    positives = np.sort(np.random.default_rng(seed).choice(rows, min(wanted, rows), replace=False))
    chosen = sample_rows(rows, positives, ratio, (seed, 7, 1))
    assert set(positives) <= set(chosen)
    assert len(chosen) == max(int(np.ceil(ratio * rows)), len(positives))
    assert (np.diff(chosen) > 0).all() and chosen.min(initial=0) >= 0 and chosen.max(initial=0) < rows
    assert chosen.dtype == np.int64
    np.testing.assert_array_equal(chosen, sample_rows(rows, positives, ratio, (seed, 7, 1)))


def test_another_step_rank_or_seed_draws_other_rows():
    draws = [
        sample_rows(10_000, np.arange(5), 0.1, key).tolist() for key in ((0, 1, 0), (0, 2, 0), (0, 1, 1), (1, 1, 0))
    ]
    assert len({tuple(draw) for draw in draws}) == 4


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.8])
def test_every_row_and_every_pair_is_drawn_alike(ratio):
    rows, positives, draws = 30, np.array([0, 7, 8, 29]), 20_000
    counts = np.zeros((rows, rows))
    for step in range(draws):
        chosen = sample_rows(rows, positives, ratio, (3, step, 0))
        counts[np.ix_(chosen, chosen)] += 1
    others = np.setdiff1d(np.arange(rows), positives)
    negatives = max(int(np.ceil(ratio * rows)), len(positives)) - len(positives)
    if negatives == 0:
        assert counts[np.ix_(others, others)].sum() == 0
        return
    single = negatives / len(others)
    expected = draws * single
    deviation = np.abs(np.diag(counts)[others] - expected) / np.sqrt(draws * single * (1 - single))
    assert deviation.max() < 4.5
    pair = single * (negatives - 1) / (len(others) - 1)
    if pair:
        together = counts[np.ix_(others, others)][~np.eye(len(others), dtype=bool)]
        assert (np.abs(together - draws * pair) / np.sqrt(draws * pair * (1 - pair))).max() < 5.5


def test_the_work_does_not_grow_with_the_shard():
    # An array of 10^12 rows fits nowhere: only the chosen ones can have been touched.
    chosen = sample_rows(10**12, np.array([5, 10**11]), 1e-9, (0, 0, 0))
    assert len(chosen) in (1000, 1001) and {5, 10**11} <= set(chosen)


def test_more_positives_than_the_budget_are_all_taken():
    positives = np.arange(0, 100, 2)
    np.testing.assert_array_equal(sample_rows(100, positives, 0.1, (0, 0, 0)), positives)
