"""Verification: are two images of one identity? Accuracy by the LFW protocol, and ROC rates of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional, Union

import numpy as np

from plsc.errors import DataError, counted
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
# Pairs that are converted to float64 at a time, to keep the copy small.
_CHUNK = 4096
_MOST_SAME = 2_000_000
_ROWS, _COLUMNS = 1024, 8192  # Cosines that are computed at a time.


def verification_metrics(
    embeddings: np.ndarray,
    issame: np.ndarray,
    folds: Union[int, np.ndarray] = 10,
    pairs: Optional[np.ndarray] = None,
    fars: Sequence[float] = FARS,
) -> dict[str, Any]:
    """Measures embeddings by the LFW protocol, and by the ROC curve of all pairs.

    Args:
        embeddings: Embeddings, float [N, D], not normalised.
        issame: Whether the two images of each pair are of one identity, bool [P].
        folds: Number of parts into which the pairs are cut, in their order; or the fold of each pair, int [P].
        pairs: Rows of the embeddings that form each pair, int [P, 2]; by default rows 2i and 2i+1 form pair i.
        fars: False accept rates for `at_far`.

    Returns:
        `accuracy` and `std` over the folds, `tar@1e-3`, `xnorm` (the mean norm of the images of the pairs), `auc`,
        `eer`, `eer_threshold`, `pairs` and `different_pairs` (numbers), and `at_far`; see `at_rates`, which explains
        the rates that are left out. In each fold, a pair is accepted if its squared distance is below the threshold
        that is best on the other folds. Measures that need both kinds of pairs are NaN if one is missing.

    Raises:
        DataError: The shapes do not fit, there are no pairs, or an embedding is not finite.
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
    """Measures embeddings of labelled images on all their pairs.

    The accuracy is that of up to 6,000 random pairs, half of them of one identity. All other measures use every pair of
    two identities and up to 2,000,000 pairs of one identity, and the bootstrap resamples identities.

    Args:
        embeddings: Embeddings, float [N, D].
        labels: Identity of each image, int [N].
        different_counts: Results of `count_different`, summed over all its shares.
        fars: False accept rates for `at_far`.
        drawn: Result of `pairs_of_labels(labels)`, if it is known already.

    Returns:
        What `verification_metrics` returns.
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
    """Counts the cosines of all pairs of two identities in each cell of [-1, 1], for `all_pairs_metrics`.

    Memory does not grow with the number of pairs.

    Args:
        embeddings: Embeddings, float [N, D].
        labels: Identity of each image, int [N].
        share: Part of the work to do, in [0, shares); the sum over all parts counts all pairs.
        shares: Number of parts.

    Returns:
        Result of `count_scores`.
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
            # Each pair counts once, with the later image as the column.
            different &= np.arange(len(unit))[None, columns] > np.arange(len(unit))[rows, None]
            counts += count_scores((unit[rows] @ unit[columns].T)[different])
    return counts


