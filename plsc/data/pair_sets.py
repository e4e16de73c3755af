"""Pairs of images to test on, and the text files that list them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np

from plsc.data.collection import ArrayImages, Collection, ImageFiles
from plsc.data.image_folders import LeftOut, folder_of_images
from plsc.data.image_lists import Listed, beginning_of, columns_of, read_list
from plsc.data.verification import VerificationSet
from plsc.errors import DataError, counted, one_line
from plsc.machine.names import why_missing

_IMAGE_FOLDERS = ("", "images", "lfw")  # Relative to the folder of a pairs file.
_LFW_SUFFIXES = (".jpg", ".png")


@dataclass
class PairSet:
    """A test set of pairs of images, or of templates, each of which stands for several images.

    Attributes:
        name: What the set is called.
        images: The images, each once.
        templates: Template of each image, int64 [N]; None if images stand alone.
        pairs: The two templates or images of each pair, int64 [P, 2].
        issame: Whether the two are of one identity, bool [P].
        folds: Fold of each pair, int64 [P]; None for ten parts in the order of the pairs.
    """

    name: str
    images: Collection
    templates: Optional[np.ndarray]
    pairs: np.ndarray
    issame: np.ndarray
    folds: Optional[np.ndarray]


def of_verification(one: VerificationSet) -> PairSet:
    """Returns the pairs of a `.bin` file."""
    images = ArrayImages(one.name, one.images)
    return PairSet(one.name, images, None, images.rows.reshape(-1, 2), one.issame, None)


def read_pairs(path: Path) -> PairSet:
    """Reads a pairs file.

    The file has one of two forms. In the first, each line is `one other 1` (the same identity) or `one other 0`
    (different identities), with tabs if names hold spaces. A name is that of an image in the folder of the file, or of
    a subfolder, whose images form a template.

    The second is the form of LFW's `pairs.txt`. Its first line holds the number of folds and of pairs (`10<TAB>300`, or
    one number, for a single fold); for each fold that many lines `name 1 4` follow, and then as many lines
    `name 1 other 2`. The images are `name/name_0001.jpg` in the folder of the file, or in its subfolder `images` or
    `lfw`.

    Raises:
        DataError: A line has neither form, or an image is missing.
    """
    lines = read_list(path)
    first = columns_of(lines[0][1], -1)
    if len(first) <= 2 and all(_is_count(word) for word in first):
        return _lfw_pairs(path, [int(word) for word in first], lines[1:])
    entries: dict[str, int] = {}
    listed: list[Listed] = []
    templates: list[int] = []
    pairs, issame = [], []
    left_out = LeftOut()
    for number, line in lines:
        words = columns_of(line, -1)
        if len(words) != 3 or words[2] not in ("0", "1"):
            raise DataError(
                f"{path}:{number}: {beginning_of(line)} is not 'one other 1' or 'one other 0', with tabs if names "
                "hold spaces"
            )
        for name in words[:2]:
            if name not in entries:
                files = _entry(path, number, name, left_out)
                listed += files
                templates += [len(entries)] * len(files)
                entries[name] = len(entries)
        pairs.append((entries[words[0]], entries[words[1]]))
        issame.append(words[2] == "1")
    left_out.log(path, len(listed))
    alone = len(listed) == len(entries)
    images = ImageFiles(path.parent, listed, path)
    return _pair_set(path, images, None if alone else np.array(templates), pairs, issame, None)


def begins_like_pairs(path: Path) -> bool:
    """Returns whether the first line of a text file could be that of a pairs file."""
    try:
        words = columns_of(read_list(path, 1)[0][1], -1)
    except DataError:
        return False
    return (len(words) <= 2 and all(map(_is_count, words))) or (len(words) == 3 and words[2] in ("0", "1"))


def _entry(path: Path, number: int, name: str, left_out: LeftOut) -> list[Listed]:
    root = path.parent
    if os.path.isdir(root / name):  # unlike the methods of Path it is quiet about names that are too long
        return [Listed(file.name, line=number) for file in folder_of_images(root, root / name, left_out)]
    if not os.path.isfile(root / name):
        raise DataError(
            f"{path}:{number}: {one_line(str(root / name))} is neither an image nor a folder; names are relative to "
            f"{root}{why_missing(str(root), name)}"
        )
    return [Listed(name, line=number)]


def _lfw_pairs(path: Path, counts: list[int], lines: list[tuple[int, bytes]]) -> PairSet:
    folds, each = counts if len(counts) == 2 else (1, counts[0])
    if len(lines) != folds * 2 * each or not lines:
        raise DataError(
            f"{path}: the file holds {counted(len(lines), 'pair')}, but its first line says {counted(folds, 'fold')} "
            f"of {each:,} same and {each:,} different pairs; get the file again"
        )
    entries: dict[tuple[str, int], int] = {}
    places: list[int] = []
    pairs, issame = [], []
    for position, (number, line) in enumerate(lines):
        words = columns_of(line, -1)
        same = position % (2 * each) < each
        numbers = words[1:] if same else words[1::2]
        if len(words) != (3 if same else 4) or not all(map(_is_count, numbers)):
            form = "name 1 4" if same else "name 1 other 2"
            raise DataError(f"{path}:{number}: {beginning_of(line)} is not '{form}'")
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
        if not os.path.isfile(root / one.name):
            raise DataError(
                f"{path}:{one.line}: there is no image {root / one.name}; restore it{why_missing(str(root), one.name)}"
            )
    fold = np.arange(len(lines)) // (2 * each)
    return _pair_set(path, ImageFiles(root, listed, path), None, pairs, issame, fold)


def _lfw_images(path: Path, first: tuple[str, int]) -> tuple[Path, str]:
    """Returns the folder and the suffix of the images, which those of the first image decide."""
    for folder in _IMAGE_FOLDERS:
        for suffix in _LFW_SUFFIXES:
            if os.path.isfile(path.parent / folder / _lfw_name(*first, suffix)):
                return path.parent / folder, suffix
    raise DataError(
        f"{path}: there is no image {one_line(_lfw_name(*first, '.jpg'))} (or .png) in {path.parent}, nor in its "
        f"subfolders {_IMAGE_FOLDERS[1]} and {_IMAGE_FOLDERS[2]}; put the folders of images in one of them"
    )


def _lfw_name(name: str, image: int, suffix: str) -> str:
    return f"{name}/{name}_{image:04d}{suffix}"


def _is_count(word: str) -> bool:
    return re.fullmatch("0*[1-9][0-9]{0,8}", word) is not None


def _pair_set(
    path: Path,
    images: Collection,
    templates: Optional[np.ndarray],
    pairs: Sequence[Sequence[int]],
    issame: Sequence[bool],
    folds: Optional[np.ndarray],
) -> PairSet:
    return PairSet(path.stem, images, templates, np.array(pairs, np.int64), np.array(issame), folds)
