"""What the two reader modules share: samples one by one, for training scripts that batch them themselves."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Callable

import numpy as np

from plsc.data.augmentation import Augmentation
from plsc.data.loader import ImageLoader
from plsc.data.pixels import NEWEST_RULE, PixelRule
from plsc.data.sources import ImageSource
from plsc.data.verification import VerificationSet, find_verification_sets, load_verification
from plsc.errors import DataError

SampleReader = Callable[[], Iterator[tuple[np.ndarray, int]]]

# Number of images that a worker prepares at a time; the samples do not depend on it.
_CHUNK = 32


def sample_reader(
    source: ImageSource,
    seed: int,
    image_shape: Sequence[int],
    num_workers: int,
    rank: int,
    world_size: int,
    pixel_rule: int = NEWEST_RULE,
) -> SampleReader:
    """Returns a reader of the samples of a rank, normalised and randomly mirrored. Each call is the next epoch."""
    loader = ImageLoader(
        source,
        image_shape,
        batch_size=_CHUNK,
        augmentation=Augmentation(),
        seed=seed,
        num_workers=num_workers,
        rank=rank,
        world_size=world_size,
        rule=PixelRule(pixel_rule),
    )
    epochs = itertools.count()

    def reader() -> Iterator[tuple[np.ndarray, int]]:
        # The call counts the epoch, not the first sample, so that iterators keep their epochs in whatever order they
        # start.
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
    """Returns the values of PADDLE_TRAINER_ID and PADDLE_TRAINERS_NUM, by default 0 and 1.

    Raises:
        DataError: They are not a rank and a number of ranks.
    """
    raw_rank = os.environ.get("PADDLE_TRAINER_ID", "0")
    raw_world = os.environ.get("PADDLE_TRAINERS_NUM", "1")
    if not (raw_rank.isdecimal() and raw_world.isdecimal() and int(raw_rank) < int(raw_world)):
        raise DataError(
            f"PADDLE_TRAINER_ID={raw_rank!r} and PADDLE_TRAINERS_NUM={raw_world!r} are not a rank and a number of "
            "ranks; start with paddle.distributed.launch or unset both"
        )
    return int(raw_rank), int(raw_world)


def test(
    data_dir: str, datasets: str, *, image_shape: Sequence[int] = (3, 112, 112), pixel_rule: int = NEWEST_RULE
) -> tuple[list[VerificationSet], list[str]]:
    """Reads verification sets.

    Args:
        data_dir: Folder that holds the sets `NAME.bin`.
        datasets: Comma separated names of sets.
        image_shape: Shape to which images are resized, (C, H, W).
        pixel_rule: How files become pixels; 1 is the rule of earlier versions: see docs/pixels.md.

    Returns:
        The sets, and their names.

    Raises:
        DataError: A set is missing or damaged.
    """
    sets = [
        load_verification(path, image_shape, PixelRule(pixel_rule))
        for path in find_verification_sets(data_dir, datasets)
    ]
    return sets, [one.name for one in sets]
