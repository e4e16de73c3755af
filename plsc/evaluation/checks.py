"""What can be known of a test before there is a network to test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plsc import parallel
from plsc.data.collection import Collection
from plsc.data.pair_sets import PairSet
from plsc.data.pixels import PixelRule
from plsc.data.readers import ReaderLoader
from plsc.data.test_sets import EvaluationSet, GallerySet, IdentitySet
from plsc.errors import DataError, counted
from plsc.machine import random_state
from plsc.metrics import pairs_of_labels

_OPENED = 2000  # Images of a collection and rank whose header is read; of the others only the size is.


def check_identities(one: EvaluationSet) -> None:
    """Checks that the identities of a set give something to test.

    Raises:
        DataError: They do not.
    """
    if isinstance(one, GallerySet) and not (one.probe_identities >= 0).any():
        raise DataError(
            f"{one.probes.source}: no probe has an identity of the gallery {one.gallery.source}; check the two lists"
        )
    if isinstance(one, IdentitySet):
        _check_labels(one.images.source, one.labels)
    if isinstance(one, PairSet) and one.issame.all() == one.issame.any():
        kind = "the same identity" if one.issame.all() else "different identities"
        raise DataError(
            f"{one.name}: of {counted(len(one.issame), 'pair')} all are of {kind}, which gives nothing to test; list "
            "pairs of both kinds"
        )


def check_images(one: EvaluationSet, rule: PixelRule) -> None:
    """Checks that the images of a set are there, and that many of them are images. The ranks share the work.

    Args:
        one: The set.
        rule: What the pixels of its files mean, and how many there may be.

    Raises:
        DataError: One of them cannot be read; on every rank.
    """
    for images in (one.gallery, one.probes) if isinstance(one, GallerySet) else (one.images,):
        parallel.together(lambda images=images: _check_own(images, rule), f"a look at {one.name}")  # type: ignore[misc]


def check_reader(loader: ReaderLoader) -> None:
    """Checks the first batch of a reader, or all batches that are in memory.

    Raises:
        DataError: A batch is wrong, or all labels are known and give nothing to test; on every rank.
    """
    before = random_state.capture()
    labels = parallel.together(lambda: _labels_of(loader), "the first batch of test_reader")
    random_state.restore(before)
    every = parallel.all_gather_object(labels, "the labels of test_reader")
    if loader.in_memory:
        same = all(np.array_equal(one, every[0]) for one in every)
        _check_labels("test_reader", every[0] if same else np.concatenate(every))


def _check_own(images: Collection, rule: PixelRule) -> None:
    own = range(parallel.rank(), images.num_images, parallel.world_size())
    period = -(-len(own) // _OPENED)
    for number, i in enumerate(own):
        images.check(i, number % period == 0, rule)


def _labels_of(loader: ReaderLoader) -> np.ndarray:
    batches = loader.epoch(0)
    try:
        found = [next(batches)[1]]
        if loader.in_memory:
            found += [labels for _, labels in batches]
        return np.concatenate(found)
    finally:
        batches.close()  # type: ignore[attr-defined]


def _check_labels(where: str, labels: Sequence[int] | np.ndarray) -> None:
    try:
        pairs_of_labels(np.asarray(labels), most=2)
    except DataError as problem:
        raise DataError(f"{where}: {problem}") from None
