"""The samples of a `label.txt`, which lists image files and their labels."""

from __future__ import annotations

import hashlib
import os
from array import array
from pathlib import Path
from typing import Optional

import numpy as np

from plsc.data.image_lists import beginning_of, checked, columns_of, lines_of
from plsc.data.records import LARGEST_LABEL, Opening, Records, check_label
from plsc.errors import DataError
from plsc.machine.files import advice_on, open_regular
from plsc.machine.names import quoted, to_text, why_missing

_NAME = "label.txt"
_HASHED_PATHS = 1 << 16  # at a time


def holds_list(path: str) -> bool:
    """Returns whether a path is a folder that holds a `label.txt`."""
    return os.path.exists(os.path.join(path, _NAME))


def open_records(opening: Opening) -> LabelFile:
    """Opens a folder with a `label.txt`; see `read_label_file`."""
    if opening.shuffle is not None:
        raise DataError(
            f"{opening.path}: set_data_format(shuffle={opening.shuffle!r}) needs files that hold many images each, and "
            "here each image has its own file; leave shuffle out"
        )
    return read_label_file(opening.path, opening.num_classes, accepts_missing=opening.accepts_missing)


class LabelFile(Records):
    """The image files that a label file lists.

    Attributes:
        dataset_dir: Folder that holds the label file.
        file_name: Name of the label file.
        paths: Paths of the N images, relative to `dataset_dir`.
        num_images: N.
    """

    def __init__(self, dataset_dir: str, file_name: str, paths: list[str], labels: np.ndarray, lines: np.ndarray):
        self.dataset_dir = dataset_dir
        self.file_name = file_name
        self.paths = paths
        self._labels = labels
        self.num_images = len(paths)
        self._lines = lines

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        """Returns the path of the image, relative to the folder of the list."""
        return self.paths[i]

    def labels(self) -> np.ndarray:
        """Returns the label of each image, int64 [N]."""
        return self._labels

    def digests(self) -> dict[str, str]:
        """Returns the number of images, and digests of their labels and paths in order."""
        paths = hashlib.sha256()
        for first in range(0, len(self.paths), _HASHED_PATHS):
            text = to_text("\n".join([*self.paths[first : first + _HASHED_PATHS], ""]))
            paths.update(text.encode("utf-8", "surrogateescape"))
        return {
            f"the number of images in {self.file_name}": str(self.num_images),
            f"the labels in {self.file_name}, or their order": hashlib.sha256(self._labels.tobytes()).hexdigest(),
            f"the images in {self.file_name}, or their order": paths.hexdigest(),
        }

    def where(self, i: int) -> str:
        """Returns `DIR/label.txt:LINE` of sample `i`."""
        return f"{os.path.join(self.dataset_dir, self.file_name)}:{self._lines[i]}"

    def read(self, i: int) -> tuple[bytes, int]:
        """Returns the encoded bytes and the label of image `i`.

        Raises:
            DataError: The file cannot be read.
        """
        try:
            with open_regular(os.path.join(self.dataset_dir, self.paths[i])) as file:
                return file.read(), int(self._labels[i])
        except OSError as error:
            advice = advice_on(error, "restore the file or remove the line")
            raise DataError(
                f"{self.where(i)}: cannot read image {quoted(self.paths[i])} ({error.strerror or error}); {advice}"
            ) from error


def read_label_file(
    dataset_dir: str, num_classes: Optional[int], name: str = _NAME, accepts_missing: bool = False
) -> LabelFile:
    """Reads and checks a label file.

    Args:
        dataset_dir: Folder that holds the label file; paths in the file are relative to it.
        num_classes: Number of classes; labels must be in [0, num_classes). None accepts every label.
        name: Name of the label file. Each of its lines is `path label`, as in the lists of `plsc predict`.
        accepts_missing: Whether image files may be missing.

    Raises:
        DataError: A line is wrong, or an image file is missing. The message names the first such line.
    """
    file_path = os.path.join(dataset_dir, name)
    paths: list[str] = []
    labels = array("q")
    lines = array("q")
    try:
        for number, line in lines_of(Path(file_path)):
            path, label = _parse_line(line, f"{file_path}:{number}", num_classes)
            paths.append(path)
            labels.append(label)
            lines.append(number)
    except OSError as error:
        raise DataError(
            f"{file_path}: cannot read the label file ({error.strerror or error}); check the data set directory"
        ) from error
    if not paths:
        raise DataError(f"{file_path}: the label file lists no images; write one 'path label' per line")
    source = LabelFile(dataset_dir, name, paths, np.array(labels, np.int64), np.array(lines, np.int64))
    if not accepts_missing:
        _check_files(source)
    return source


def _parse_line(line: bytes, where: str, num_classes: Optional[int]) -> tuple[str, int]:
    """Returns the path and the label of a line. A third column, the template, does not matter to training."""
    columns = columns_of(checked(line, where))
    if not 2 <= len(columns) <= 3 or not all(columns[:2]):
        raise DataError(
            f"{where}: {beginning_of(line)} has no label; each line must be 'path label', with a single tab or blanks"
        )
    path, text = columns[:2]
    # int() alone would also accept '1_000' and the digits of other scripts.
    if not (text.isascii() and text.lstrip("+-").isdecimal()):
        raise DataError(f"{where}: label {text!r} is not an integer; each line must be 'path label'")
    try:
        label = int(text)
    except ValueError as error:
        raise DataError(f"{where}: label {text[:40]!r} is not an integer; each line must be 'path label'") from error
    if not 0 <= label < (LARGEST_LABEL + 1 if num_classes is None else num_classes):
        check_label(label, where, num_classes, largest_label(Path(where.rpartition(":")[0])))
    return path, label


def largest_label(path: Path) -> int:
    """Returns the largest label of a label file, -1 if it has none. Lines with other mistakes do not count.

    Raises:
        OSError: The file cannot be read.
    """
    largest = -1
    for _, line in lines_of(path):
        try:
            largest = max(largest, int(columns_of(line)[1]))
        except (ValueError, IndexError):
            continue
    return largest


def _check_files(source: LabelFile) -> None:
    """Raises DataError if image files are missing.

    Each directory is listed once, because a stat per file takes minutes for millions of files on network storage.
    """
    directory_ids: dict[str, int] = {}
    ids = np.empty(len(source), np.int64)
    for i, path in enumerate(source.paths):
        ids[i] = directory_ids.setdefault(os.path.split(path)[0], len(directory_ids))
    order = np.argsort(ids, kind="stable")
    ends = np.cumsum(np.bincount(ids, minlength=len(directory_ids)))
    start, first, total = 0, -1, 0
    # The ids count up in order of appearance, which is also the order of the dict.
    for directory, end in zip(directory_ids, ends):
        present = _list_files(os.path.join(source.dataset_dir, directory), source, int(order[start]))
        for i in order[start:end].tolist():
            if os.path.split(source.paths[i])[1] not in present:
                total += 1
                first = i if first < 0 else min(first, i)
        start = end
    if total:
        raise DataError(
            f"{source.where(first)}: image file {quoted(source.paths[first])} is missing ({total} missing in all); "
            f"paths are relative to {source.dataset_dir}{why_missing(source.dataset_dir, source.paths[first])}"
        )


def _list_files(directory: str, source: LabelFile, i: int) -> set[str]:
    try:
        with os.scandir(directory) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return set()
    except OSError as error:
        raise DataError(
            f"{source.where(i)}: cannot list directory {directory} ({error.strerror or error}); check its permissions"
        ) from error
