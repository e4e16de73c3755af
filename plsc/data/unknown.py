"""What a path is that was named as training data and holds none, so that a message can say so."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from plsc.data.image_folders import has_image_suffix
from plsc.errors import DataError
from plsc.machine.names import near_names, quoted

_MOST_LISTED = 1000
_UNPACK = "unpack it, and name the folder that it gives"
_OF_SUFFIX = {
    ".zip": f"is a zip archive; {_UNPACK}",
    ".gz": f"is compressed; {_UNPACK}",
    ".bz2": f"is compressed; {_UNPACK}",
    ".xz": f"is compressed; {_UNPACK}",
    ".zst": f"is compressed; {_UNPACK}",
    ".rar": f"is an archive; {_UNPACK}",
    ".7z": f"is an archive; {_UNPACK}",
    ".lst": "is a list for MXNet's im2rec; name the .rec file that it was used for, or make one",
    ".idx": "is the index of a .rec file; name the .rec file",
    ".bin": "is no training data; a verification set belongs into set_val_targets, or plsc test --targets",
    ".txt": "is a text; name the folder that holds it as label.txt, with the images",
}


def not_data(path: str, known: str) -> DataError:
    """Returns the error for a path that no format recognises.

    Args:
        path: The path.
        known: What it could hold, for the message.
    """
    if not path:
        return DataError("the path of the training data is empty; name a file or folder")
    if path == "-":
        return DataError("-: training data is not read from the standard input; name a file or folder")
    if os.path.islink(path) and not os.path.exists(path):
        target = quoted(os.readlink(path))
        return DataError(f"{path}: is a link to {target}, which is missing; correct the link, or name the data itself")
    if not os.path.lexists(path):
        near = near_names(Path(path)) or "; check the path"
        return DataError(f"{path}: holds no training data (no such file or folder){near}")
    if os.path.isdir(path):
        return DataError(f"{path}: {_of_folder(path, known)}")
    if has_image_suffix(path):
        return DataError(f"{path}: is an image; name the folder that holds a folder of images for each class")
    about = _OF_SUFFIX.get(os.path.splitext(path)[1].lower())
    return DataError(f"{path}: {about or f'holds no training data; give one of these: {known}'}")


def _of_folder(path: str, known: str) -> str:
    try:
        with os.scandir(path) as entries:
            some = sorted(itertools.islice((one.name for one in entries), _MOST_LISTED))
    except OSError as problem:
        return f"cannot be listed ({problem.strerror}); give this user the permission to read it, or name another"
    if not some:
        return "holds no training data, because the folder is empty; check the path, and that its disk is mounted"
    if any(map(has_image_suffix, some)):
        return "holds images, but not in a folder for each class; name the folder of these folders"
    return f"holds no training data, but {quoted(some[0])}{' and others' * (len(some) > 1)}; give one of these: {known}"
