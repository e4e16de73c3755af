"""The samples of a `label.txt`, which lists image files and their labels."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

import numpy as np

from plsc.data.class_names import CLASSES, Classes, names_of_numbers, number_classes, read_classes
from plsc.data.image_lists import beginning_of, byte_columns_of, lines_of
from plsc.data.list_columns import ListedPaths, numbers_of, read_paths
from plsc.data.missing_files import find_missing
from plsc.data.packed import Numbering
from plsc.data.records import LARGEST_LABEL, Opening, Records, check_label
from plsc.errors import DataError
from plsc.machine.files import advice_on
from plsc.machine.mounts import read_regular
from plsc.machine.names import quoted, why_missing

logger = logging.getLogger("plsc")

_NAME = "label.txt"
_HASHED = 1 << 16  # labels at a time


def holds_list(path: str) -> bool:
    """Returns whether a path is a folder that holds a `label.txt`."""
    place = os.path.join(path, _NAME)
    return os.path.exists(place) and not os.path.isdir(place)  # A class may have this name.


def open_records(opening: Opening) -> LabelFile:
    """Opens a folder with a `label.txt`; see `read_label_file`."""
    return read_label_file(opening.path, opening.num_classes, accepts_missing=opening.accepts_missing)


class LabelFile(Records):
    """The image files that a label file lists.

    Memory holds 16 bytes for each image. The paths stay in the label file.

    Args:
        dataset_dir: Folder that holds the label file.
        file_name: Name of the label file.
        listed: Its lines.
        labels: Label of each of the N images, int32 [N].
        class_names: Name of each class; empty if they are unknown.
    """

    has_image_files = True

    def __init__(
        self,
        dataset_dir: str,
        file_name: str,
        listed: ListedPaths,
        labels: np.ndarray,
        class_names: Sequence[str] = (),
    ):
        self.dataset_dir = dataset_dir
        self.file_name = file_name
        self.class_names = class_names
        self.num_images = len(listed.paths)
        self.listed = listed
        self._root, self._labels = os.fsencode(dataset_dir), labels

    def __len__(self) -> int:
        return self.num_images

    @property
    def paths(self) -> Sequence[str]:
        """Paths of the N images, relative to `dataset_dir`; each is read from the label file when it is needed."""
        return self.listed.paths

    def name(self, i: int) -> str:
        """Returns the path of the image, relative to the folder of the list."""
        return self.paths[i]

    def labels(self) -> np.ndarray:
        """Returns the label of each image, int32 [N]."""
        return self._labels

    def span(self, first: int, end: int) -> tuple[str, int, None]:
        """Returns the file of image `first`; see `Records.span`."""
        return os.path.normpath(os.path.join(self.dataset_dir, self.paths[first])), 0, None

    def digests(self) -> dict[str, str]:
        """Returns the number of images, and digests of their labels and paths in order."""
        labels, paths = hashlib.sha256(), hashlib.sha256()
        for first in range(0, self.num_images, _HASHED):
            labels.update(self._labels[first : first + _HASHED].astype(np.int64).tobytes())
        for text in self.listed.paths.lines():
            paths.update(text)
        return {
            f"the number of images in {self.file_name}": str(self.num_images),
            f"the labels in {self.file_name}, or their order": labels.hexdigest(),
            f"the images in {self.file_name}, or their order": paths.hexdigest(),
        }

    def where(self, i: int) -> str:
        """Returns `DIR/label.txt:LINE` of sample `i`."""
        return f"{os.path.join(self.dataset_dir, self.file_name)}:{self.listed.line(i)}"

    def read(self, i: int) -> tuple[bytes, int]:
        """Returns the encoded bytes and the label of image `i`.

        Raises:
            DataError: The file cannot be read, or the label file has changed.
        """
        try:
            return read_regular(os.path.join(self._root, self.listed.paths.raw(i))), int(self._labels[i])
        except OSError as error:
            advice = advice_on(error, "restore the file or remove the line")
            raise DataError(
                f"{self.where(i)}: cannot read image {quoted(self.paths[i])} ({error.strerror or error}); {advice}"
            ) from error


def read_label_file(
    dataset_dir: str, num_classes: Optional[int], name: str = _NAME, accepts_missing: bool = False
) -> LabelFile:
    """Reads and checks a label file.

    Labels are integers, or else names, as the first of them shows. Names are numbered by `number_classes`. If labels
    are integers and the folder holds a `classes.txt` with a name for each class, these are the names of the classes.

    Args:
        dataset_dir: Folder that holds the label file; paths in the file are relative to it.
        num_classes: Number of classes; labels must be in [0, num_classes). None accepts every label.
        name: Name of the label file. Each of its lines is `path label`, as in the lists of `plsc predict`.
        accepts_missing: Whether image files may be missing.

    Raises:
        DataError: A line is wrong, or an image file is missing. The message names the first such line.
    """
    path = os.path.join(dataset_dir, name)
    try:
        column = _column_of(path, dataset_dir, num_classes)
        listed = read_paths(Path(path), column)
    except OSError as error:
        raise DataError(
            f"{path}: cannot read the label file ({error.strerror or error}); check the data set directory"
        ) from error
    labels = listed.values
    if not len(labels):
        raise DataError(f"{path}: the label file lists no images; write one 'path label' per line")
    if isinstance(column, _Numbers):
        names: Sequence[str] = names_of_numbers(dataset_dir, int(labels.max()) + 1, num_classes)
    else:
        names, numbers = column.classes(listed, dataset_dir, num_classes)
        labels = numbers[labels]
    source = LabelFile(dataset_dir, name, listed, labels, names)
    if not accepts_missing:
        _check_files(source)
    return source


def _column_of(path: str, dataset_dir: str, num_classes: Optional[int]) -> Union[_Numbers, _Names]:
    """Returns how to read the labels of a file, as the first of them shows."""
    columns = next((byte_columns_of(line) for _, line in lines_of(Path(path))), [])
    classes = read_classes(dataset_dir) or []
    if len(columns) < 2 or (_is_number(columns[1]) and columns[1] not in classes):
        return _Numbers(path, num_classes)
    return _Names(path)


def _is_number(label: bytes) -> bool:
    """Returns whether a label looks like a number of any kind, such as 7, -1, 1.0 or 1_000."""
    text = os.fsdecode(label)
    try:
        return text.lstrip("+-").isdecimal() or (any(map(str.isdigit, text)) and isinstance(float(text), float))
    except ValueError:
        return False


def _with_label(columns: list[bytes], line: bytes, where: str) -> bytes:
    """Returns the label of a line. A third column, the template, does not matter to training."""
    if not 2 <= len(columns) <= 3 or not all(columns[:2]):
        raise DataError(
            f"{where}: {beginning_of(line)} has no label; each line must be 'path label', with a single tab or blanks"
        )
    return columns[1]


class _Numbers:
    """Labels that are integers; a `Column`."""

    def __init__(self, path: str, num_classes: Optional[int]) -> None:
        self._path, self._num_classes = path, num_classes
        self._limit = LARGEST_LABEL + 1 if num_classes is None else min(num_classes, LARGEST_LABEL + 1)

    def of_many(self, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Returns the labels that are plain digits; see `Column.of_many`."""
        found = numbers_of(data, starts, lengths)
        return np.where(found < self._limit, found, -1).astype(np.int32)

    def of_line(self, columns: list[bytes], line: bytes, number: int) -> int:
        """Returns the label of a line; see `Column.of_line`."""
        where = f"{self._path}:{number}"
        text = os.fsdecode(_with_label(columns, line, where))
        # int() alone would also accept '1_000' and the digits of other scripts.
        try:
            if not (text.isascii() and text.lstrip("+-").isdecimal()):
                raise ValueError
            label = int(text)
        except ValueError:
            raise DataError(
                f"{where}: label {quoted(text)} is not an integer; each line must be 'path label', and if labels are "
                f"names, list those in {CLASSES}, one on each line"
            ) from None
        if not 0 <= label < self._limit:
            check_label(label, where, self._num_classes, largest_label(Path(self._path)))
        return label


