"""Sample readers over a data set directory, for training scripts that batch samples themselves."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Callable

import numpy as np

from plsc.data.loader import ImageLoader
from plsc.data.sources import read_label_file
from plsc.data.transforms import Augmentation
from plsc.data.verification import VerificationSet, find_verification_sets, load_verification
from plsc.errors import DataError

# Images a worker prepares at a time; the samples do not depend on it.
_CHUNK = 32


def arc_train(
    data_dir: str,
    class_dim: int,
    *,
    seed: int = 0,
    image_shape: Sequence[int] = (3, 112, 112),
    num_workers: int = 4,
) -> Callable[[], Iterator[tuple[np.ndarray, int]]]:
    """Return a reader of this rank's samples (image float32 [C, H, W], normalised and randomly mirrored; label int).

    ``data_dir/label.txt`` is shuffled anew, alike on all ranks, for every call of the reader: each is the next epoch.
    The rank comes from PADDLE_TRAINER_ID and PADDLE_TRAINERS_NUM.
    """
    source = read_label_file(data_dir, class_dim)
    rank, world_size = _rank_and_world_size()
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


def _rank_and_world_size() -> tuple[int, int]:
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
