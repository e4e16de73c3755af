"""Images to embed, in an order that never changes: a folder, a label file, base64 parts, or arrays."""

from __future__ import annotations

import binascii
import bisect
import contextlib
import functools
import hashlib
import io
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Optional, Protocol, Union

import numpy as np

from plsc.data.base64_index import offsets_of_lines
from plsc.data.base64_parts import ADVICE, FILE_LIST_NAME, LONGEST_LABEL, Part, check_line, open_part, read_file_list
from plsc.data.class_names import CLASSES, names_of_numbers, report_twins
from plsc.data.encoded_image import check_header
from plsc.data.image_folders import FolderFiles, folder_of_images, has_image_suffix
from plsc.data.image_lists import Listed, read_list
from plsc.data.list_columns import ListedFiles
from plsc.data.pixels import NEWEST, PixelRule
from plsc.data.records import Records
from plsc.data.sources import format_of, open_images
from plsc.data.transforms import decode, decode_file, unreadable
from plsc.errors import DataError
from plsc.machine.files import open_regular
from plsc.machine.mounts import open_stream
from plsc.machine.names import class_title, from_text, to_text, why_missing

logger = logging.getLogger("plsc")

_LISTS = ("label.txt", "file_list.txt", FILE_LIST_NAME)
_READ_AS_RECORDS = ("recordio", "tar", "parquet")  # formats that are read as training reads them
_LABEL_ENDS = LONGEST_LABEL + 2  # The last bytes of a line, which hold its tab, label and newline.
_LONGEST_NUMBER = 10  # digits of the number of a class, and one more
_TRIED = 20  # First lines of a list that decide what the list holds.


class Collection(Protocol):
    """Images, numbered from 0.

    Attributes:
        source: Absolute path that the names are relative to; '' for images in memory.
        num_images: Number of images.
    """

    source: str
    num_images: int

    def name(self, i: int) -> str:
        """Returns what the image is called: a path relative to the source, or `part:line`."""

    def identity(self, i: int) -> str:
        """Returns who or what the image shows; '' if that is unknown."""

    def template(self, i: int) -> str:
        """Returns the group of images of one identity that the image belongs to; '' if it stands alone."""

    def where(self, i: int) -> str:
        """Returns where to find the image, for error messages."""

    def pixels(self, i: int, image_shape: Sequence[int], rule: PixelRule = NEWEST) -> np.ndarray:
        """Returns the image as uint8 [H, W, C], resized to `image_shape` (C, H, W).

        Args:
            i: The image.
            image_shape: Shape of the result, (C, H, W).
            rule: What the pixels of a file mean.

        Raises:
            DataError: The image cannot be read or decoded.
        """

    def check(self, i: int, open_it: bool, rule: PixelRule = NEWEST) -> None:
        """Checks an image as far as that is cheap.

        Args:
            i: The image.
            open_it: Whether to read the beginning of the image, and not just to see that there is one.
            rule: What the pixels of a file mean, and how many there may be.

        Raises:
            DataError: The image cannot be read.
        """

    def fingerprint(self, missing: bool = False) -> str:
        """Returns a digest that changes whenever the images, or what is known about them, change.

        Args:
            missing: Accept images that do not exist.

        Raises:
            DataError: An image does not exist, and `missing` is False.
        """