class _Names:
    """Labels that are names; a `Column`."""

    def __init__(self, path: str) -> None:
        self._path, self._found = path, Numbering()

    def of_many(self, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Returns a number for each name; see `Column.of_many`."""
        return self._found.of(data, starts, lengths)

    def of_line(self, columns: list[bytes], line: bytes, number: int) -> int:
        """Returns a number for the name in a line; see `Column.of_line`."""
        return self._found.number(_with_label(columns, line, f"{self._path}:{number}"))

    def classes(self, listed: ListedPaths, dataset_dir: str, num_classes: Optional[int]) -> Classes:
        """Returns the names of the classes, and the label of each name in the order of the numbers of its lines.

        Raises:
            DataError: A name looks like a number, and no `classes.txt` says that it is one; see `number_classes` too.
        """
        found = list(self._found.numbers)

        def where(k: int) -> str:
            return f"{self._path}:{listed.line(int((listed.values == k).argmax()))}"

        is_listed = read_classes(dataset_dir) is not None
        for k, name in enumerate(found):
            if _is_number(name) and not is_listed:
                raise DataError(
                    f"{where(k)}: label {quoted(os.fsdecode(name))} is a number, but the first label, "
                    f"{quoted(os.fsdecode(found[0]))}, is a name; correct the line, or list the names in {CLASSES}, "
                    "one on each line"
                )
        return number_classes(found, dataset_dir, where, num_classes)


class _Largest:
    """A `Column` that finds the largest label, and does not care for mistakes."""

    largest = -1

    def of_many(self, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Looks at labels; see `Column.of_many`."""
        found = numbers_of(data, starts, lengths)
        self.largest = max(self.largest, int(found.max(initial=-1)))
        return found.astype(np.int32)

    def of_line(self, columns: list[bytes], line: bytes, number: int) -> int:
        """Looks at the label of a line; see `Column.of_line`."""
        with contextlib.suppress(ValueError, IndexError):
            self.largest = max(self.largest, int(columns[1]))
        return 0


def largest_label(path: Path) -> int:
    """Returns the largest label of a label file, -1 if it has none. Lines with other mistakes do not count.

    Raises:
        OSError: The file cannot be read.
    """
    column = _Largest()
    with contextlib.suppress(DataError):  # a line with a zero byte, before which all have been looked at
        read_paths(path, column)
    return column.largest


def _check_files(source: LabelFile) -> None:
    """Raises DataError if image files are missing."""
    first, total = find_missing(source.dataset_dir, source.listed.paths, source.where)
    if total:
        path = source.paths[first]
        raise DataError(
            f"{source.where(first)}: image file {quoted(path)} is missing ({total:,} missing in all); paths are "
            f"relative to {source.dataset_dir}{why_missing(source.dataset_dir, path)}"
        )
