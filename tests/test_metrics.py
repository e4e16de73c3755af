from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plsc.errors import DataError
from plsc.metrics import (
    all_pairs_metrics,
    average_templates,
    count_different,
    identification_metrics,
    pair_similarity,
    pairs_of_labels,
    roc_curve,
    tar_at_far,
    verification_metrics,
)
from plsc.metrics.roc import at_rates, auc, equal_error_rate, roc_of_pairs


def make(pairs: int, seed: int, dim: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    issame = rng.random(pairs) < 0.5
    left = rng.normal(size=(pairs, dim))
    right = np.where(issame[:, None], left + rng.normal(size=(pairs, dim)), rng.normal(size=(pairs, dim)))
    embeddings = np.empty((2 * pairs, dim), np.float32)
    embeddings[0::2], embeddings[1::2] = left, right
    return 7 * embeddings, issame


def naive(embeddings: np.ndarray, issame: np.ndarray, folds: int) -> tuple[float, float]:
    """Follows the protocol literally: every threshold on every fold."""
    unit = [row / np.linalg.norm(row) for row in embeddings.astype(float)]
    pairs = len(issame)
    distance = np.array([((unit[2 * i] - unit[2 * i + 1]) ** 2).sum() for i in range(pairs)])
    accuracies = []
    for test in np.array_split(np.arange(pairs), folds):
        train = np.setdiff1d(np.arange(pairs), test) if folds > 1 else test
        best, best_accuracy = 0.0, -1.0
        for threshold in np.arange(0, 4, 0.01):
            accuracy = ((distance[train] < threshold) == issame[train]).mean()
            if accuracy > best_accuracy:
                best, best_accuracy = threshold, accuracy
        accuracies.append(((distance[test] < best) == issame[test]).mean())
    return float(np.mean(accuracies)), float(np.std(accuracies))


def naive_tar(similarity: np.ndarray, issame: np.ndarray, far: float) -> float:
    best = 0.0
    for threshold in np.unique(similarity):
        accepted = similarity >= threshold
        if (accepted & ~issame).sum() / (~issame).sum() <= far:
            best = max(best, (accepted & issame).sum() / issame.sum())
    return float(best)


@pytest.mark.parametrize("pairs", [2, 7, 10, 23, 95, 200])
def test_accuracy_equals_a_naive_implementation(pairs: int) -> None:
    embeddings, issame = make(pairs, pairs)
    result = verification_metrics(embeddings, issame)
    accuracy, std = naive(embeddings, issame, min(10, pairs))
    assert result["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert result["std"] == pytest.approx(std, abs=1e-12)
    assert result["xnorm"] == pytest.approx(np.mean([np.linalg.norm(row) for row in embeddings]), rel=1e-6)
    assert {"accuracy", "std", "tar@1e-3", "xnorm", "auc", "eer"} < set(result)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("far", [0.0, 1e-3, 0.01, 0.1, 1.0])
def test_tar_equals_a_naive_implementation(seed: int, far: float) -> None:
    rng = np.random.default_rng(seed)
    similarity = rng.normal(size=300).round(1 if seed % 2 else 6)  # Rounding makes ties.
    issame = rng.random(300) < 0.4
    similarity[issame] += 1
    assert tar_at_far(similarity, issame, far) == naive_tar(similarity, issame, far)


def test_tar_of_a_set_equals_that_of_its_similarities() -> None:
    embeddings, issame = make(400, 3)
    unit = embeddings.astype(float) / np.linalg.norm(embeddings.astype(float), axis=1)[:, None]
    similarity = (unit[0::2] * unit[1::2]).sum(axis=1)
    assert pair_similarity(embeddings) == pytest.approx(similarity)
    assert verification_metrics(embeddings, issame)["tar@1e-3"] == naive_tar(similarity, issame, 1e-3)


def test_far_reached_exactly_counts() -> None:
    similarity = np.arange(1001, dtype=float)[::-1]
    issame = np.zeros(1001, bool)
    issame[1] = True  # One of 1,000 different pairs scores higher.
    assert tar_at_far(similarity, issame, 1e-3) == 1.0
    assert tar_at_far(similarity, issame, 0.9e-3) == 0.0


def test_roc_curve() -> None:
    far, tar = roc_curve(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    assert far.tolist() == [0, 0, 0.5, 1]
    assert tar.tolist() == [0, 0.5, 1, 1]


@pytest.mark.parametrize("same", [True, False])
def test_one_kind_of_pairs(same: bool) -> None:
    embeddings, _ = make(20, 0)
    result = verification_metrics(embeddings, np.full(20, same))
    assert math.isnan(result["tar@1e-3"])
    assert 0 <= result["accuracy"] <= 1


def test_one_pair() -> None:
    result = verification_metrics(np.ones((2, 4), np.float32), np.array([True]))
    assert (result["accuracy"], result["std"], result["xnorm"]) == (1.0, 0.0, 2.0)


def test_perfect_separation() -> None:
    embeddings = np.zeros((40, 2), np.float32)
    embeddings[:, 0] = 3
    embeddings[1::4] = (0, 5)
    result = verification_metrics(embeddings, np.arange(20) % 2 == 1)
    assert (result["accuracy"], result["tar@1e-3"], result["xnorm"]) == (1.0, 1.0, 3.5)


def test_zero_and_bad_embeddings() -> None:
    embeddings, issame = make(20, 0)
    embeddings[3] = 0
    numbers = [value for value in verification_metrics(embeddings, issame).values() if not isinstance(value, dict)]
    assert all(math.isfinite(value) for value in numbers)
    for value in (np.nan, np.inf):
        embeddings[5, 2] = value
        with pytest.raises(DataError, match="embedding 5 is not finite"):
            verification_metrics(embeddings, issame)
    with pytest.raises(DataError, match="not finite"):
        roc_curve(np.array([np.nan]), np.array([True]))


def test_shapes_must_fit() -> None:
    with pytest.raises(DataError, match="do not fit"):
        verification_metrics(np.ones((3, 4)), np.array([True, False]))
    with pytest.raises(DataError, match="do not fit"):
        verification_metrics(np.ones((0, 4)), np.zeros(0, bool))
    with pytest.raises(DataError, match="does not fit"):
        roc_curve(np.ones(3), np.array([True]))


def test_many_pairs_are_fast() -> None:
    embeddings, issame = make(100_000, 1)
    start = time.process_time()
    verification_metrics(embeddings, issame)
    assert time.process_time() - start < 60, "it takes 0.5 s; comparing all with all would take minutes"


@given(st.lists(st.integers(0, 4), min_size=3, max_size=25), st.integers(2, 60), st.integers(0, 3))
def test_pairs_of_labels(labels: list[int], most: int, seed: int) -> None:
    values = np.array(labels)
    alike = values[:, None] == values[None]
    every = np.triu(np.ones_like(alike), 1)
    kinds = [int((every & kind).sum()) for kind in (alike, ~alike)]
    if 0 in kinds:
        with pytest.raises(DataError, match="do not give pairs of both kinds"):
            pairs_of_labels(values, most, seed)
        return
    pairs, issame = pairs_of_labels(values, most, seed)
    assert pairs.shape == (len(issame), 2) and issame.dtype == bool
    assert np.array_equal(values[pairs[:, 0]] == values[pairs[:, 1]], issame)
    assert len({frozenset(pair) for pair in pairs.tolist()}) == len(pairs)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert [issame.sum(), (~issame).sum()] == [min(kinds[0], most // 2), min(kinds[1], most - most // 2)]


def test_pairs_of_many_labels_are_drawn_evenly() -> None:
    """A million samples: classes of 10 and one of 100,000, whose pairs are nearly all pairs of one class."""
    labels = np.concatenate([np.arange(900_000) // 10, np.full(100_000, 90_000)])
    pairs, issame = pairs_of_labels(labels, 6000)
    assert issame.sum() == 3000 and len(pairs) == 6000
    assert (labels[pairs[issame]] == 90_000).all(axis=1).mean() > 0.99
    # A sample of a pair of two classes is in the large one with a probability of 0.0947.
    share = (labels[pairs[~issame]] == 90_000).mean()
    assert abs(share - 0.0947) < 0.02


def test_curve_area_and_equal_error_rate_are_those_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for decimals in (8, 1):  # Rounding to 1 decimal makes many ties.
        issame = rng.random(500) < 0.4
        scores = np.round(rng.normal(size=500) * 0.3 + 0.4 * issame, decimals)
        roc = roc_of_pairs(scores, issame)
        far, tar = roc.rates()
        expected_far, expected_tar, thresholds = sklearn.roc_curve(issame, scores, drop_intermediate=False)
        assert np.array_equal(far, expected_far) and np.array_equal(tar, expected_tar)
        assert np.array_equal(roc.thresholds, thresholds[1:])
        assert auc(roc) == pytest.approx(sklearn.roc_auc_score(issame, scores), abs=1e-12)
        rate, threshold = equal_error_rate(roc)
        crossing = np.interp(rate, expected_far, 1 - expected_tar)
        if decimals == 8:
            assert rate == pytest.approx(crossing, abs=1 / 150)
            assert (scores[~issame] >= threshold).mean() == pytest.approx(rate, abs=1 / 150)


def test_equal_error_rate_by_hand() -> None:
    """Two of four same pairs score below one of the four different pairs."""
    roc = roc_of_pairs(np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]), np.array([1, 1, 0, 1, 1, 0, 0, 0], bool))
    rate, threshold = equal_error_rate(roc)
    assert (rate, threshold) == (0.25, 0.6)
    assert auc(roc) == 14 / 16


def test_rates_that_need_more_pairs_are_left_out() -> None:
    scores = np.linspace(1, -1, 3600)
    issame = np.arange(3600) < 600  # All score above the 3,000 different ones.
    found = rates_of(scores, issame)
    assert list(found) == ["1e-1", "1e-2", "1e-3"]
    assert found["1e-3"]["tar"] == found["1e-3"]["low"] == 1.0
    accepted = scores[~issame] >= found["1e-3"]["threshold"]
    assert accepted.sum() == 3
    assert rates_of(scores[:3599], issame[:3599]).keys() == {"1e-1", "1e-2"}
    assert at_rates(roc_of_pairs(scores, np.ones(3600, bool))) == {}


def rates_of(scores: np.ndarray, issame: np.ndarray) -> dict[str, dict[str, float]]:
    return at_rates(roc_of_pairs(scores, issame))


def test_bounds_equal_those_of_a_bootstrap_that_draws_every_pair() -> None:
    rng = np.random.default_rng(1)
    issame = np.arange(900) < 300
    scores = rng.normal(size=900) + 2 * issame
    (found,) = at_rates(roc_of_pairs(scores, issame), [0.05]).values()
    drawn = []
    for _ in range(3000):
        same = rng.choice(scores[issame], 300)
        other = np.sort(rng.choice(scores[~issame], 600))[::-1]
        drawn.append((same > other[30]).mean())  # It is the first rejected pair.
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found["low"] == pytest.approx(low, abs=0.02)
    assert found["high"] == pytest.approx(high, abs=0.02)
    assert found["low"] < found["tar"] < found["high"]


def test_pairs_of_one_identity_make_bounds_wider() -> None:
    """Each of 30 identities is accepted or rejected as a whole, with 45 pairs each."""
    rng = np.random.default_rng(2)
    identities = np.repeat(np.arange(30), 45)
    same = np.repeat(rng.normal(size=30) + 1.5, 45) + 1e-3 * rng.normal(size=1350)
    scores, issame = np.concatenate([same, rng.normal(size=1000)]), np.arange(2350) < 1350
    roc = roc_of_pairs(scores, issame)
    single, grouped = at_rates(roc, [0.1])["1e-1"], at_rates(roc, [0.1], (same, identities))["1e-1"]
    assert single["tar"] == grouped["tar"]
    assert grouped["high"] - grouped["low"] > 1.5 * (single["high"] - single["low"])


@given(st.integers(0, 1000), st.integers(1, 3))
def test_all_pairs_of_labelled_images_are_counted_once(seed: int, shares: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 12)
    embeddings = rng.normal(size=(12, 3)).astype(np.float32)
    counts = sum(count_different(embeddings, labels, share, shares) for share in range(shares))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    i, j = np.triu_indices(12, 1)
    different = labels[i] != labels[j]
    assert counts.sum() == different.sum()
    below = counts[: 1 << 19].sum()  # The number of cosines below 0.
    assert below == ((unit[i] * unit[j]).sum(axis=1)[different] < 0).sum()


def test_metrics_of_all_pairs_equal_those_of_the_listed_pairs() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(20), 4)
    embeddings = (rng.normal(size=(20, 8))[labels] + 0.7 * rng.normal(size=(80, 8))).astype(np.float32)
    counts = count_different(embeddings, labels)
    found = all_pairs_metrics(embeddings, labels, counts)
    assert found == all_pairs_metrics(embeddings, labels, counts, drawn=pairs_of_labels(labels))
    i, j = np.triu_indices(80, 1)
    listed = verification_metrics(embeddings, labels[i] == labels[j], pairs=np.stack([i, j], axis=1))
    for name in ("tar@1e-3", "auc", "eer", "eer_threshold", "xnorm"):
        assert found[name] == pytest.approx(listed[name], abs=1e-3), name
    assert (found["pairs"], found["different_pairs"]) == (80 * 79 // 2, 80 * 79 // 2 - 20 * 6)
    assert found["at_far"]["1e-2"]["tar"] == pytest.approx(listed["at_far"]["1e-2"]["tar"], abs=0.02)
    # There are 120 pairs of each kind, so that rejecting all of them would be right half of the time.
    assert found["accuracy"] == pytest.approx(1 - listed["eer"], abs=0.05)
    worthless = rng.normal(size=(80, 8)).astype(np.float32)
    assert 0.4 < all_pairs_metrics(worthless, labels, count_different(worthless, labels))["accuracy"] < 0.6


def test_folds_can_be_given() -> None:
    embeddings, issame = make(60, 4)
    order = np.argsort(np.arange(60) % 3, kind="stable")
    rows = np.stack([2 * order, 2 * order + 1], axis=1)
    by_number = verification_metrics(embeddings, issame, folds=np.arange(60) % 3)
    in_order = verification_metrics(embeddings, issame[order], folds=3, pairs=rows)
    assert by_number["accuracy"] == in_order["accuracy"] and by_number["std"] == in_order["std"]


def test_identification_by_hand() -> None:
    """Five identities on a plane; the third probe is nearer to another one, and the last two have no mate."""

    def at(*degrees: float) -> np.ndarray:
        return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1).astype(np.float32)

    gallery, known = at(0, 40, 80, 120, 160), np.array([7, 3, 9, 4, 1])
    found = identification_metrics(gallery, known, at(5, 42, 90, 125, 200, 60), np.array([7, 3, 4, 4, 50, 51]), (1, 2))
    assert found["rank@1"] == 0.75 and found["rank@2"] == 1.0
    assert (found["gallery"], found["probes"], found["mated"]) == (5, 6, 4)
    assert found["at_fpir"] == {}  # Two probes without a mate are too few for any rate.


@given(st.integers(0, 1000))
def test_identification_equals_a_naive_implementation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gallery, probes = rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=(80, 4)).astype(np.float32)
    identities = rng.integers(0, 40, 80)
    identities[0] = 0
    known = rng.permutation(30)
    found = identification_metrics(gallery, known, probes, identities, (1, 5), (0.5,))
    unit = [
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (gallery.astype(float), probes.astype(float))
    ]
    cosines = unit[1] @ unit[0].T
    ranks, right, strangers = [], [], []
    for row, identity in zip(cosines, identities):
        if identity in known:
            ranks.append(1 + int((row > row[known == identity]).sum()))
            right.append(row.max() if ranks[-1] == 1 else -np.inf)
        else:
            strangers.append(row.max())
    assert found["rank@1"] == np.mean([rank <= 1 for rank in ranks])
    assert found["rank@5"] == np.mean([rank <= 5 for rank in ranks])
    if len(strangers) < 6:
        assert found["at_fpir"] == {}
        return
    refused = np.sort(strangers)[::-1][len(strangers) // 2]
    assert found["at_fpir"]["5e-1"]["tar"] == np.mean(np.array(right) > refused)


def test_identification_refuses_meaningless_input() -> None:
    rows, names = np.ones((3, 2), np.float32), np.arange(3)
    for gallery, known, probes, identities, message in (
        (rows, np.zeros(3, int), rows, names, "twice in the gallery"),
        (rows, names, rows, names + 5, "no probe has an identity"),
        (rows, names, rows[:0], names[:0], "do not fit"),
        (rows, names, rows * np.nan, names, "row 0 of the probes is not finite"),
    ):
        with pytest.raises(DataError, match=message):
            identification_metrics(gallery, known, probes, identities)


def test_templates_are_means_of_unit_vectors() -> None:
    embeddings = np.array([[2, 0], [0, 5], [-3, 0], [0, 0]], np.float32)
    found = average_templates(embeddings, np.array([1, 1, 0, 2]))
    assert np.allclose(found, [[-1, 0], [0.5**0.5, 0.5**0.5], [0, 0]])