def same_pairs(labels: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Returns all pairs of one label, int64 [S, 2], or `most` of them, drawn at random."""
    order = np.argsort(labels, kind="stable")
    sizes = np.unique(labels, return_counts=True)[1].astype(np.int64)
    return _same(np.random.default_rng(seed), order, sizes, most)


def _same(rng: np.random.Generator, order: np.ndarray, sizes: np.ndarray, most: int) -> np.ndarray:
    group, number = _draw(rng, sizes * (sizes - 1) // 2, most)
    i, j = _triangle(number)
    first = (np.cumsum(sizes) - sizes)[group]
    return np.stack([order[first + i], order[first + j]], axis=1)


def folds_in_order(count: int, folds: int) -> np.ndarray:
    """Returns the fold of each of `count` pairs, in order. If needed, the first folds are longer by one."""
    sizes = np.full(folds, count // folds)
    sizes[: count % folds] += 1
    return np.repeat(np.arange(folds), sizes)


def pairs_of_labels(labels: np.ndarray, most: int = 6000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draws pairs of labelled samples. No pair is drawn twice.

    Args:
        labels: Class of each sample, int [N].
        most: Largest number of pairs. Half of them are of one class, or fewer if there are not so many.
        seed: Seed of the draw.

    Returns:
        Pairs int64 [P, 2] in random order, and `issame` bool [P].

    Raises:
        DataError: There are no pairs of one class, or none of two.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    sizes = np.unique(labels, return_counts=True)[1].astype(np.int64)
    ends = np.cumsum(sizes)
    # For each class: its pairs, and the pairs of one of its samples with one of a later class.
    same_counts, later = sizes * (sizes - 1) // 2, len(order) - ends
    different_counts = sizes * later
    if not same_counts.any() or not different_counts.any():
        raise DataError(
            f"verification: {counted(len(order), 'image')} of {counted(len(sizes), 'class')} do not give pairs of "
            "both kinds; give at least two images of a class, and two classes"
        )
    same = _same(rng, order, sizes, most // 2)
    group, number = _draw(rng, different_counts, most - most // 2)
    i, j = ends[group] - sizes[group] + number // later[group], ends[group] + number % later[group]
    pairs = np.concatenate([same, np.stack([order[i], order[j]], axis=1)])
    shuffled = rng.permutation(len(pairs))
    return pairs[shuffled], shuffled < len(same)


def _draw(rng: np.random.Generator, counts: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws up to `most` different items from groups of sizes `counts`; returns (group, number in the group)."""
    ends = np.cumsum(counts)
    chosen = rng.choice(ends[-1], min(most, int(ends[-1])), replace=False)
    group = np.searchsorted(ends, chosen, side="right")
    return group, chosen - (ends - counts)[group]


def _triangle(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (i, j), i < j, of the pair with the number j (j - 1) / 2 + i."""
    j = ((1 + np.sqrt(1 + 8 * number.astype(np.float64))) / 2).astype(np.int64)
    j -= j * (j - 1) // 2 > number  # The root of a large number may have been rounded up.
    return number - j * (j - 1) // 2, j


def pair_similarity(embeddings: np.ndarray, pairs: Optional[np.ndarray] = None) -> np.ndarray:
    """Returns the cosine of each pair of rows, float64 [P].

    Args:
        embeddings: Embeddings, float [N, D].
        pairs: Rows that form each pair, int [P, 2]; by default rows 2i and 2i+1 form pair i.
    """
    embeddings = np.asarray(embeddings)
    return _compare(embeddings, np.arange(len(embeddings)).reshape(-1, 2) if pairs is None else pairs)[1]


def _compare(embeddings: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the squared distance and the cosine of each pair of unit vectors, float64 [P] each."""
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
    """Returns the mean length of embeddings [N, D], computed in float64."""
    return float(_norms(embeddings).mean())


def _norms(embeddings: np.ndarray) -> np.ndarray:
    """Returns the length of each embedding, float64 [N]."""
    parts = range(0, len(embeddings), _CHUNK)
    return np.concatenate(
        [np.linalg.norm(embeddings[first : first + _CHUNK].astype(np.float64), axis=1) for first in parts]
    )


def _fold_accuracies(distance: np.ndarray, issame: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Returns the accuracy of each fold, float64 [folds]."""
    steps, folds = len(_THRESHOLDS), int(fold.max()) + 1
    sizes = np.bincount(fold, minlength=folds)
    # A pair is accepted from the threshold of its bucket on, so cumulative counts give all thresholds at once.
    bucket = np.searchsorted(_THRESHOLDS, distance, side="right")
    cell = fold * (steps + 1) + bucket
    shape = (folds, steps + 1)
    same = np.bincount(cell[issame], minlength=folds * (steps + 1)).reshape(shape)
    other = np.bincount(cell[~issame], minlength=folds * (steps + 1)).reshape(shape)
    accepted_same = same.cumsum(axis=1)[:, :steps]
    accepted_other = other.cumsum(axis=1)[:, :steps]
    correct = accepted_same + other.sum(axis=1)[:, None] - accepted_other
    # With a single fold, the threshold can only be chosen on that fold.
    train = correct.sum(axis=0)[None] - correct if folds > 1 else correct
    best = train.argmax(axis=1)
    return correct[np.arange(folds), best] / sizes
