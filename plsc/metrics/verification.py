"""Are two images of one identity? Accuracy by the LFW protocol, and rates from pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional, Union

import numpy as np

from plsc.errors import DataError
from plsc.metrics.roc import (
    FARS,
    Roc,
    at_rates,
    auc,
    count_scores,
    equal_error_rate,
    roc_of_counts,
    roc_of_pairs,
    tar_of,
)
from plsc.metrics.vectors import unit_rows

# Squared distances of unit vectors are in [0, 4].
_THRESHOLDS = np.arange(0, 4, 0.01)
# Pairs turned to float64 at a time, to keep the copy small.
_CHUNK = 4096
_MOST_SAME = 2_000_000
_ROWS, _COLUMNS = 1024, 8192  # of cosines computed at a time


def verification_metrics(
    embeddings: np.ndarray,
    issame: np.ndarray,
    folds: Union[int, np.ndarray] = 10,
    pairs: Optional[np.ndarray] = None,
    fars: Sequence[float] = FARS,
) -> dict[str, Any]:
    """Measure embeddings by the LFW protocol, and by the ROC curve of all pairs.

    Args:
        embeddings: float [N, D], not normalised.
        issame: bool [P], whether the two images of a pair are of one identity.
        folds: how many parts the pairs are cut into, in their order; or int [P], the fold of each.
        pairs: int [P, 2], rows of the embeddings; by default pair i is in rows 2i and 2i+1.
        fars: rates of false accepts for `at_far`.

    Returns:
        `accuracy` and `std` over the folds (a pair is accepted when its squared distance is below the threshold that is
        best on the other folds), `tar@1e-3`, `xnorm` (the mean norm of the pairs' images), `auc`, `eer`, `eer_threshold`, `pairs`,
        `different_pairs`, and `at_far`: see `at_rates`, which says what it leaves out. Without both kinds of pairs, NaN.
    """
    embeddings = np.asarray(embeddings)
    issame = np.asarray(issame).astype(bool)
    count = len(issame)
    if pairs is None:
        pairs = np.arange(2 * (len(embeddings) // 2)).reshape(-1, 2)
        fits = len(embeddings) == 2 * count
    else:
        fits = pairs.shape == (count, 2)
    if issame.ndim != 1 or embeddings.ndim != 2 or count == 0 or not fits:
        raise DataError(
            f"verification: embeddings {list(embeddings.shape)} do not fit issame {list(issame.shape)}; "
            "give [2P, D] and [P] with P > 0"
        )
    distance, similarity = _compare(embeddings, pairs)
    if isinstance(folds, int):
        folds = folds_in_order(count, max(1, min(folds, count)))
    accuracies = _fold_accuracies(distance, issame, np.asarray(folds))
    return {
        "accuracy": float(accuracies.mean()),
        "std": float(accuracies.std()),
        **_of_curve(roc_of_pairs(similarity, issame), fars),
        "xnorm": float(_norms(embeddings)[pairs].mean()),
    }


def _of_curve(
    roc: Roc, fars: Sequence[float], identities: Optional[tuple[np.ndarray, np.ndarray]] = None
) -> dict[str, Any]:
    eer, threshold = equal_error_rate(roc)
    return {
        "tar@1e-3": tar_of(roc, 1e-3),
        "auc": auc(roc),
        "eer": eer,
        "eer_threshold": threshold,
        "pairs": roc.num_same + roc.num_different,
        "different_pairs": roc.num_different,
        "at_far": at_rates(roc, fars, identities),
    }


def all_pairs_metrics(
    embeddings: np.ndarray,
    labels: np.ndarray,
    different_counts: np.ndarray,
    fars: Sequence[float] = FARS,
    drawn: Optional[tuple[np.ndarray, np.ndarray]] = None,
) -> dict[str, Any]:
    """Measure embeddings of labelled images on all their pairs: what `verification_metrics` returns.

    Accuracy is of up to 6,000 pairs drawn, half of one identity; all else of every pair of two identities, and of up to
    2,000,000 pairs of one, whose identities the bootstrap draws.

    Args:
        embeddings: float [N, D].
        labels: int [N].
        different_counts: what `count_different` gives, summed over all its shares.
    """
    pairs, issame = pairs_of_labels(labels) if drawn is None else drawn
    each = min(issame.sum(), (~issame).sum())
    kept = np.stack([np.flatnonzero(issame)[:each], np.flatnonzero(~issame)[:each]], axis=1).reshape(-1)
    result = verification_metrics(embeddings, issame[kept], pairs=pairs[kept], fars=())
    same = same_pairs(labels, _MOST_SAME)
    scores = _compare(embeddings, same)[1]
    roc = roc_of_counts(scores, different_counts)
    result["xnorm"] = mean_norm(embeddings)
    return {**result, **_of_curve(roc, fars, (scores, labels[same[:, 0]]))}


def count_different(embeddings: np.ndarray, labels: np.ndarray, share: int = 0, shares: int = 1) -> np.ndarray:
    """How the cosines of all pairs of two identities are spread, for `all_pairs_metrics`: int64, one count a cell.

    Nothing of the size of the pairs is held. `share` of `shares` does its part of the work; the sum is of all pairs.
    """
    unit = unit_rows(np.asarray(embeddings, dtype=np.float32))
    counts = count_scores(np.zeros(0, np.float32))
    starts = range(0, len(unit), _ROWS)
    for number, first in enumerate(starts):
        if number % shares != share:
            continue
        rows = slice(first, first + _ROWS)
        for other in range(first, len(unit), _COLUMNS):
            columns = slice(other, other + _COLUMNS)
            different = labels[rows, None] != labels[None, columns]
            # Every pair once: the later image is the column.
            different &= np.arange(len(unit))[None, columns] > np.arange(len(unit))[rows, None]
            counts += count_scores((unit[rows] @ unit[columns].T)[different])
    return counts


def same_pairs(labels: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """All pairs of one label, int64 [S, 2], or `most` of them drawn at random."""
    order = np.argsort(labels, kind="stable")
    sizes = np.unique(labels, return_counts=True)[1].astype(np.int64)
    return _same(np.random.default_rng(seed), order, sizes, most)


def _same(rng: np.random.Generator, order: np.ndarray, sizes: np.ndarray, most: int) -> np.ndarray:
    group, number = _draw(rng, sizes * (sizes - 1) // 2, most)
    i, j = _triangle(number)
    first = (np.cumsum(sizes) - sizes)[group]
    return np.stack([order[first + i], order[first + j]], axis=1)


def folds_in_order(count: int, folds: int) -> np.ndarray:
    """The fold of each of `count` pairs: parts that follow each other, the first ones longer by one if need be."""
    sizes = np.full(folds, count // folds)
    sizes[: count % folds] += 1
    return np.repeat(np.arange(folds), sizes)


def pairs_of_labels(labels: np.ndarray, most: int = 6000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs of labelled samples: int64 [P, 2] and ``issame`` bool [P], P <= ``most``, in random order.

    Half of them are of one class, or as many as there are; no pair is drawn twice. ``labels`` is int [N].
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    sizes = np.unique(labels, return_counts=True)[1].astype(np.int64)
    ends = np.cumsum(sizes)
    # Pairs of one class, and of one sample of a class with one of a later class.
    same_counts, later = sizes * (sizes - 1) // 2, len(order) - ends
    different_counts = sizes * later
    if not same_counts.any() or not different_counts.any():
        raise DataError(
            f"verification: {len(order)} images of {len(sizes)} classes give no pairs of both kinds; give two images of "
            "a class, and two classes"
        )
    same = _same(rng, order, sizes, most // 2)
    group, number = _draw(rng, different_counts, most - most // 2)
    i, j = ends[group] - sizes[group] + number // later[group], ends[group] + number % later[group]
    pairs = np.concatenate([same, np.stack([order[i], order[j]], axis=1)])
    shuffled = rng.permutation(len(pairs))
    return pairs[shuffled], shuffled < len(same)


def _draw(rng: np.random.Generator, counts: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (group, number in the group) of up to ``most`` different things out of ``counts`` a group."""
    ends = np.cumsum(counts)
    chosen = rng.choice(ends[-1], min(most, int(ends[-1])), replace=False)
    group = np.searchsorted(ends, chosen, side="right")
    return group, chosen - (ends - counts)[group]


def _triangle(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (i, j), i < j, of the pair with the number j (j - 1) / 2 + i."""
    j = ((1 + np.sqrt(1 + 8 * number.astype(np.float64))) / 2).astype(np.int64)
    j -= j * (j - 1) // 2 > number  # the root of a large number may be rounded up
    return number - j * (j - 1) // 2, j


def pair_similarity(embeddings: np.ndarray, pairs: Optional[np.ndarray] = None) -> np.ndarray:
    """Return the cosine, float64 [P], of each pair of rows of ``embeddings``; by default rows 2i and 2i+1."""
    embeddings = np.asarray(embeddings)
    return _compare(embeddings, np.arange(len(embeddings)).reshape(-1, 2) if pairs is None else pairs)[1]


def _compare(embeddings: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 squared distance [P] and cosine [P]."""
    distance, similarity = np.empty(len(pairs)), np.empty(len(pairs))
    for first in range(0, len(pairs), _CHUNK):
        part = slice(first, first + _CHUNK)
        left, right = (unit_rows(embeddings[pairs[part, side]].astype(np.float64)) for side in (0, 1))
        _check(left, pairs[part, 0])
        _check(right, pairs[part, 1])
        difference = left - right
        distance[part] = np.einsum("ij,ij->i", difference, difference)
        similarity[part] = np.einsum("ij,ij->i", left, right)
    return distance, similarity


def _check(block: np.ndarray, numbers: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(bad):
        raise DataError(
            f"verification: embedding {int(numbers[bad[0]])} is not finite; "
            "training has diverged or the checkpoint is damaged"
        )


def mean_norm(embeddings: np.ndarray) -> float:
    """The mean length of embeddings [N, D], in float64."""
    return float(_norms(embeddings).mean())


def _norms(embeddings: np.ndarray) -> np.ndarray:
    """float64 [N]."""
    parts = range(0, len(embeddings), _CHUNK)
    return np.concatenate(
        [np.linalg.norm(embeddings[first : first + _CHUNK].astype(np.float64), axis=1) for first in parts]
    )


def _fold_accuracies(distance: np.ndarray, issame: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return float64 [folds]."""
    steps, folds = len(_THRESHOLDS), int(fold.max()) + 1
    sizes = np.bincount(fold, minlength=folds)
    # A pair is accepted from its bucket's threshold on, so cumulative counts give every threshold at once.
    bucket = np.searchsorted(_THRESHOLDS, distance, side="right")
    cell = fold * (steps + 1) + bucket
    shape = (folds, steps + 1)
    same = np.bincount(cell[issame], minlength=folds * (steps + 1)).reshape(shape)
    other = np.bincount(cell[~issame], minlength=folds * (steps + 1)).reshape(shape)
    accepted_same = same.cumsum(axis=1)[:, :steps]
    accepted_other = other.cumsum(axis=1)[:, :steps]
    correct = accepted_same + other.sum(axis=1)[:, None] - accepted_other
    # With a single fold there is nothing else to choose the threshold on.
    train = correct.sum(axis=0)[None] - correct if folds > 1 else correct
    best = train.argmax(axis=1)
    return correct[np.arange(folds), best] / sizes
