"""Sample readers over split base64 data, for training scripts that batch samples themselves."""

from __future__ import annotations

from collections.abc import Sequence

from plsc.data.pixels import NEWEST_RULE
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
    pixel_rule: int = NEWEST_RULE,
) -> SampleReader:
    """Returns a reader of this rank's samples. Each call of the reader is the next epoch, in another order.

    The samples are the lines of `data_dir/base64_rank_<rank>`, or of several such files if the data has been split for
    more ranks. The rank comes from PADDLE_TRAINER_ID and PADDLE_TRAINERS_NUM.

    Args:
        data_dir: Folder of the split data.
        class_dim: Number of classes; labels must be in [0, class_dim).
        seed: Seed of the order and of the mirroring.
        image_shape: Shape of one image, (C, H, W).
        num_workers: Number of threads that decode images.
        shuffle: 'window' mixes the lines of a few blocks, which are read as a whole; 'full' mixes all lines of the
            files.
        pixel_rule: How files become pixels; 1 is the rule of earlier versions: see docs/pixels.md.

    Returns:
        A function that returns an iterator over (image, label). The image is float32 [C, H, W], normalised and randomly
        mirrored; the label is an int.

    Raises:
        DataError: The folder holds no data that `tools/process_base64_files.py` split, or the number of ranks does not
            divide the number it was split for.
    """
    rank, world_size = rank_and_world_size()
    source = open_images(data_dir, class_dim, rank, world_size, "base64", shuffle)
    return sample_reader(source, seed, image_shape, num_workers, rank, world_size, pixel_rule=pixel_rule)
