"""Samples one by one, for training scripts that batch them themselves: what the reader modules share."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Callable

import numpy as np

from plsc.data.loader import ImageLoader
from plsc.data.sources import ImageSource
from plsc.data.transforms import Augmentation
from plsc.data.verification import VerificationSet, find_verification_sets, load_verification
from plsc.errors import DataError

SampleReader = Callable[[], Iterator[tuple[np.ndarray, int]]]

# Images a worker prepares at a time; the samples do not depend on it.
_CHUNK = 32


def sample_reader(
    source: ImageSource, seed: int, image_shape: Sequence[int], num_workers: int, rank: int, world_size: int
) -> SampleReader:
    """Return a reader of a rank's samples, normalised and randomly mirrored; every call of it is the next epoch."""
    loader = ImageLoader(source, image_shape, _CHUNK, Augmentation(), seed, num_workers, rank, world_size)
    epochs = itertools.count()

    def reader() -> Iterator[tuple[np.ndarray, int]]:
        # Counted at the call, not at the first sample, so that iterators started in any order keep their epoch.
        return _samples(loader, next(epochs))

    return reader


def _samples(loader: ImageLoader, epoch: int) -> Iterator[tuple[np.ndarray, int]]:
    batches = loader.epoch(epoch)
    try:
        for images, labels in batches:
            yield from zip(images, labels.tolist())
    finally:
        batches.close()  # type: ignore[attr-defined]


def rank_and_world_size() -> tuple[int, int]:
    """Return what PADDLE_TRAINER_ID and PADDLE_TRAINERS_NUM say, or 0 and 1."""
    raw_rank = os.environ.get("PADDLE_TRAINER_ID", "0")
    raw_world = os.environ.get("PADDLE_TRAINERS_NUM", "1")
    if not (raw_rank.isdecimal() and raw_world.isdecimal() and int(raw_rank) < int(raw_world)):
        raise DataError(
            f"PADDLE_TRAINER_ID={raw_rank!r} and PADDLE_TRAINERS_NUM={raw_world!r} are not a rank and a number of "
            "ranks; start with paddle.distributed.launch or unset both"
        )
    return int(raw_rank), int(raw_world)


def test(
    data_dir: str, datasets: str, *, image_shape: Sequence[int] = (3, 112, 112)
) -> tuple[list[VerificationSet], list[str]]:
    """Return the verification sets ``data_dir/NAME.bin`` of the comma separated names, and their names."""
    sets = [load_verification(path, image_shape) for path in find_verification_sets(data_dir, datasets)]
    return sets, [one.name for one in sets]
