"""Finds wrong labels, classes that should be one or two, and copies across classes, by the embeddings of the images.

Cosines are between embeddings of length 1. What counts as similar is measured on the data itself, so the same defaults
serve networks whose embeddings lie close together and networks that spread them. docs/data.md describes the rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from plsc.metrics.vectors import unit_rows

_ROWS = 2048  # images at a time
_CLASSES = 8192  # class centres at a time
_SAMPLED = 2000  # images whose cosines with all other classes show how similar strangers are
_NEIGHBOURS = 8  # classes next to a class that may be the same
_LEAST_TO_SPLIT = 6  # images of a class
_LEAST_SHARE = 0.2  # of the images of a class, in each half
_TURNS = 10  # of 2-means
_NO_COSINE = -2.0


class Limits(NamedTuple):
    """From where on something is reported.

    Attributes:
        stranger_rate: Share of the pairs of an image and a class of strangers that are more similar than an image must
            be to its own class. This is also the share of wrong labels that are missed, because an image with a wrong
            label is a stranger to its class.
        merge: Two classes may be one if their images are as similar to each other as this times those of one class.
        split: A class may be two if the images of its halves are at most as similar as this times those of one half.
        copy: Cosine from which two images may be copies.
    """

    stranger_rate: float = 1e-2
    merge: float = 0.9
    split: float = 0.5
    copy: float = 0.95


@dataclass
class Outliers:
    """What `find_outliers` has found.

    Attributes:
        threshold: Cosine that images have with other classes at most as often as `Limits.stranger_rate`.
        own: Cosine of each image with the centre of its class without it, [N] float32; -2 if it has none.
        other: Cosine with the nearest centre of another class, [N] float32.
        nearest: That class, [N] int32.
        images: Images that are further from their class than the threshold, and closer to another one, the worst
            first, int64.
        doubtful: Images for which only one of the two holds, the worst first, int64.
        merges: Pairs of classes that may be one, with how similar they are, most similar first.
        splits: Classes that may be two, with how similar the halves are, and the images of both, least similar first.
        copies: Images, those in another class that they may be copies of, and their cosines.
        leaks: Images, those of the test sets that they may be copies of, and their cosines.
    """

    threshold: float
    own: np.ndarray
    other: np.ndarray
    nearest: np.ndarray
    images: np.ndarray
    doubtful: np.ndarray
    merges: list[tuple[int, int, float]] = field(default_factory=list)
    splits: list[tuple[int, float, np.ndarray, np.ndarray]] = field(default_factory=list)
    copies: list[tuple[int, int, float]] = field(default_factory=list)
    leaks: list[tuple[int, int, float]] = field(default_factory=list)


def find_outliers(
    vectors: np.ndarray, labels: np.ndarray, limits: Limits, tests: Sequence[np.ndarray] = (), seed: int = 0
) -> Outliers:
    """Finds what does not fit in a data set.

    Args:
        vectors: Embeddings [N, D] float32, which may be mapped from a file. Images whose embedding is zero are left
            out of everything.
        labels: Class of each image, [N].
        limits: From where on something is reported.
        tests: Embeddings of test sets, [M, D] each, numbered one after another in `leaks`.
        seed: Seed of the images that are sampled.
    """
    groups = Groups(labels)
    kept = np.ones(len(labels), bool)
    own = _own_cosines(vectors, groups, _sums(vectors, groups, kept), kept)
    # A centre of the better half of a class hardly moves if many of its labels are wrong.
    kept = groups.better_half(own)
    sums = _sums(vectors, groups, kept)
    own = _own_cosines(vectors, groups, sums, kept)
    centres = unit_rows(sums)
    threshold = _stranger_cosine(vectors, groups, centres, limits.stranger_rate, seed)
    other, nearest = _nearest_others(vectors, groups, centres)
    is_known = own > _NO_COSINE
    far, strays = own < threshold, other > own
    found = Outliers(
        threshold=threshold,
        own=own,
        other=other,
        nearest=groups.classes[nearest].astype(np.int32) if len(groups.classes) else nearest,
        images=_worst_first(is_known & far & strays, own),
        doubtful=_worst_first(is_known & (far != strays), own - other),
    )
    found.merges = _merges(vectors, groups, kept, centres, limits.merge)
    found.splits = _splits(vectors, groups, limits.split)
    suspects = np.concatenate([found.images, found.doubtful])
    found.copies = list(_copies(vectors, groups, suspects, nearest, limits.copy))
    found.leaks = list(_leaks(vectors, tests, limits.copy))
    return found


class Groups:
    """The images of each class.

    Args:
        labels: Class of each image, [N].

    Attributes:
        classes: The classes that have images, increasing.
        places: Number of each image's class in `classes`, [N].
    """

    def __init__(self, labels: np.ndarray) -> None:
        self.classes, self.places = np.unique(labels, return_inverse=True)
        self.places = self.places.reshape(-1)
        self._order = np.argsort(self.places, kind="stable")
        self._starts = np.searchsorted(self.places[self._order], np.arange(len(self.classes) + 1))

    def __len__(self) -> int:
        return len(self.classes)

    def images(self, place: int) -> np.ndarray:
        """Returns the images of a class, increasing."""
        return self._order[self._starts[place] : self._starts[place + 1]]

    def better_half(self, scores: np.ndarray) -> np.ndarray:
        """Returns which images have at least the median score of their class, [N] bool."""
        order = np.lexsort((-scores, self.places))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - self._starts[self.places[order]]
        sizes = np.diff(self._starts)[self.places]
        return rank < np.maximum((sizes + 1) // 2, np.minimum(sizes, 2))


def _blocks(vectors: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields embeddings of length 1, some at a time, and which they are."""
    for first in range(0, len(vectors), _ROWS):
        part = slice(first, min(first + _ROWS, len(vectors)))
        yield part, unit_rows(np.asarray(vectors[part], np.float32))


