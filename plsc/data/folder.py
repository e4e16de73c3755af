"""The images of a folder, whichever way it holds them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

from plsc.data.base64_parts import MANIFEST_NAME, load_manifest
from plsc.data.base64_source import Base64Files
from plsc.data.sources import ImageSource, read_label_file
from plsc.errors import DataError

DATA_FORMATS = ("auto", "jpeg", "base64")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_UNSPLIT_LIST = "file_list.txt"


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and the folders in it, sorted.

    Raises:
        DataError: there are none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise DataError(f"{folder}: holds no image ({', '.join(SUFFIXES)})")
    return found


def open_images(
    folder: str,
    num_classes: int,
    rank: int,
    world_size: int,
    data_format: str = "auto",
    shuffle: Optional[str] = None,
) -> ImageSource:
    """The samples of one rank.

    Args:
        folder: holds `label.txt`, or base64 data that was split for the ranks.
        num_classes: labels are in [0, num_classes).
        rank, world_size: which rank of how many.
        data_format: 'jpeg', 'base64', or 'auto': base64 if the folder holds its manifest.
        shuffle: of base64 data, 'window' (the default) or 'full'; see `Base64Files`.

    Raises:
        DataError: the folder does not hold such data, or there is a mistake in it.
    """
    manifest = None if data_format == "jpeg" else load_manifest(folder)
    if manifest is not None:
        return Base64Files(folder, manifest, num_classes, rank, world_size, shuffle or "window")
    unsplit = os.path.exists(os.path.join(folder, _UNSPLIT_LIST))
    if data_format == "base64" or (unsplit and not os.path.exists(os.path.join(folder, "label.txt"))):
        raise DataError(
            f"{os.path.join(folder, MANIFEST_NAME)}: missing, so there is no split base64 data; run "
            f"python tools/process_base64_files.py --data_dir={folder} --file_list={_UNSPLIT_LIST} --nranks={world_size}"
        )
    if shuffle is not None:
        raise DataError(f"{folder}: holds no base64 data, and set_data_format(shuffle={shuffle!r}) is for that alone")
    return read_label_file(folder, num_classes)
