"""What training reads: the `ImageSource` protocol, and the function that opens the right one for a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional, Protocol

import numpy as np

from plsc.data.base64_parts import MANIFEST_NAME, load_manifest
from plsc.data.base64_source import Base64Files
from plsc.data.label_file import largest_label, read_label_file
from plsc.errors import DataError

DATA_FORMATS = ("auto", "jpeg", "base64")
_UNSPLIT_LIST = "file_list.txt"


class ImageSource(Protocol):
    """Encoded images with labels, each identified by a number.

    Attributes:
        num_images: Number of images of all ranks together.
    """

    num_images: int

    def epoch_order(self, seed: int, epoch: int, rank: int, world_size: int) -> np.ndarray:
        """Returns the samples of a rank in the order of an epoch, int64 [ceil(num_images / world_size)]."""

    def digests(self) -> dict[str, str]:
        """Returns a digest of each thing that must be the same on every rank, by its name."""

    def where(self, i: int) -> str:
        """Returns where sample `i` is listed, for error messages."""

    def read(self, i: int) -> tuple[bytes, int]:
        """Returns the encoded bytes and the label of image `i`."""


def open_images(
    folder: str,
    num_classes: int,
    rank: int,
    world_size: int,
    data_format: str = "auto",
    shuffle: Optional[str] = None,
) -> ImageSource:
    """Opens the samples of one rank.

    Args:
        folder: Folder that holds `label.txt`, or base64 data that has been split for the ranks.
        num_classes: Number of classes; labels must be in [0, num_classes).
        rank: Rank of this process.
        world_size: Number of ranks.
        data_format: 'jpeg', 'base64', or 'auto', which means base64 if the folder holds a manifest of split data.
        shuffle: For base64 data, 'window' (the default) or 'full'; see `Base64Files`.

    Raises:
        DataError: The folder does not hold such data, or the data has a mistake.
    """
    manifest = None if data_format == "jpeg" else load_manifest(folder)
    if manifest is not None:
        return Base64Files(folder, manifest, num_classes, rank, world_size, shuffle or "window")
    is_unsplit = os.path.exists(os.path.join(folder, _UNSPLIT_LIST))
    if data_format == "base64" or (is_unsplit and not os.path.exists(os.path.join(folder, "label.txt"))):
        raise DataError(
            f"{os.path.join(folder, MANIFEST_NAME)}: missing, so the folder holds no split base64 data; "
            f"run python tools/process_base64_files.py --data_dir={folder} --file_list={_UNSPLIT_LIST} "
            f"--nranks={world_size}"
        )
    if shuffle is not None:
        raise DataError(
            f"{folder}: set_data_format(shuffle={shuffle!r}) needs base64 data, and the folder holds none; leave "
            "shuffle out"
        )
    return read_label_file(folder, num_classes)


def count_classes(folder: str, data_format: str = "auto") -> int:
    """Returns the number of classes of a data set folder: its largest label plus one.

    Args:
        folder: Folder that holds `label.txt`, or base64 data that has been split for the ranks.
        data_format: As for `open_images`.

    Raises:
        DataError: The folder holds no labels that can be counted.
    """
    manifest = None if data_format == "jpeg" else load_manifest(folder)
    if manifest is not None:
        return manifest.largest_label + 1
    path = Path(folder, "label.txt")
    try:
        count = largest_label(path) + 1
    except OSError as error:
        raise DataError(
            f"{path}: cannot read the label file ({error.strerror or error}), so set_class_num('auto') cannot count "
            "the classes; check the data set directory, or give their number"
        ) from error
    if not count:
        raise DataError(f"{path}: no line has a label; write one 'path label' per line")
    return count