class ImageFiles:
    """A `Collection` of image files.

    Args:
        root: Folder that the names are relative to.
        files: The images.
        listed_in: File that lists the images, if there is one.

    Attributes:
        listed_in: The same.
    """

    def __init__(self, root: Path, files: Sequence[Listed], listed_in: Optional[Path] = None) -> None:
        self.source, self._root, self._files, self.listed_in = str(root.absolute()), root, files, listed_in
        self.num_images = len(files)

    def name(self, i: int) -> str:
        """Returns the path relative to the root."""
        return self._files[i].name

    def identity(self, i: int) -> str:
        """Returns the identity that the list or the folder names."""
        return self._files[i].identity

    def template(self, i: int) -> str:
        """Returns the template that the list or the folder names."""
        return self._files[i].template

    def where(self, i: int) -> str:
        """Returns the line of the list and the name, or the path if no list names the image."""
        file = self._files[i]
        return f"{self.listed_in}:{file.line}: {file.name}" if self.listed_in else str(self._root / file.name)

    def pixels(self, i: int, image_shape: Sequence[int], rule: PixelRule = NEWEST) -> np.ndarray:
        """Reads and decodes an image; see `Collection.pixels`."""
        return decode_file(self._root / self._files[i].name, image_shape, self.where(i), rule)

    def check(self, i: int, open_it: bool, rule: PixelRule = NEWEST) -> None:
        """Checks the size of a file, and with `open_it` the header of the image; see `Collection.check`."""
        path = self._root / self._files[i].name
        try:
            if not path.stat().st_size:
                raise DataError(f"{self.where(i)}: the file is empty; restore it, or leave it out")
            if open_it:
                with open_stream(path) as stream:
                    check_header(stream, self.where(i), rule.most_pixels)
        except OSError as problem:
            raise self._unreadable(i, problem) from None

    def _unreadable(self, i: int, problem: OSError) -> DataError:
        missing = isinstance(problem, FileNotFoundError)
        why = why_missing(str(self._root), self._files[i].name) if missing else ""
        return DataError(f"{unreadable(self.where(i), problem)}{why}")

    def fingerprint(self, missing: bool = False) -> str:
        """Returns a digest of names, identities, templates, sizes and times of modification."""
        found = hashlib.sha256()
        for i, file in enumerate(self._files):
            state: tuple[int, ...] = ()
            try:
                status = os.stat(self._root / file.name)
                state = status.st_size, status.st_mtime_ns
            except OSError as problem:
                if not missing:
                    raise self._unreadable(i, problem) from None
            words = (*map(to_text, file[:3]), *map(str, state))
            found.update(("\0".join(words) + "\n").encode("utf-8", "surrogateescape"))
        return found.hexdigest()


class Base64Parts:
    """A `Collection` of the lines of base64 parts, in the order of their list. The labels are the identities.

    Args:
        file_list: File that lists the parts.
    """

    def __init__(self, file_list: Path) -> None:
        self.source = str(file_list.parent.absolute())
        self._parts = read_file_list(str(file_list.parent), file_list.name)
        self._offsets = [_offsets(part) for part in self._parts]
        self._firsts = np.cumsum([0, *(len(offsets) - 1 for offsets in self._offsets)]).tolist()
        self.num_images = self._firsts[-1]

    def name(self, i: int) -> str:
        """Returns `part:line`, with lines counted from 1."""
        part, line = self._place(i)
        return f"{from_text(self._parts[part].name)}:{line + 1}"

    def identity(self, i: int) -> str:
        """Returns the label, or '' if the line has none."""
        _, tab, label = self._read(i, _LABEL_ENDS).rpartition(b"\t")
        return label.decode() if tab and label.isdigit() else ""

    def template(self, i: int) -> str:
        """Returns '', because base64 parts have no templates."""
        return ""

    def where(self, i: int) -> str:
        """Returns the path of the part and the line."""
        part, line = self._place(i)
        return f"{self._parts[part].path}:{line + 1}"

    def pixels(self, i: int, image_shape: Sequence[int], rule: PixelRule = NEWEST) -> np.ndarray:
        """Reads and decodes an image; see `Collection.pixels`."""
        return decode(self._image(i), image_shape, self.where(i), rule)

    def check(self, i: int, open_it: bool, rule: PixelRule = NEWEST) -> None:
        """Checks the line and the header of the image with `open_it`, otherwise nothing; see `Collection.check`."""
        if open_it:
            check_header(io.BytesIO(self._image(i)), self.where(i), rule.most_pixels)

    def fingerprint(self, missing: bool = False) -> str:
        """Returns a digest of the names, sizes and times of modification of the parts."""
        parts = [(part.name, part.size, part.modified) for part in self._parts]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _place(self, i: int) -> tuple[int, int]:
        part = bisect.bisect_right(self._firsts, i) - 1
        return part, i - self._firsts[part]

    def _image(self, i: int) -> bytes:
        """Returns an encoded image. Raises DataError if its line is wrong."""
        line = self._read(i)
        fault = check_line(line, len(line))
        if fault:
            raise DataError(f"{self.where(i)}: {ADVICE[fault]}")
        return binascii.a2b_base64(line.rpartition(b"\t")[0])

    def _read(self, i: int, most: Optional[int] = None) -> bytes:
        """Returns a line without its newline, or the last `most` bytes of it."""
        part, line = self._place(i)
        first, end = (int(offset) for offset in self._offsets[part][line : line + 2])
        first = first if most is None else max(first, end - most)
        # The part is opened for each line, because there may be more parts than a process may open.
        with open_part(self._parts[part]) as file:
            return os.pread(file.fileno(), end - first, first).removesuffix(b"\n")


