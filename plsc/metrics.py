"""Face verification measures: LFW accuracy, and true accepts at a rate of false accepts."""

from __future__ import annotations

import numpy as np

from plsc.errors import DataError

# Squared distances of unit vectors are in [0, 4].
_THRESHOLDS = np.arange(0, 4, 0.01)
# Pairs turned to float64 at a time, to keep the copy small.
_CHUNK = 4096


def verification_metrics(embeddings: np.ndarray, issame: np.ndarray, folds: int = 10) -> dict[str, float]:
    """Measure embeddings by the LFW protocol.

    ``embeddings`` is float [2P, D], not normalised, pair i in rows 2i and 2i+1; ``issame`` is bool [P]. Returns
    'accuracy' and 'std' over the folds (a pair is accepted when its squared distance is below the threshold that is
    best on the other folds), 'tar@1e-3' (NaN without both kinds of pairs) and 'xnorm', the mean norm.
    """
    embeddings = np.asarray(embeddings)
    issame = np.asarray(issame).astype(bool)
    pairs = len(issame)
    if issame.ndim != 1 or embeddings.ndim != 2 or pairs == 0 or len(embeddings) != 2 * pairs:
        raise DataError(
            f"verification: embeddings {list(embeddings.shape)} do not fit issame {list(issame.shape)}; "
            "give [2P, D] and [P] with P > 0"
        )
    distance, similarity, norm = _compare(embeddings)
    accuracies = _fold_accuracies(distance, issame, max(1, min(folds, pairs)))
    return {
        "accuracy": float(accuracies.mean()),
        "std": float(accuracies.std()),
        "tar@1e-3": tar_at_far(similarity, issame, 1e-3),
        "xnorm": float(norm.mean()),
    }


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
    group, number = _draw(rng, same_counts, most // 2)
    i, j = _triangle(number)
    first = ends[group] - sizes[group]
    same = np.stack([order[first + i], order[first + j]], axis=1)
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


def pair_similarity(embeddings: np.ndarray) -> np.ndarray:
    """Return the cosine, float64 [P], of each pair of ``embeddings``, float [2P, D], pair i in rows 2i and 2i+1."""
    return _compare(np.asarray(embeddings))[1]


def _compare(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return float64 squared distance [P], cosine [P] and norm [2P]."""
    rows = len(embeddings)
    distance, similarity, norm = np.empty(rows // 2), np.empty(rows // 2), np.empty(rows)
    for first in range(0, rows, 2 * _CHUNK):
        block = embeddings[first : first + 2 * _CHUNK].astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad):
            raise DataError(
                f"verification: embedding {first + int(bad[0])} is not finite; "
                "training has diverged or the checkpoint is damaged"
            )
        length = np.sqrt(np.einsum("ij,ij->i", block, block))
        # A zero vector stays zero instead of becoming NaN.
        block /= np.where(length > 0, length, 1.0)[:, None]
        left, right = block[0::2], block[1::2]
        half = slice(first // 2, first // 2 + len(left))
        difference = left - right
        distance[half] = np.einsum("ij,ij->i", difference, difference)
        similarity[half] = np.einsum("ij,ij->i", left, right)
        norm[first : first + len(block)] = length
    return distance, similarity, norm


def _fold_accuracies(distance: np.ndarray, issame: np.ndarray, folds: int) -> np.ndarray:
    """Return float64 [folds]."""
    pairs, steps = len(distance), len(_THRESHOLDS)
    # Contiguous folds, the first ones longer by one when the pairs do not divide evenly.
    sizes = np.full(folds, pairs // folds)
    sizes[: pairs % folds] += 1
    fold = np.repeat(np.arange(folds), sizes)
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


def roc_curve(similarity: np.ndarray, issame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (far, tar), float64 arrays of one point per distinct similarity, after (0, 0) where nothing is accepted.

    ``similarity`` is float [P], greater for more alike; ``issame`` bool [P]. A rate without pairs of its kind is NaN.
    """
    similarity = np.asarray(similarity)
    issame = np.asarray(issame).astype(bool)
    if similarity.shape != issame.shape or similarity.ndim != 1:
        raise DataError(
            f"verification: similarity {list(similarity.shape)} does not fit issame {list(issame.shape)}; give [P] each"
        )
    if not np.isfinite(similarity).all():
        raise DataError("verification: a similarity is not finite; training has diverged or the checkpoint is damaged")
    order = np.argsort(-similarity, kind="stable")
    ordered, same = similarity[order], issame[order]
    # Equal scores are accepted together: keep the last of each run.
    last = np.append(ordered[1:] != ordered[:-1], True) if len(ordered) else np.zeros(0, bool)
    tar = _rates(same, last)
    far = _rates(~same, last)
    return far, tar


def _rates(hits: np.ndarray, last: np.ndarray) -> np.ndarray:
    counts = np.concatenate([[0], np.cumsum(hits)[last]])
    total = int(hits.sum())
    return counts / total if total else np.full(len(counts), np.nan)


def tar_at_far(similarity: np.ndarray, issame: np.ndarray, far: float = 1e-3) -> float:
    """Return the share of same pairs accepted at the largest reachable false accept rate <= ``far``.

    ``similarity`` is float [P], ``issame`` bool [P]. No interpolation; NaN without pairs of either kind.
    """
    fars, tars = roc_curve(similarity, issame)
    if np.isnan(fars[0]) or np.isnan(tars[0]):
        return float("nan")
    # Both rates only grow along the curve.
    return float(tars[np.searchsorted(fars, far, side="right") - 1])
