"""Where images and labels come from: a ``label.txt`` next to the image files."""

from __future__ import annotations

import os
from array import array
from typing import Protocol

import numpy as np

from plsc.data.sampler import epoch_indices
from plsc.errors import DataError


class ImageSource(Protocol):
    """Encoded images with labels, each known by a number. ``num_images`` counts those of all ranks together."""

    num_images: int

    def epoch_order(self, seed: int, epoch: int, rank: int, world_size: int) -> np.ndarray:
        """Return int64 [ceil(num_images / world_size)], the samples of a rank in the order of an epoch."""

    def where(self, i: int) -> str:
        """Say where sample ``i`` was named, for error messages."""

    def read(self, i: int) -> tuple[bytes, int]:
        """Return the encoded bytes of image ``i``, and its label."""


class LabelFile:
    """The samples of one label file.

    ``paths`` are N paths relative to ``dataset_dir``; ``labels`` is int64 [N].
    """

    def __init__(self, dataset_dir: str, file_name: str, paths: list[str], labels: np.ndarray, lines: np.ndarray):
        self.dataset_dir = dataset_dir
        self.file_name = file_name
        self.paths = paths
        self.labels = labels
        self.num_images = len(paths)
        self._lines = lines

    def __len__(self) -> int:
        return len(self.paths)

    def epoch_order(self, seed: int, epoch: int, rank: int, world_size: int) -> np.ndarray:
        """Return this rank's share of one permutation of all samples."""
        return epoch_indices(self.num_images, seed, epoch, rank, world_size)

    def where(self, i: int) -> str:
        """Return ``DIR/label.txt:LINE`` of sample ``i``."""
        return f"{os.path.join(self.dataset_dir, self.file_name)}:{self._lines[i]}"

    def read(self, i: int) -> tuple[bytes, int]:
        """Return the encoded bytes of image ``i``, and its label."""
        try:
            with open(os.path.join(self.dataset_dir, self.paths[i]), "rb") as file:
                return file.read(), int(self.labels[i])
        except OSError as error:
            raise DataError(
                f"{self.where(i)}: cannot read image {self.paths[i]!r} ({error.strerror or error}); "
                "restore the file or remove the line"
            ) from error


def read_label_file(dataset_dir: str, num_classes: int, name: str = "label.txt") -> LabelFile:
    """Read and check ``dataset_dir/name``, lines of ``path label`` with labels in [0, num_classes).

    Raises DataError for the first bad line, and for image files that are not there.
    """
    file_path = os.path.join(dataset_dir, name)
    paths: list[str] = []
    labels = array("q")
    lines = array("q")
    try:
        # Bytes, decoded line by line, so that a bad byte can be blamed on its line.
        with open(file_path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                    raw = raw[3:]
                parsed = _parse_line(raw, f"{file_path}:{number}", num_classes)
                if parsed is not None:
                    paths.append(parsed[0])
                    labels.append(parsed[1])
                    lines.append(number)
    except OSError as error:
        raise DataError(
            f"{file_path}: cannot read the label file ({error.strerror or error}); check the data set directory"
        ) from error
    if not paths:
        raise DataError(f"{file_path}: the label file names no images; write one 'path label' per line")
    source = LabelFile(dataset_dir, name, paths, np.array(labels, np.int64), np.array(lines, np.int64))
    _check_files(source)
    return source


def _parse_line(raw: bytes, where: str, num_classes: int) -> tuple[str, int] | None:
    """Return (path, label), or None for a blank line."""
    try:
        line = raw.decode("utf-8").rstrip()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: the line is not UTF-8; save the label file as UTF-8") from error
    if not line:
        return None
    parts = line.rsplit(None, 1)
    if len(parts) != 2:
        raise DataError(f"{where}: {line!r} has no label; write 'path label'")
    path, text = parts
    # int() alone would also take '1_000' and digits of other scripts.
    if not (text.isascii() and text.lstrip("+-").isdecimal()):
        raise DataError(f"{where}: label {text!r} is not an integer; write 'path label'")
    try:
        label = int(text)
    except ValueError as error:
        raise DataError(f"{where}: label {text[:40]!r} is not an integer; write 'path label'") from error
    if not 0 <= label < num_classes:
        raise DataError(
            f"{where}: label {label} is outside [0, {num_classes}); correct the label or check set_class_num"
        )
    return path, label


def _check_files(source: LabelFile) -> None:
    """Raise DataError when image files are missing.

    Every directory is listed once: a stat per file takes minutes for millions of files on network storage.
    """
    directory_ids: dict[str, int] = {}
    ids = np.empty(len(source), np.int64)
    for i, path in enumerate(source.paths):
        ids[i] = directory_ids.setdefault(os.path.split(path)[0], len(directory_ids))
    order = np.argsort(ids, kind="stable")
    ends = np.cumsum(np.bincount(ids, minlength=len(directory_ids)))
    start, first, total = 0, -1, 0
    # Ids were given in order of appearance, which is the order of the dict.
    for directory, end in zip(directory_ids, ends):
        present = _list_files(os.path.join(source.dataset_dir, directory), source, int(order[start]))
        for i in order[start:end].tolist():
            if os.path.split(source.paths[i])[1] not in present:
                total += 1
                first = i if first < 0 else min(first, i)
        start = end
    if total:
        raise DataError(
            f"{source.where(first)}: image file {source.paths[first]!r} is missing ({total} missing in all); "
            f"paths are relative to {source.dataset_dir}"
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
