"""What a network is tested on: pairs of images, images of identities, or probes to identify in a gallery."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import numpy as np

from plsc.data.collection import Collection, open_collection
from plsc.data.pair_sets import PairSet, begins_like_pairs, of_verification, read_pairs
from plsc.data.pixels import NEWEST, PixelRule
from plsc.data.shard_files import folder_of
from plsc.data.verification import load_verification
from plsc.errors import DataError

_NAMED, _LOOKED_AT = 8, 100  # test sets in a message, and entries of a folder
_OTHER_LISTS = ("label.txt", "file_list.txt", "classes.txt")


@dataclass
class IdentitySet:
    """A test set of images of identities.

    Attributes:
        name: What the set is called.
        images: The N images.
        labels: Number of the identity of each image, int64 [N].
    """

    name: str
    images: Collection
    labels: np.ndarray


@dataclass
class GallerySet:
    """A test set of probes to identify in a gallery, both by templates of one or several images.

    Attributes:
        name: What the set is called.
        gallery: Images of the gallery.
        gallery_templates: Template of each image of the gallery, int64.
        gallery_identities: Identity of each template of the gallery, int64.
        probes: Images of the probes.
        probe_templates: Template of each image of the probes, int64.
        probe_identities: Identity of each template of the probes, int64; -1 if the gallery does not hold it.
    """

    name: str
    gallery: Collection
    gallery_templates: np.ndarray
    gallery_identities: np.ndarray
    probes: Collection
    probe_templates: np.ndarray
    probe_identities: np.ndarray


EvaluationSet = Union[PairSet, IdentitySet, GallerySet]


def find_sets(
    dataset_dir: Union[str, Sequence[str]], targets: str, image_shape: Sequence[int], rule: PixelRule = NEWEST
) -> list[EvaluationSet]:
    """Opens the test sets that `targets` names.

    Args:
        dataset_dir: Folder that holds the sets, or a file or a pattern of files in it; or several training data sets:
            each test set is taken from the first of their folders that has it.
        targets: Comma separated names, with or without suffix. A name is that of a `.bin` file of pairs; else of a
            pairs file, `.txt`; else of a folder of images, `<identity>/<image>`.
        image_shape: (C, H, W), to which the images of `.bin` files are decoded.
        rule: What their pixels mean.

    Raises:
        DataError: A set is missing or damaged, or two sets have the same name.
    """
    found: list[EvaluationSet] = []
    places = [dataset_dir] if isinstance(dataset_dir, str) else dataset_dir
    folders = list(dict.fromkeys(Path(folder_of(place)) for place in places))
    for target in filter(None, (part.strip() for part in targets.split(","))):
        one = _find(folders, target, image_shape, rule)
        if any(one.name == other.name for other in found):
            raise DataError(f"{', '.join(places)}: two test sets are called {one.name!r}; rename one of them")
        found.append(one)
    return found


def has_set(path: str, target: str) -> bool:
    """Returns whether the folder of a data set has a test set of a name."""
    folder, binary, text = _files_of(Path(folder_of(path)), target)
    return os.path.isfile(binary) or os.path.isfile(text) or os.path.isdir(folder)


def _find(folders: Sequence[Path], target: str, image_shape: Sequence[int], rule: PixelRule) -> EvaluationSet:
    for folder in folders:
        path, binary, text = _files_of(folder, target)
        if os.path.isfile(binary):  # unlike the methods of Path it is quiet about names that are too long
            return of_verification(load_verification(str(binary), image_shape, rule))
        if os.path.isfile(text):
            return read_pairs(text)
        if os.path.isdir(path):
            return identities_of(path)
    path, binary, text = _files_of(folders[0], target)
    raise DataError(
        f"{binary}: no such verification set, nor {text.name}, nor a folder of images {path.name}; "
        f"{'; '.join(map(_held_by, folders))}; name the sets with set_val_targets (--targets in plsc test), or train "
        "without a test with set_with_test(False)"
    )


def _files_of(folder: Path, target: str) -> tuple[Path, Path, Path]:
    """Returns what a test set may be called: a folder, a `.bin` file or a pairs file."""
    path = folder / target
    binary, text = (path if path.suffix == end else path.with_name(path.name + end) for end in (".bin", ".txt"))
    return path, binary, text


def _held_by(folder: Path) -> str:
    """Returns which test sets a folder seems to hold, for error messages."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(name for name in (_set_name(entry) for entry in entries) if name)
    except OSError as error:
        return f"{folder} cannot be listed ({error.strerror or error})"
    if not found:
        return f"{folder} holds no test sets"
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{folder} holds {', '.join(found[:_NAMED])}{more}"


def _set_name(entry: os.DirEntry[str]) -> str:
    """Returns how to name an entry of a folder as a test set; '' if it cannot be one."""
    path = Path(entry.path)
    if path.suffix == ".bin" and entry.is_file():
        return path.stem
    if path.suffix == ".txt" and path.name not in _OTHER_LISTS and entry.is_file() and begins_like_pairs(path):
        return path.stem
    return f"{path.name} (folder)" if entry.is_dir() and _has_folders(path) else ""


def _has_folders(folder: Path) -> bool:
    """Returns whether one of the first entries of a folder is a folder, as in `<identity>/<image>`."""
    try:
        with os.scandir(folder) as entries:
            return any(entry.is_dir() for entry in itertools.islice(entries, _LOOKED_AT))
    except OSError:
        return False


def identities_of(folder: Path) -> IdentitySet:
    """Opens the images of a folder, whose identities its subfolders or its `label.txt` name.

    Raises:
        DataError: An image has no identity.
    """
    images = open_collection(folder)
    return IdentitySet(folder.name, images, np.unique(_identities(images), return_inverse=True)[1])


def _identities(images: Collection) -> list[str]:
    identities = [images.identity(i) for i in range(images.num_images)]
    if "" in identities:
        where = images.where(identities.index(""))
        raise DataError(
            f"{where}: the image has no identity; put images in folders named after identities, or name the "
            "identities in a list"
        )
    return identities


def read_gallery(gallery: Path, probes: Path) -> GallerySet:
    """Opens a gallery, and the probes to identify in it.

    All images of an identity of the gallery form one template. Images of a probe form a template if their list, or a
    subfolder in the folder of the identity, says so.

    Args:
        gallery: A folder, a list or base64 data; see `open_collection`.
        probes: As `gallery`.

    Raises:
        DataError: An image of the gallery has no identity, or the data cannot be read.
    """
    known, wanted = open_collection(gallery), open_collection(probes)
    names, gallery_templates = np.unique(_identities(known), return_inverse=True)
    numbers = {str(name): number for number, name in enumerate(names)}
    first_of: dict[object, int] = {}
    identities: list[int] = []
    probe_templates = []
    for i in range(wanted.num_images):
        identity, template = wanted.identity(i), wanted.template(i)
        key: object = (identity, template) if template else i
        if key not in first_of:
            first_of[key] = len(first_of)
            identities.append(numbers.get(identity, -1))
        probe_templates.append(first_of[key])
    return GallerySet(
        name="identification",
        gallery=known,
        gallery_templates=gallery_templates,
        gallery_identities=np.arange(len(names)),
        probes=wanted,
        probe_templates=np.array(probe_templates),
        probe_identities=np.array(identities),
    )
