from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plsc.errors import DataError
from plsc.metrics import pair_similarity, pairs_of_labels, roc_curve, tar_at_far, verification_metrics


def make(pairs: int, seed: int, dim: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    issame = rng.random(pairs) < 0.5
    left = rng.normal(size=(pairs, dim))
    right = np.where(issame[:, None], left + rng.normal(size=(pairs, dim)), rng.normal(size=(pairs, dim)))
    embeddings = np.empty((2 * pairs, dim), np.float32)
    embeddings[0::2], embeddings[1::2] = left, right
    return 7 * embeddings, issame


def naive(embeddings: np.ndarray, issame: np.ndarray, folds: int) -> tuple[float, float]:
    """The protocol word for word: every threshold on every fold."""
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
def test_accuracy_equals_the_naive_way(pairs: int) -> None:
    embeddings, issame = make(pairs, pairs)
    result = verification_metrics(embeddings, issame)
    accuracy, std = naive(embeddings, issame, min(10, pairs))
    assert result["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert result["std"] == pytest.approx(std, abs=1e-12)
    assert result["xnorm"] == pytest.approx(np.mean([np.linalg.norm(row) for row in embeddings]), rel=1e-6)
    assert all(type(value) is float for value in result.values())
    assert set(result) == {"accuracy", "std", "tar@1e-3", "xnorm"}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("far", [0.0, 1e-3, 0.01, 0.1, 1.0])
def test_tar_equals_the_naive_way(seed: int, far: float) -> None:
    rng = np.random.default_rng(seed)
    similarity = rng.normal(size=300).round(1 if seed % 2 else 6)  # rounding makes ties
    issame = rng.random(300) < 0.4
    similarity[issame] += 1
    assert tar_at_far(similarity, issame, far) == naive_tar(similarity, issame, far)


def test_tar_of_the_whole() -> None:
    embeddings, issame = make(400, 3)
    unit = embeddings.astype(float) / np.linalg.norm(embeddings.astype(float), axis=1)[:, None]
    similarity = (unit[0::2] * unit[1::2]).sum(axis=1)
    assert pair_similarity(embeddings) == pytest.approx(similarity)
    assert verification_metrics(embeddings, issame)["tar@1e-3"] == naive_tar(similarity, issame, 1e-3)


def test_far_reached_exactly_counts() -> None:
    similarity = np.arange(1001, dtype=float)[::-1]
    issame = np.zeros(1001, bool)
    issame[1] = True  # one of 1000 other pairs scores higher
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
    assert all(math.isfinite(value) for value in verification_metrics(embeddings, issame).values())
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
    start = time.perf_counter()
    verification_metrics(embeddings, issame)
    assert time.perf_counter() - start < 5


@given(st.lists(st.integers(0, 4), min_size=3, max_size=25), st.integers(2, 60), st.integers(0, 3))
def test_pairs_of_labels(labels: list[int], most: int, seed: int) -> None:
    values = np.array(labels)
    alike = values[:, None] == values[None]
    every = np.triu(np.ones_like(alike), 1)
    kinds = [int((every & kind).sum()) for kind in (alike, ~alike)]
    if 0 in kinds:
        with pytest.raises(DataError, match="no pairs of both kinds"):
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
