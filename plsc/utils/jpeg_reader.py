"""Sample readers over a folder of image files, for training scripts that batch samples themselves."""

from __future__ import annotations

from collections.abc import Sequence

from plsc.data.label_file import read_label_file
from plsc.utils.sample_reader import SampleReader, rank_and_world_size, sample_reader, test

__all__ = ["arc_train", "test"]


def arc_train(
    data_dir: str,
    class_dim: int,
    *,
    seed: int = 0,
    image_shape: Sequence[int] = (3, 112, 112),
    num_workers: int = 4,
) -> SampleReader:
    """Return a reader of this rank's samples (image float32 [C, H, W], normalised and randomly mirrored; label int).

    ``data_dir/label.txt`` is shuffled anew, alike on all ranks, for every call of the reader: each is the next epoch.
    The rank comes from PADDLE_TRAINER_ID and PADDLE_TRAINERS_NUM.
    """
    rank, world_size = rank_and_world_size()
    return sample_reader(read_label_file(data_dir, class_dim), seed, image_shape, num_workers, rank, world_size)