class ArrayImages:
    """A `Collection` of images in memory, in which equal images count once.

    Args:
        name: What the array is called, for error messages.
        images: uint8 [N, H, W, C].

    Attributes:
        rows: For each of the N images its number in the collection, int64 [N].
    """

    source = ""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self._name, self._images = name, images
        digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
        first_of: dict[bytes, int] = {}
        firsts = [first_of.setdefault(digest, i) for i, digest in enumerate(digests)]
        self._firsts, self.rows = np.unique(np.array(firsts, np.int64), return_inverse=True)
        self._digests = [digests[i] for i in self._firsts]
        self.num_images = len(self._firsts)

    def name(self, i: int) -> str:
        """Returns `image N`, where N is the first row of the array that holds the image."""
        return f"image {self._firsts[i]}"

    def identity(self, i: int) -> str:
        """Returns '', because the identity is unknown."""
        return ""

    def template(self, i: int) -> str:
        """Returns '', because arrays have no templates."""
        return ""

    def where(self, i: int) -> str:
        """Returns the name of the array and the number of the image."""
        return f"{self._name}: {self.name(i)}"

    def pixels(self, i: int, image_shape: Sequence[int], rule: PixelRule = NEWEST) -> np.ndarray:
        """Returns the image unchanged; `image_shape` must be its shape."""
        return self._images[self._firsts[i]]

    def check(self, i: int, open_it: bool, rule: PixelRule = NEWEST) -> None:
        """Does nothing, because the image is decoded already."""

    def fingerprint(self, missing: bool = False) -> str:
        """Returns a digest of the pixels."""
        return hashlib.sha256(b"".join(self._digests)).hexdigest()


