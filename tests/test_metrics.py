from __future__ import annotations

import math
import time

import numpy as np
import pytest

from plsc.errors import DataError
from plsc.metrics import pair_similarity, roc_curve, tar_at_far, verification_metrics


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
