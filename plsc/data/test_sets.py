"""What a network is tested on: pairs of images, images of identities, probes to be found in a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import numpy as np

from plsc.data.collection import (
    ArrayImages,
    Collection,
    ImageFiles,
    Listed,
    folder_of_images,
    open_collection,
    read_list,
)
from plsc.data.verification import VerificationSet, describe_sets, load_verification
from plsc.errors import DataError

_IMAGE_FOLDERS = ("", "images", "lfw")  # beside a pairs file
_LFW_SUFFIXES = (".jpg", ".png")


@dataclass
class PairSet:
    """Pairs of images, or of templates, which stand for several images.

    Attributes:
        images: each once.
        templates: int64 [N], the template of each image; None where images stand alone.
        pairs: int64 [P, 2], of templates or images.
        issame: bool [P], of one identity.
        folds: int64 [P]; None for ten parts in their order.
    """

    name: str
    images: Collection
    templates: Optional[np.ndarray]
    pairs: np.ndarray
    issame: np.ndarray
    folds: Optional[np.ndarray]


@dataclass
class IdentitySet:
    """Images of identities: `labels` int64 [N], the number of each one's."""

    name: str
    images: Collection
    labels: np.ndarray


@dataclass
class GallerySet:
    """Probes to be found in a gallery, by templates of one or several images.

    Attributes:
        gallery, probes: images.
        gallery_templates, probe_templates: int64, the template of each image.
        gallery_identities, probe_identities: int64, the identity of each template; -1 of a stranger.
    """

    name: str
    gallery: Collection
    gallery_templates: np.ndarray
    gallery_identities: np.ndarray
    probes: Collection
    probe_templates: np.ndarray
    probe_identities: np.ndarray


EvaluationSet = Union[PairSet, IdentitySet, GallerySet]


def find_sets(dataset_dir: str, targets: str, image_shape: Sequence[int]) -> list[EvaluationSet]:
    """The sets of the comma separated `targets` in a folder.

    Each is a name with or without its suffix: of a `.bin` file of pairs; or else of a pairs file, `.txt`; or else of a
    folder of images, `<identity>/<image>`. Images of `.bin` files are decoded for `image_shape` (C, H, W).

    Raises:
        DataError: one of them is missing or not as it should be, or two have one name.
    """
    found: list[EvaluationSet] = []
    for target in filter(None, (part.strip() for part in targets.split(","))):
        one = _find(Path(dataset_dir), target, image_shape)
        if any(one.name == other.name for other in found):
            raise DataError(f"{dataset_dir}: two test sets are called {one.name!r}; rename one of them")
        found.append(one)
    return found


def _find(folder: Path, target: str, image_shape: Sequence[int]) -> EvaluationSet:
    path = folder / target
    binary, text = (path if path.suffix == end else path.with_name(path.name + end) for end in (".bin", ".txt"))
    if binary.is_file():
        return of_verification(load_verification(str(binary), image_shape))
    if text.is_file():
        return read_pairs(text)
    if path.is_dir():
        return identities_of(path)
    raise DataError(
        f"{binary}: no such verification set, nor {text.name}, nor a folder of images {path.name}; {describe_sets(str(folder))}"
    )


def of_verification(one: VerificationSet) -> PairSet:
    """The pairs of a `.bin` file."""
    images = ArrayImages(one.name, one.images)
    return PairSet(one.name, images, None, images.rows.reshape(-1, 2), one.issame, None)


def identities_of(folder: Path) -> IdentitySet:
    """The images of a folder, `<identity>/<image>`, or as its `label.txt` says.

    Raises:
        DataError: an image without an identity.
    """
    images = open_collection(folder)
    return IdentitySet(folder.name, images, np.unique(_identities(images), return_inverse=True)[1])


def _identities(images: Collection) -> list[str]:
    identities = [images.identity(i) for i in range(images.num_images)]
    if "" in identities:
        where = images.where(identities.index(""))
        raise DataError(f"{where}: of whom is it? Put images in folders of their identities, or name those in a list")
    return identities