class RecordImages:
    """A `Collection` of the images of a data set for training. Their classes are the identities.

    Args:
        path: Path of the data set.
        records: All its images.
    """

    def __init__(self, path: Path, records: Records) -> None:
        self.source, self._path, self._records = str(path.absolute()), path, records
        self.num_images = records.num_images
        if not records.is_streamed:  # whose labels cost less once the images have been read
            self.labels = records.labels()

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Number of the class of each image, int64 or int32 [num_images]."""
        return self._records.labels()

    def name(self, i: int) -> str:
        """Returns the name of the record."""
        return self._records.name(i)

    def identity(self, i: int) -> str:
        """Returns the name of the class, or its number if the classes have no names."""
        label = int(self.labels[i])
        return self._records.class_names[label] if self._records.class_names else str(label)

    def class_title(self, i: int) -> str:
        """Returns what messages call the class of an image."""
        return class_title(int(self.labels[i]), self._records.class_names)

    def template(self, i: int) -> str:
        """Returns '', because data for training has no templates."""
        return ""

    def where(self, i: int) -> str:
        """Returns where the record is stored."""
        return self._records.where(i)

    def pixels(self, i: int, image_shape: Sequence[int], rule: PixelRule = NEWEST) -> np.ndarray:
        """Reads and decodes an image; see `Collection.pixels`."""
        return decode(self._records.read(i)[0], image_shape, partial(self.where, i), rule)

    def check(self, i: int, open_it: bool, rule: PixelRule = NEWEST) -> None:
        """Checks the record and the header of the image with `open_it`, otherwise nothing; see `Collection.check`."""
        if open_it:
            check_header(io.BytesIO(self._records.read(i)[0]), self.where(i), rule.most_pixels)

    def fingerprint(self, missing: bool = False) -> str:
        """Returns a digest of what the data set says about itself, and of the sizes and times of its image files."""
        found = hashlib.sha256(repr(sorted(self._records.digests().items())).encode())
        if self._records.has_image_files:
            for i in range(self.num_images):
                with contextlib.suppress(OSError):  # one that is missing, which `digests` names, has no state
                    status = os.stat(self._path / self.name(i))
                    found.update(f"{i} {status.st_size} {status.st_mtime_ns}\n".encode())
        return found.hexdigest()


def open_collection(path: Path) -> Collection:
    """Opens the images of a path.

    Args:
        path: One of the following. An image. A folder of images, `<identity>/<image>` or
            `<identity>/<template>/<image>` or flat. A folder that holds a `label.txt` or `file_list.txt`. A list of
            images, whose lines are all `path identity` or `path<TAB>identity<TAB>template`, or all a plain `path`. A
            list of base64 parts, whose lines are `base64<TAB>label`. Paths in a list are relative to its folder. A file
            of RecordIO, tar or Parquet, or a folder of such files.

    Raises:
        DataError: There are no images, or the list cannot be read.
    """
    # Unlike the methods of Path, these functions raise no errors. Reading the folder or the list will.
    lists = [path / name for name in _LISTS if os.path.isfile(path / name)]
    if lists:
        return open_collection(lists[0])
    data_format = format_of(str(path))
    if data_format in _READ_AS_RECORDS:
        return RecordImages(path, open_images(str(path), None, 0, 1, data_format))
    if os.path.isdir(path):
        return _image_files(path, folder_of_images(path, path))
    if has_image_suffix(path.name) and os.path.isfile(path):
        return ImageFiles(path.parent, [Listed(path.name)])
    lines = read_list(path, _TRIED)
    files = [file for _, line in lines if os.path.isfile(file := path.parent / os.fsdecode(line))]
    if files and _is_text(files[0]):
        return Base64Parts(path)
    if not files and check_line(lines[0][1], len(lines[0][1])) is None:
        raise DataError(f"{path}: holds base64 data itself; name the list of such parts, even of a single one")
    try:
        return _image_files(path.parent, ListedFiles(path, is_plain=bool(files)), path)
    except OSError as problem:
        raise DataError(f"{path}: cannot be read ({problem.strerror or problem}); name a list of images") from None


def titles_of_numbers(images: Collection) -> Sequence[str]:
    """Returns what `classes.txt` in the folder of a list calls the identities, if all of them are integers.

    Returns:
        The names in the order of the numbers; empty if the identities are names themselves, or there is no such file.
    """
    is_list = isinstance(images, Base64Parts) or (isinstance(images, ImageFiles) and images.listed_in is not None)
    if not is_list or not os.path.isfile(os.path.join(images.source, CLASSES)):
        return ()
    largest = -1
    for identity in map(images.identity, range(images.num_images)):
        if identity and not (identity.isascii() and identity.isdigit() and len(identity) < _LONGEST_NUMBER):
            return ()
        largest = max(largest, int(identity or -1))
    return names_of_numbers(images.source, largest + 1, None)


def _image_files(root: Path, files: Union[ListedFiles, FolderFiles], listed_in: Optional[Path] = None) -> ImageFiles:
    report_twins(listed_in or root, files.identities())
    return ImageFiles(root, files, listed_in)


def _is_text(path: Path) -> bool:
    """Returns whether a file starts with ASCII text, as base64 parts do and images do not.

    Valid base64 would be too strict a test, because a part may be damaged.
    """
    if has_image_suffix(path.name):
        return False
    try:
        with open_regular(path) as stream:
            begin = stream.read(256)
    except OSError:
        return False
    return begin.isascii() and b"\0" not in begin


def _offsets(part: Part) -> np.ndarray:
    """Returns where each line of a part starts, and where the last one ends, with or without a newline."""
    try:
        offsets = offsets_of_lines(part.path)
    except OSError as problem:
        raise DataError(f"{part.path}: cannot be read ({problem.strerror}); restore it, or leave it out") from None
    return offsets if offsets[-1] == part.size else np.append(offsets, part.size)