def _sums(vectors: np.ndarray, groups: Groups, kept: np.ndarray) -> np.ndarray:
    """Returns the sum of the embeddings of each class that are kept, [C, D] float32."""
    sums = np.zeros((len(groups), vectors.shape[1]), np.float32)
    for part, rows in _blocks(vectors):
        places, rows = groups.places[part][kept[part]], rows[kept[part]]
        if not len(places):
            continue
        order = np.argsort(places, kind="stable")
        firsts = np.flatnonzero(np.diff(places[order], prepend=-1))
        sums[places[order][firsts]] += np.add.reduceat(rows[order], firsts, axis=0)
    return sums


def _own_cosines(vectors: np.ndarray, groups: Groups, sums: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Returns the cosine of each image with the centre of its class without it, [N] float32."""
    found = np.full(len(vectors), _NO_COSINE, np.float32)
    for part, rows in _blocks(vectors):
        others = sums[groups.places[part]] - rows * kept[part][:, None]
        cosines = np.einsum("ij,ij->i", rows, unit_rows(others))
        known = (np.abs(others).max(axis=1, initial=0) > 1e-4) & rows.any(axis=1)
        found[part] = np.where(known, cosines, _NO_COSINE)
    return found


def _stranger_cosine(vectors: np.ndarray, groups: Groups, centres: np.ndarray, rate: float, seed: int) -> float:
    """Returns the cosine that this share of the pairs of an image and another class reach.

    The class that is nearest to an image does not count: it may be the right one, and the label wrong. With fewer than
    three classes nothing is known about strangers, and the result is -1.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(vectors), min(_SAMPLED, len(vectors)), replace=False))
    rows = unit_rows(np.asarray(vectors[chosen], np.float32))
    rows, places = rows[rows.any(axis=1)], groups.places[chosen][rows.any(axis=1)]
    columns = rng.choice(len(centres), min(_SAMPLED, len(centres)), replace=False)
    cosines = rows @ centres[columns].T
    cosines[np.equal.outer(places, columns)] = _NO_COSINE
    if cosines.shape[1] < 3:
        return -1.0
    cosines[np.arange(len(rows)), cosines.argmax(axis=1)] = _NO_COSINE
    strangers = cosines[cosines > _NO_COSINE]
    return float(np.quantile(strangers, 1 - rate)) if len(strangers) else -1.0


