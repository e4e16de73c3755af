"""Parts of a RecordIO file that several processes write: their images stay in memory until their place is known."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Optional

import numpy as np

from plsc.data.encoded_image import open_image
from plsc.data.recordio_file import EXACT, FRAME, HEADER, LARGEST_RECORD, frames_of
from plsc.data.records import Record
from plsc.errors import DataError
from plsc.machine.files import write_all

TRIED = 16  # images that a writer opens at most, to learn their size
_NOWHERE = -1
_NUMBER = (FRAME.size + 8) // 4  # words from the beginning of a record to its number


class Part(NamedTuple):
    """What is known of a part.

    Attributes:
        places: Where each image begins, counted from the beginning of the part, int64 [n].
        labels: The label of each image, int64 [n].
        place: Where the part begins in the file; negative if it has a file of its own.
        size: Its bytes.
        pixels: Height and width of the first image that can be opened; None if there is none.
    """

    places: np.ndarray
    labels: np.ndarray
    place: int
    size: int
    pixels: Optional[tuple[int, int]]


class RecordIOPart:
    """Writes images that follow each other in a RecordIO file, for a `RecordWriter`.

    `write_into` writes them into that file. Otherwise `close` makes a file of the part, which `RecordIOWriter.add_part`
    copies.

    Args:
        path: The file of the part. A file next to it, whose name ends in `.npy`, says where its images are.
        class_names: Not used: the writer of the whole file keeps them.

    Attributes:
        size: Bytes of the images that were added.
    """

    def __init__(self, path: Path, class_names: Sequence[str] = ()) -> None:
        self._path = path
        self._pieces: list[bytes] = []  # what is not written yet
        self._whole: Optional[BinaryIO] = None
        self._place, self.size = _NOWHERE, 0
        self._written, self._written_images = 0, 0
        self._places, self._labels = array("q"), array("q")
        self._pixels: Optional[tuple[int, int]] = None

    @property
    def images(self) -> int:
        """Number of its images."""
        return len(self._places)

    def add(self, record: Record) -> None:
        """Adds one image. Raises DataError if RecordIO cannot hold it."""
        pieces = pieces_of(record, len(self._places) + 1)
        if self._pixels is None and len(self._places) < TRIED:
            self._pixels = pixels_of(record.data)
        self._places.append(self.size)
        self._labels.append(record.label)
        self._pieces += pieces
        self.size += sum(map(len, pieces))

    def write_into(self, path: Path, place: int, before: int) -> None:
        """Writes the images that were added since the last call into the whole file.

        Args:
            path: The whole file, which exists.
            place: Where the part begins in it.
            before: Number of the images before the part.

        Raises:
            OSError: The disk refuses it.
        """
        self._place = place
        if self._whole is None:
            self._whole = path.open("r+b", buffering=0)
            self._whole.seek(place)
        data = bytearray().join(self._pieces)
        places = np.array(self._places[self._written_images :], np.int64) - self._written
        number_images(data, places, before + self._written_images)
        write_all(self._whole.fileno(), memoryview(data))
        self._written, self._written_images = self.size, self.images
        self._pieces.clear()

    def close(self) -> None:
        """Writes where the images are, after having the disk keep them, or having made a file of them."""
        if self._whole is None:
            self._path.write_bytes(b"".join(self._pieces))
        else:
            with self._whole:
                os.fsync(self._whole.fileno())
        images = np.stack([np.array(one, np.int64) for one in (self._places, self._labels)], 1)
        np.save(_about(self._path), np.vstack([[self._place, self.size], self._pixels or (0, 0), images]))


def read_part(path: Path) -> Part:
    """Returns what is known of a part that a `RecordIOPart` has written to `path`.

    Raises:
        DataError: It is missing or damaged.
    """
    path = _about(path)
    try:
        (place, size), pixels = (about := np.load(path, allow_pickle=False))[:2].tolist()
    except (OSError, ValueError, EOFError) as problem:
        raise DataError(
            f"{path}: cannot be read ({problem}); remove the unfinished conversion, and run it again"
        ) from problem
    return Part(about[2:, 0], about[2:, 1], place, size, (pixels[0], pixels[1]) if any(pixels) else None)


def _about(path: Path) -> Path:
    return path.with_suffix(".npy")


def pieces_of(record: Record, number: int) -> list[bytes]:
    """Returns what a file holds of an image, as pieces to write one after another.

    Args:
        record: The image.
        number: The number of the record.

    Raises:
        DataError: RecordIO cannot hold the image.
    """
    if not 0 <= record.label < EXACT:
        raise DataError(
            f"{record.name}: label {record.label} does not fit into RecordIO, which stores labels as float32 and "
            f"so has room for {EXACT} classes; take another format"
        )
    if len(record.data) + HEADER.size > LARGEST_RECORD:
        raise DataError(f"{record.name}: has {len(record.data)} bytes, more than a record of RecordIO; leave it out")
    return frames_of(HEADER.pack(0, record.label, number, 0) + record.data)


def number_images(data: bytearray, places: np.ndarray, before: int) -> None:
    """Gives the images of a part their numbers in the whole file.

    Args:
        data: The bytes of the part.
        places: Where each image begins, int64 [n].
        before: Number of the images before them.
    """
    np.frombuffer(data, "<u4")[places // 4 + _NUMBER] = np.arange(before + 1, before + 1 + len(places))


def pixels_of(data: bytes) -> Optional[tuple[int, int]]:
    """Returns the height and the width of an encoded image; None if it cannot be opened."""
    with contextlib.suppress(Exception), open_image(data) as image:  # Pillow raises errors of many types.
        return image.height, image.width
    return None
