"""Sample readers over a folder of image files, for training scripts that batch samples themselves."""

from __future__ import annotations

from collections.abc import Sequence

from plsc.data.label_file import read_label_file
from plsc.data.pixels import NEWEST_RULE
from plsc.utils.sample_reader import SampleReader, rank_and_world_size, sample_reader, test

__all__ = ["arc_train", "test"]


def arc_train(
    data_dir: str,
    class_dim: int,
    *,
    seed: int = 0,
    image_shape: Sequence[int] = (3, 112, 112),
    num_workers: int = 4,
    pixel_rule: int = NEWEST_RULE,
) -> SampleReader:
    """Returns a reader of this rank's samples. Each call of the reader is the next epoch, in another order.

    The samples are those of `data_dir/label.txt`, which all ranks shuffle in the same way. The rank comes from
    PADDLE_TRAINER_ID and PADDLE_TRAINERS_NUM.

    Args:
        data_dir: Folder that holds `label.txt`.
        class_dim: Number of classes; labels must be in [0, class_dim).
        seed: Seed of the order and of the mirroring.
        image_shape: Shape of one image, (C, H, W).
        num_workers: Number of threads that decode images.
        pixel_rule: How files become pixels; 1 is the rule of earlier versions: see docs/pixels.md.

    Returns:
        A function that returns an iterator over (image, label). The image is float32 [C, H, W], normalised and randomly
        mirrored; the label is an int.

    Raises:
        DataError: The label file has a mistake, or an image is missing.
    """
    rank, world_size = rank_and_world_size()
    source = read_label_file(data_dir, class_dim)
    return sample_reader(source, seed, image_shape, num_workers, rank, world_size, pixel_rule=pixel_rule)
