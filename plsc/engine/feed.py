"""The batches of each step, as many on every rank."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Optional, Union

import numpy as np

from plsc import parallel
from plsc.data.loader import ImageLoader
from plsc.data.readers import ReaderLoader
from plsc.errors import DataError

logger = logging.getLogger("plsc")

Batch = tuple[np.ndarray, np.ndarray]
Loader = Union[ImageLoader, ReaderLoader]


def steps_of(loader: Loader, epoch: int, start: int, size: int) -> Iterator[list[Batch]]:
    """Yields the batches of each step of an epoch; all ranks take the same number of steps.

    Args:
        loader: This rank's loader.
        epoch: The epoch, from 0.
        start: Steps of the epoch to leave out, because they are done.
        size: Batches in a step; the last step may have fewer.
    """
    batches = _batches(loader, epoch, start * size)
    while group := list(itertools.islice(batches, size)):
        yield group


def steps_per_epoch(loader: Loader, size: int) -> Optional[int]:
    """Returns the number of steps in an epoch with `size` batches each, the same on every rank; None when unknown."""
    batches = max(parallel.all_gather_object(loader.steps_per_epoch or 0, "the length of its data"))
    return -(-batches // size) if batches else None


def _batches(loader: Loader, epoch: int, start: int) -> Iterator[Batch]:
    """Yields this rank's batches from number `start` on; a rank that runs out of batches repeats its first one."""
    if loader.splits or parallel.world_size() == 1:
        yield from loader.epoch(epoch, start)
        return
    source = loader.epoch(epoch)
    first: Optional[Batch] = None
    for number in itertools.count():
        batch = next(source, None)
        if not parallel.any_rank(batch is not None, f"batch {number + 1} of epoch {epoch} of its reader"):
            return
        if number == 0:
            _warn_of_same(batch)
        first = first or batch
        if parallel.any_rank(first is None, "the first batch of its reader"):
            raise DataError(f"train_reader: some rank has no batch in epoch {epoch}; give every rank at least one")
        if number >= start:
            yield batch or first  # type: ignore[misc]


def _warn_of_same(first: Optional[Batch]) -> None:
    """Warns when ranks read the same images, mirrored or not: together they would learn no faster than one rank."""
    prints = parallel.all_gather_object(
        first and (first[1], first[0].mean(axis=(1, 2, 3))), "the first batch of its reader"
    )
    prints = [one for one in prints if one]
    if any(_alike(one, other) for one, other in itertools.combinations(prints, 2)):
        logger.warning(
            "train_reader gives the same first batch on several ranks, so they all learn from the same images; split "
            "the samples with plsc.shard_reader(reader) before paddle.batch, assign the paddle.io.Dataset itself, or "
            "use a paddle.io.DistributedBatchSampler"
        )


def _alike(one: Batch, other: Batch) -> bool:
    """Returns whether two batches have the same labels and mostly the same means."""
    return np.array_equal(one[0], other[0]) and bool(np.isclose(one[1], other[1], rtol=1e-4).mean() > 0.5)
