"""The batches of each step, as many on every rank."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Optional, Union

import numpy as np

from plsc import parallel
from plsc.config import Config
from plsc.data.loader import ImageLoader
from plsc.data.readers import ReaderLoader
from plsc.errors import ConfigError, DataError, StoppedError, counted

logger = logging.getLogger("plsc")

Batch = tuple[np.ndarray, ...]
Loader = Union[ImageLoader, ReaderLoader]


def steps_of(loader: Loader, epoch: int, start: int, size: int) -> Iterator[list[Optional[Batch]]]:
    """Yields the batches of each step of an epoch; all ranks take the same number of steps.

    A batch is None if the loader has ended the wait for it. The ranks cannot take such a step, and must find that out
    together.

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


def check_warmup(config: Config, steps: Optional[int]) -> None:
    """Checks that the steps that the learning rate depends on are known before the first of them.

    Args:
        config: The settings.
        steps: Steps in an epoch; None when the reader cannot tell.

    Raises:
        ConfigError: They are not; on every rank.
    """
    if config.optimizer is not None:
        return
    if steps is not None:
        warmup, total = config.schedule.warmup_steps, steps * config.train_epochs
        if warmup > total:
            logger.warning(
                "set_schedule(warmup_steps=%d) is more than the %s of the training, so the full rate is never reached",
                warmup,
                counted(total, "step"),
            )
        return
    calls = [f"set_warmup_epochs({config.warmup_epochs})"] if config.warmup_epochs else []
    calls += [f"set_schedule({config.schedule.name!r})"] if config.schedule.name in ("cosine", "poly") else []
    if calls:
        raise ConfigError(
            f"{' and '.join(calls)}: train_reader cannot tell how many images it has, so the steps that the learning "
            "rate depends on are not known; call set_train_image_num"
        )


def warn_of_ignored_number(config: Config, loader: Loader) -> None:
    """Warns when `set_train_image_num` differs from the number of images that the loader itself knows."""
    known = None if isinstance(loader, ReaderLoader) and not loader.splits else loader.num_images
    if config.train_image_num is not None and known is not None and known != config.train_image_num:
        logger.warning(
            "set_train_image_num(%d) is ignored, because the training data has %d images", config.train_image_num, known
        )


class FirstPass:
    """The count of the first whole epoch of a run, which is compared with what was thought before.

    Args:
        config: The settings.
        loader: This rank's loader.
    """

    def __init__(self, config: Config, loader: Loader) -> None:
        self._config, self._is_counted = config, loader.splits
        self._samples, self._largest = 0, 0

    def add(self, samples: int) -> None:
        """Counts the samples of a step, over all ranks."""
        self._samples, self._largest = self._samples + samples, max(self._largest, samples)

    def end(self, began: int, steps: int, expected: Optional[int]) -> None:
        """Warns after the first epoch when the number of its images or steps is not the one that was expected.

        Args:
            began: Steps of the epoch that were done before this process took it up.
            steps: Steps of the whole epoch.
            expected: Steps in an epoch as the settings or the reader say; None when neither does.
        """
        wanted, found = self._config.train_image_num, self._samples
        if self._is_counted or wanted is None or steps == began:
            return
        self._is_counted = True
        # On several ranks, those that have fewer samples repeat some of them.
        tolerance = 0 if parallel.world_size() == 1 else self._largest
        if began == 0 and abs(found - wanted) > tolerance:
            logger.warning(
                "set_train_image_num(%d), but train_reader gave %d images in an epoch; correct the number: warm-up and "
                "remaining time follow it when the reader cannot tell its length",
                wanted,
                found,
            )
        elif expected is not None and steps != expected:
            logger.warning(
                "set_train_image_num(%d) and batches of %d make %d steps in an epoch, but train_reader gave %d; batch "
                "the reader with the size of set_train_batch_size, or correct the number",
                wanted,
                self._config.train_batch_size,
                expected,
                steps,
            )


def _batches(loader: Loader, epoch: int, start: int) -> Iterator[Optional[Batch]]:
    """Yields this rank's batches from number `start` on; a rank that runs out of batches repeats its first one.

    After the loader has ended the wait for a batch, it yields None for as many batches as other ranks may have.
    """
    if not loader.splits and parallel.world_size() > 1:
        yield from _batches_of_reader(loader, epoch, start)
        return
    number = start
    try:
        for batch in loader.epoch(epoch, start):
            yield batch
            number += 1
    except StoppedError as reason:
        _log_missing(number, epoch, reason)
        yield from itertools.repeat(None, max(1, (loader.steps_per_epoch or 0) - number))


def _batches_of_reader(loader: Loader, epoch: int, start: int) -> Iterator[Optional[Batch]]:
    """Yields what `_batches` does where each rank has its own reader, whose number of batches nobody knows."""
    source = loader.epoch(epoch)
    first: Optional[Batch] = None
    is_stopped = False
    for number in itertools.count():
        batch = None
        try:
            batch = None if is_stopped else next(source, None)
        except StoppedError as reason:
            _log_missing(number, epoch, reason)
            is_stopped = True
        # A rank that has stopped cannot tell whether it has run out of batches, and so must be told by the others.
        has_batch = batch is not None or is_stopped
        if not parallel.any_rank(has_batch, f"batch {number + 1} of epoch {epoch} of its reader"):
            return
        if number == 0:
            _warn_of_same(batch)
        first = first or batch
        if parallel.any_rank(first is None and not is_stopped, "the first batch of its reader"):
            raise DataError(f"train_reader: some rank has no batch in epoch {epoch}; give every rank at least one")
        if number >= start:
            yield None if is_stopped else batch or first


def _log_missing(number: int, epoch: int, reason: StoppedError) -> None:
    """Logs why a batch is missing."""
    logger.warning("a signal has ended the wait for batch %d of epoch %d: %s", number + 1, epoch, reason)


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
