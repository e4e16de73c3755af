"""The samples of a folder tree `<identity>/<image>`, in which each subfolder is a class."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plsc.data.class_names import number_classes
from plsc.data.folder_index import listed
from plsc.data.image_folders import has_image_suffix
from plsc.data.packed import NamesInFolders
from plsc.data.records import Opening, Records
from plsc.errors import DataError
from plsc.machine.files import advice_on
from plsc.machine.mounts import read_regular

logger = logging.getLogger("plsc")

_LOOKED_AT = 100  # entries of a folder that show whether it is a tree
_SPLITS = {b"train", b"val", b"valid", b"test", b"training", b"validation"}


def holds_tree(path: str) -> bool:
    """Returns whether some of the first subfolders of a folder hold images."""
    return any(_holds_image(one.path) for one in _first_entries(path) if _is_folder(one))


def _first_entries(folder: str) -> list[os.DirEntry[str]]:
    """Returns the first entries of a folder that are not hidden; none if it cannot be listed."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [one for one in itertools.islice(entries, _LOOKED_AT) if _is_shown(one)]
    return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):  # a link to itself, which does not make the other entries less of a data set
        return entry.is_dir()
    return False


def _holds_image(folder: str, deep: bool = True) -> bool:
    some = _first_entries(folder)
    if any(has_image_suffix(one.name) for one in some):
        return True
    return deep and any(_holds_image(one.path, deep=False) for one in some[:1] if _is_folder(one))


def _is_shown(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".")


def open_records(opening: Opening) -> FolderTree:
    """Opens a folder tree.

    Images in deeper folders belong to the class of the subfolder. Test sets that `opening` names are left out, and so
    are images that lie in no subfolder.

    Raises:
        DataError: There are no classes, or a subfolder seems to hold a test set, or all the data.
    """
    tests = {os.fsencode(name) for name in opening.test_sets}
    files, left_out = listed(os.fsencode(opening.path), tests, opening.keeps_index)
    for name in sorted(tests):
        if name and not os.path.isabs(name) and os.path.isdir(os.path.join(os.fsencode(opening.path), name)):
            left_out.add("test sets of set_val_targets", name)
    if files is None:
        raise DataError(f"{opening.path}: holds no folder with images; put the images of each class into a subfolder")
    owners: list[int] = []
    flat: dict[bytes, bool] = {}  # whether a class has images that lie in no deeper folder
    for run in range(len(files.prefixes)):
        identity, _, deeper = files.prefixes.raw(run).partition(b"/")
        flat[identity] = flat.get(identity, False) or not deeper
        owners.append(len(flat) - 1)
    left_out.log(Path(opening.path), len(files))
    check_depth(opening.path, flat)
    classes = list(flat)
    numbered = number_classes(
        classes, opening.path, lambda k: os.path.join(opening.path, os.fsdecode(classes[k])), opening.num_classes
    )
    return FolderTree(opening.path, files, numbered.numbers[np.array(owners)], numbered.names)


def check_depth(path: str, flat: dict[bytes, bool]) -> None:
    """Refuses subfolders that seem to hold whole data sets, such as a test set next to the classes.

    Args:
        path: The folder.
        flat: Whether each class, by its name, has images that lie in no deeper folder.

    Raises:
        DataError: A subfolder seems to hold one.
    """
    deep = [name for name, has_images in flat.items() if not has_images]
    if not deep:
        return
    name = os.fsdecode(deep[0])
    if len(deep) < len(flat):
        raise DataError(
            f"{path}: the subfolder {name!r} holds folders of images and no images, unlike others; if it is a test "
            f"set, name it in set_val_targets, or move it out of {path}; if it is a class, put its images into it"
        )
    if len(flat) == 1 or _SPLITS.intersection(one.lower() for one in deep):
        raise DataError(
            f"{path}: the subfolder {name!r} seems to hold a whole data set, and not a class; call "
            f"set_dataset_dir({os.path.join(path, name)!r}), or that of the set to train on"
        )


class FolderTree(Records):
    """The images of a folder tree.

    Memory holds the name of each image in its folder, and 5 to 9 bytes more.

    Args:
        path: The folder.
        files: Names of the N images.
        labels: Label of the images of each of R runs of files, int32 [R].
        class_names: Names of the classes.
    """

    has_image_files = True

    def __init__(self, path: str, files: NamesInFolders, labels: np.ndarray, class_names: Sequence[str]) -> None:
        self.path, self.num_images, self.class_names = path, len(files), class_names
        self._root, self._files, self._labels = os.fsencode(path), files, labels

    def name(self, i: int) -> str:
        """Returns the path of the image, relative to the folder."""
        return self._files[i]

    def where(self, i: int) -> str:
        """Returns the path of the image."""
        return os.path.join(self.path, self.name(i))

    def read(self, i: int) -> tuple[bytes, int]:
        """Returns the encoded bytes and the label of image `i`.

        Raises:
            DataError: The file cannot be read.
        """
        run = self._files.run(i)
        try:
            return read_regular(os.path.join(self._root, self._files.raw_in(run, i))), int(self._labels[run])
        except OSError as error:
            advice = advice_on(error, "restore the file, or start again without it")
            raise DataError(f"{self.where(i)}: cannot read the image ({error.strerror or error}); {advice}") from error

    def span(self, first: int, end: int) -> tuple[str, int, None]:
        """Returns the file of image `first`; see `Records.span`."""
        return self.where(first), 0, None

    def labels(self) -> np.ndarray:
        """Returns the label of each image, int32 [N]."""
        return np.repeat(self._labels, np.diff(self._files.firsts))

    def digests(self) -> dict[str, str]:
        """Returns the number of images, and digests of their names and of the numbers of their classes."""
        names, files = hashlib.sha256(), self._files
        for run, first in enumerate(files.firsts[:-1].tolist()):
            end = int(files.firsts[run + 1])
            names.update(files.prefixes.raw(run) + b"\0" + files.names.ends[first:end].astype(np.int64).tobytes())
            names.update(files.names.joined(first, end))
        classes = hashlib.sha256("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        return {
            "the number of images in the folder": str(self.num_images),
            "the images in the folder": names.hexdigest(),
            "the classes of the folder, or their numbers": classes.hexdigest(),
        }