def read_pairs(path: Path) -> PairSet:
    """A pairs file.

    Lines of `one other 1` (of one identity) or `one other 0`, with tabs where names hold spaces; names are of images
    beside the file, or of folders, whose images are a template. Or as LFW's `pairs.txt`: a first line of folds and pairs
    (`10<TAB>300`, or one number, of one fold), then for each fold so many lines of `name 1 4` and so many of
    `name 1 other 2`; the images are `name/name_0001.jpg` beside the file or in `images` or `lfw` there.

    Raises:
        DataError: a line that is neither, or an image that is missing.
    """
    lines = read_list(path)
    first = lines[0][1].split()
    if len(first) <= 2 and all(_is_count(word) for word in first):
        return _lfw_pairs(path, [int(word) for word in first], lines[1:])
    entries: dict[str, int] = {}
    listed: list[Listed] = []
    templates: list[int] = []
    pairs, issame = [], []
    for number, line in lines:
        words = [word.strip() for word in line.split("\t")] if "\t" in line else line.split()
        if len(words) != 3 or words[2] not in ("0", "1"):
            raise DataError(
                f"{path}:{number}: {line!r} is not 'one other 1' or 'one other 0', with tabs if names hold spaces"
            )
        for name in words[:2]:
            if name not in entries:
                files = _entry(path, number, name)
                listed += files
                templates += [len(entries)] * len(files)
                entries[name] = len(entries)
        pairs.append((entries[words[0]], entries[words[1]]))
        issame.append(words[2] == "1")
    alone = len(listed) == len(entries)
    images = ImageFiles(path.parent, listed, path)
    return _pair_set(path, images, None if alone else np.array(templates), pairs, issame, None)


def _entry(path: Path, number: int, name: str) -> list[Listed]:
    root = path.parent
    if (root / name).is_dir():
        return [Listed(file.name, line=number) for file in folder_of_images(root, root / name)]
    if not (root / name).is_file():
        raise DataError(f"{path}:{number}: there is no image and no folder {root / name}; names are relative to {root}")
    return [Listed(name, line=number)]


def _lfw_pairs(path: Path, counts: list[int], lines: list[tuple[int, str]]) -> PairSet:
    folds, each = counts if len(counts) == 2 else (1, counts[0])
    if len(lines) != folds * 2 * each or not lines:
        raise DataError(
            f"{path}: holds {len(lines)} pairs, and its first line says {folds} folds of {each} and {each}; get the file again"
        )
    entries: dict[tuple[str, int], int] = {}
    places: list[int] = []
    pairs, issame = [], []
    for position, (number, line) in enumerate(lines):
        words = line.split()
        same = position % (2 * each) < each
        numbers = words[1:] if same else words[1::2]
        if len(words) != (3 if same else 4) or not all(map(_is_count, numbers)):
            raise DataError(f"{path}:{number}: {line!r} is not '{'name 1 4' if same else 'name 1 other 2'}'")
        pair = []
        for name, image in zip((words[0], words[0] if same else words[2]), map(int, numbers)):
            pair.append(entries.setdefault((name, image), len(entries)))
            if len(entries) > len(places):
                places.append(number)
        pairs.append(tuple(pair))
        issame.append(same)
    root, suffix = _lfw_images(path, next(iter(entries)))
    listed = [
        Listed(_lfw_name(name, image, suffix), name, line=number) for (name, image), number in zip(entries, places)
    ]
    for one in listed:
        if not (root / one.name).is_file():
            raise DataError(f"{path}:{one.line}: there is no image {root / one.name}; restore it")
    fold = np.arange(len(lines)) // (2 * each)
    return _pair_set(path, ImageFiles(root, listed, path), None, pairs, issame, fold)


def _lfw_images(path: Path, first: tuple[str, int]) -> tuple[Path, str]:
    for folder in _IMAGE_FOLDERS:
        for suffix in _LFW_SUFFIXES:
            if (path.parent / folder / _lfw_name(*first, suffix)).is_file():
                return path.parent / folder, suffix
    raise DataError(
        f"{path}: there is no image {_lfw_name(*first, '.jpg')} (or .png) beside it, nor in {_IMAGE_FOLDERS[1]} or "
        f"{_IMAGE_FOLDERS[2]} there; put the folders of images there"
    )


def _lfw_name(name: str, image: int, suffix: str) -> str:
    return f"{name}/{name}_{image:04d}{suffix}"


def _is_count(word: str) -> bool:
    return word.isascii() and word.isdigit() and int(word) > 0


def _pair_set(
    path: Path,
    images: Collection,
    templates: Optional[np.ndarray],
    pairs: Sequence[Sequence[int]],
    issame: Sequence[bool],
    folds: Optional[np.ndarray],
) -> PairSet:
    return PairSet(path.stem, images, templates, np.array(pairs, np.int64), np.array(issame), folds)


def read_gallery(gallery: Path, probes: Path) -> GallerySet:
    """Images to be found, and those to find them in: each a folder, a list or base64 data, see `open_collection`.

    All images of an identity of the gallery are one template; those of a probe if the list, or a folder in the identity's,
    says so.

    Raises:
        DataError: an image of the gallery without an identity, or data that cannot be read.
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
            # A stranger is in no gallery: whose number it has does not matter.
            identities.append(numbers.get(identity, -1))
        probe_templates.append(first_of[key])
    return GallerySet(
        "identification",
        known,
        gallery_templates,
        np.arange(len(names)),
        wanted,
        np.array(probe_templates),
        np.array(identities),
    )