def _nearest_others(vectors: np.ndarray, groups: Groups, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each image the largest cosine with the centre of another class, and the place of that class."""
    best, place = np.full(len(vectors), _NO_COSINE, np.float32), np.zeros(len(vectors), np.int64)
    for part, rows in _blocks(vectors):
        for first in range(0, len(centres), _CLASSES):
            cosines = rows @ centres[first : first + _CLASSES].T
            inside = groups.places[part] - first
            own = np.flatnonzero((inside >= 0) & (inside < cosines.shape[1]))
            cosines[own, inside[own]] = _NO_COSINE
            nearest = cosines.argmax(axis=1)
            highest = cosines[np.arange(len(rows)), nearest]
            better = highest > best[part]
            best[part] = np.where(better, highest, best[part])
            place[part] = np.where(better, nearest + first, place[part])
    return best, place


def _worst_first(chosen: np.ndarray, scores: np.ndarray) -> np.ndarray:
    images = np.flatnonzero(chosen)
    return images[np.argsort(scores[images], kind="stable")]


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Returns how similar the images of two groups are, compared with those of one group.

    It is the mean cosine between them, divided by the geometric mean of the mean cosines inside the groups: about 1
    for two random halves of one class, however large they are, and about 0 for strangers. It is 0 for groups that have
    fewer than two images, or whose own images do not resemble each other.

    Args:
        one: Embeddings [n, D] of length 1.
        other: Embeddings [m, D] of length 1.
    """
    between = float(one.sum(axis=0) @ other.sum(axis=0)) / (len(one) * len(other))
    inside = _inside(one) * _inside(other)
    return between / float(np.sqrt(inside)) if min(_inside(one), _inside(other)) > 0 else 0.0


def _inside(rows: np.ndarray) -> float:
    """Returns the mean cosine of the pairs of different rows."""
    if len(rows) < 2:
        return 0.0
    total = rows.sum(axis=0)
    return (float(total @ total) - float((rows * rows).sum())) / (len(rows) * (len(rows) - 1))


def _merges(
    vectors: np.ndarray, groups: Groups, kept: np.ndarray, centres: np.ndarray, limit: float
) -> list[tuple[int, int, float]]:
    """Returns pairs of classes whose images are nearly as similar to each other as those of one class."""

    def rows_of(place: int) -> np.ndarray:
        images = groups.images(place)
        return unit_rows(np.asarray(vectors[images[kept[images]]], np.float32))

    found = []
    for one, other in sorted(_close_classes(centres)):
        similar = likeness(rows_of(one), rows_of(other))
        if similar >= limit:
            found.append((int(groups.classes[one]), int(groups.classes[other]), similar))
    return sorted(found, key=lambda pair: -pair[2])


def _close_classes(centres: np.ndarray) -> set[tuple[int, int]]:
    """Returns the pairs of classes of which one is among the nearest of the other."""
    pairs: set[tuple[int, int]] = set()
    count = min(_NEIGHBOURS, len(centres) - 1)
    for first in range(0, len(centres) if count > 0 else 0, _ROWS):
        rows = centres[first : first + _ROWS]
        best = np.empty((len(rows), 0), np.float32)  # cosines of the nearest classes so far
        nearest = np.empty((len(rows), 0), np.int64)
        for begin in range(0, len(centres), _CLASSES):
            cosines = rows @ centres[begin : begin + _CLASSES].T
            own = first + np.arange(len(rows)) - begin
            inside = np.flatnonzero((own >= 0) & (own < cosines.shape[1]))
            cosines[inside, own[inside]] = _NO_COSINE
            columns = _highest(cosines, count)
            best = np.concatenate([best, np.take_along_axis(cosines, columns, axis=1)], axis=1)
            nearest = np.concatenate([nearest, columns + begin], axis=1)
            kept = _highest(best, count)
            best, nearest = np.take_along_axis(best, kept, axis=1), np.take_along_axis(nearest, kept, axis=1)
        for row, others in enumerate(nearest.tolist(), first):
            pairs.update((min(row, other), max(row, other)) for other in others)
    return pairs


def _highest(cosines: np.ndarray, count: int) -> np.ndarray:
    """Returns the columns of the largest cosines of each row, at most `count` of them, in any order."""
    if count >= cosines.shape[1]:
        return np.broadcast_to(np.arange(cosines.shape[1]), cosines.shape)
    return np.argpartition(-cosines, count - 1, axis=1)[:, :count]


def _splits(vectors: np.ndarray, groups: Groups, limit: float) -> list[tuple[int, float, np.ndarray, np.ndarray]]:
    """Returns classes whose images form two groups that are not similar."""
    found = []
    for place in range(len(groups)):
        images = groups.images(place)
        if len(images) < _LEAST_TO_SPLIT:
            continue
        rows = unit_rows(np.asarray(vectors[images], np.float32))
        half = _halves(rows)
        one, other = rows[half], rows[~half]
        if min(len(one), len(other)) < max(2, _LEAST_SHARE * len(rows)):
            continue
        similar = likeness(one, other)
        # Strangers among the images do not form a group: they are not more similar to each other than all are.
        if similar <= limit and min(_inside(one), _inside(other)) > max(_inside(rows), 0):
            found.append((int(groups.classes[place]), similar, images[half], images[~half]))
    return sorted(found, key=lambda one: one[1])


def _halves(rows: np.ndarray) -> np.ndarray:
    """Returns which of some embeddings of length 1 belong to the first of two groups (spherical 2-means)."""
    # It begins with the two images along the direction in which the images differ most.
    spread = rows - rows.mean(axis=0)
    direction = spread[np.argmax(np.einsum("ij,ij->i", spread, spread))]
    for _ in range(_TURNS):
        direction = spread.T @ (spread @ direction)
        direction /= max(float(np.linalg.norm(direction)), 1e-12)
    half = spread @ direction > 0
    for _ in range(_TURNS):
        if not 0 < half.sum() < len(half):
            break
        first, second = unit_rows(np.stack([rows[half].sum(axis=0), rows[~half].sum(axis=0)]))
        changed = rows @ first > rows @ second
        if (changed == half).all():
            break
        half = changed
    return half


def _copies(
    vectors: np.ndarray, groups: Groups, suspects: np.ndarray, nearest: np.ndarray, limit: float
) -> Iterator[tuple[int, int, float]]:
    """Yields images that do not fit in their class, and a copy in the nearest other class."""
    for image in suspects.tolist():
        others = groups.images(int(nearest[image]))
        row = unit_rows(np.asarray(vectors[image : image + 1], np.float32))[0]
        cosines = unit_rows(np.asarray(vectors[others], np.float32)) @ row
        best = int(cosines.argmax())
        if cosines[best] >= limit:
            yield image, int(others[best]), float(cosines[best])


def _leaks(vectors: np.ndarray, tests: Sequence[np.ndarray], limit: float) -> Iterator[tuple[int, int, float]]:
    """Yields images that are copies of images of test sets."""
    firsts = np.cumsum([0, *map(len, tests)]).tolist()
    for part, rows in _blocks(vectors):
        highest, best = np.full(len(rows), _NO_COSINE, np.float32), np.zeros(len(rows), np.int64)
        for first, test in zip(firsts, tests):
            for some, images in _blocks(test):
                cosines = rows @ images.T
                nearest = cosines.argmax(axis=1)
                cosine = cosines[np.arange(len(rows)), nearest]
                best = np.where(cosine > highest, nearest + first + some.start, best)
                highest = np.maximum(cosine, highest)
        for row in np.flatnonzero(highest >= limit).tolist():
            yield part.start + row, int(best[row]), float(highest[row])
