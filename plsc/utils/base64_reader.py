"""Sample readers over split base64 data, for training scripts that batch samples themselves."""

from __future__ import annotations

from collections.abc import Sequence

from plsc.data.sources import open_images
from plsc.utils.sample_reader import SampleReader, rank_and_world_size, sample_reader, test

__all__ = ["arc_train", "test"]


def arc_train(
    data_dir: str,
    class_dim: int,
    *,
    seed: int = 0,
    image_shape: Sequence[int] = (3, 112, 112),
    num_workers: int = 4,
    shuffle: str = "window",
) -> SampleReader:
    """Return a reader of this rank's samples (image float32 [C, H, W], normalised and randomly mirrored; label int).

    They are the lines of ``data_dir/base64_rank_<rank>``, or of several such files when the data was split for more ranks.
    Every call of the reader is the next epoch, shuffled anew: with ``shuffle`` 'window' within blocks that are read at
    once, with 'full' all over the files. The rank comes from PADDLE_TRAINER_ID and PADDLE_TRAINERS_NUM.

    Raises DataError when ``data_dir`` holds no data that ``tools/process_base64_files.py`` split, or holds it for a number
    of ranks that cannot be shared by these.
    """
    rank, world_size = rank_and_world_size()
    source = open_images(data_dir, class_dim, rank, world_size, "base64", shuffle)
    return sample_reader(source, seed, image_shape, num_workers, rank, world_size)
