"""Lists of images to leave out of a data set, and the data set without them."""

from __future__ import annotations

import bisect
import hashlib
import logging
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import numpy as np

from plsc.data.image_lists import checked, lines_of
from plsc.data.records import Records, WrappedRecords
from plsc.errors import DataError, counted
from plsc.machine.names import from_text, quoted, to_text

logger = logging.getLogger("plsc")

_WALKED = 1 << 16  # names at a time


class KeptRecords(WrappedRecords):
    """A data set without some of its images. Classes keep their numbers, also those that lose all images.

    Args:
        source: The data set, opened for rank 0 of 1.
        left_out: Numbers of the images that are left out, int64, increasing.
    """

    def __init__(self, source: Records, left_out: np.ndarray) -> None:
        super().__init__(source)
        self._left_out = left_out
        # Before image i of those that are kept there are as many left out as have at most i kept ones before them.
        self._kept_before = left_out - np.arange(len(left_out))
        self._view = self._kept_before.data  # bisecting it is much faster than NumPy's search for one number
        self.num_images = source.num_images - len(left_out)
        if source.blocks is not None:
            self.blocks = np.unique(source.blocks - np.searchsorted(left_out, source.blocks))
            self.window = source.window
        self.has_image_files, self.is_streamed = source.has_image_files, source.is_streamed
        self.shuffle, self.slow_draws = source.shuffle, source.slow_draws

    def __reduce__(self) -> tuple[Any, ...]:  # A view cannot be pickled.
        return KeptRecords, (self._source, self._left_out)

    def name(self, i: int) -> str:
        """Returns the name of the image in the whole data set."""
        return self._source.name(self._number(i))

    def where(self, i: int) -> str:
        """Returns where the image is stored or listed."""
        return self._source.where(self._number(i))

    def read(self, i: int) -> tuple[bytes, int]:
        """Returns the encoded bytes and the label of image `i`; see `Records.read`."""
        return self._source.read(self._number(i))

    def will_read(self, images: np.ndarray) -> None:
        """Prepares for images to be read in this order."""
        self._source.will_read(images + np.searchsorted(self._kept_before, images, side="right"))

    def labels(self) -> np.ndarray:
        """Returns the label of every image that is kept."""
        return np.delete(self._source.labels(), self._left_out)

    def digests(self) -> dict[str, str]:
        """Returns the digests of the whole data set, and one of the images that are left out."""
        left_out = hashlib.sha256(self._left_out.astype("<i8").tobytes()).hexdigest()
        return {**self._source.digests(), "the images left out": left_out}

    def _number(self, i: int) -> int:
        """Returns the number of an image in the whole data set."""
        return i + bisect.bisect_right(self._view, i)


def leave_out(source: Records, path: Path) -> Records:
    """Returns a data set without the images that a list names; see `find_listed`."""
    return KeptRecords(source, find_listed(source, path))


def find_listed(source: Records, path: Path) -> np.ndarray:
    """Returns the numbers of the images that a list names, int64, increasing.

    How many they are is logged, and names that the data set does not have are reported in a warning.

    Args:
        source: The data set, opened for rank 0 of 1.
        path: The list; see `read_names`.

    Raises:
        DataError: The list cannot be read, or names all images.
    """
    # Python's hashes take 8 bytes for a name; that two of 100 million names share one by chance is unlikely.
    wanted = np.unique(np.fromiter((hash(name) for _, name in read_names(path)), np.int64))
    found, left_out = np.zeros(len(wanted), bool), array("q")
    for first in range(0, source.num_images if len(wanted) else 0, _WALKED):
        numbers = range(first, min(first + _WALKED, source.num_images))
        hashes = np.fromiter((hash(source.name(i)) for i in numbers), np.int64, len(numbers))
        places = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
        hits = np.flatnonzero(wanted[places] == hashes)
        found[places[hits]] = True
        left_out.extend((first + hits).tolist())
    if not found.all():
        missing = set(wanted[~found].tolist())
        number, name = next((number, name) for number, name in read_names(path) if hash(name) in missing)
        logger.warning(
            "%s:%d: the data set has no image %s (%d such lines in all); the names are those that the data set gives "
            "its images",
            path,
            number,
            quoted(name),
            len(missing),
        )
    if len(left_out) == source.num_images:
        raise DataError(f"{path}: names every image of the data set ({source.num_images:,}); keep some to train on")
    logger.info("%s: %s of %s left out", path, f"{len(left_out):,}", f"{counted(source.num_images, 'image')} are")
    return np.array(left_out, np.int64)


def read_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the names in a list of images to leave out, with their lines, counted from 1.

    A line is the name of an image in its data set, as UTF-8 or the bytes of a file's name. What follows a tab is a
    remark. Blank lines are skipped; the list may be empty.

    Raises:
        DataError: The list cannot be read, or is not text.
    """
    try:
        for number, line in lines_of(path):
            name = checked(line, f"{path}:{number}").partition(b"\t")[0]
            yield number, from_text(name.decode("utf-8", "surrogateescape"))
    except OSError as problem:
        raise DataError(
            f"{path}: cannot be read ({problem.strerror}); name a list of images to leave out, one on each line"
        ) from None


def line_of(name: str, remark: str = "") -> Optional[bytes]:
    """Returns the line of a list that names an image; None if no line can, because the name holds a tab or line end.

    Args:
        name: Name of the image in its data set.
        remark: Why it is listed.
    """
    text = to_text(name).encode("utf-8", "surrogateescape")
    if b"\t" in text or text.splitlines() != [text] or text.isspace():
        return None
    return text + (b"\t" + _plain(remark) if remark else b"") + b"\n"


def _plain(remark: str) -> bytes:
    return " ".join(to_text(remark).split()).encode("utf-8", "surrogateescape")
