"""Images to embed, in an order that does not change: a folder, a label file, base64 parts, or arrays."""

from __future__ import annotations

import binascii
import bisect
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional, Protocol

import numpy as np

from plsc.data.base64_index import offsets_of_lines
from plsc.data.base64_parts import ADVICE, FILE_LIST_NAME, LONGEST_LABEL, Part, check_line, open_part, read_file_list
from plsc.data.folder import SUFFIXES, image_files
from plsc.data.transforms import decode, decode_file, unreadable
from plsc.errors import DataError

_LISTS = ("label.txt", "file_list.txt", FILE_LIST_NAME)
_LABEL_ENDS = LONGEST_LABEL + 2  # bytes of a line that hold its tab, label and newline
_TRIED = 20  # first lines that tell what a list holds


class Collection(Protocol):
    """Images, numbered from 0.

    Attributes:
        source: the absolute path that names are relative to; '' for images in memory.
        num_images: how many.
    """

    source: str
    num_images: int

    def name(self, i: int) -> str:
        """What the image is called: a path relative to the source, or `part:line`."""

    def identity(self, i: int) -> str:
        """What or who it shows; '' when that is not known."""

    def template(self, i: int) -> str:
        """What the image belongs to together with others of the identity; '' when it stands alone."""

    def where(self, i: int) -> str:
        """Where to look when something is wrong with it."""

    def pixels(self, i: int, image_shape: Sequence[int]) -> np.ndarray:
        """uint8 [H, W, C] of `image_shape` (C, H, W). Raises DataError for what cannot be read or decoded."""

    def fingerprint(self, missing: bool = False) -> str:
        """The same as long as the images and what is said of them are. Raises DataError for what is not there, unless `missing`."""


class Listed(NamedTuple):
    """An image file: its name relative to the root, what is said of it, and the line of a list that says so, from 1."""

    name: str
    identity: str = ""
    template: str = ""
    line: int = 0


class ImageFiles:
    """A `Collection` of image files; `listed_in` is the file that lists them, if there is one."""

    def __init__(self, root: Path, files: Sequence[Listed], listed_in: Optional[Path] = None) -> None:
        self.source, self._root, self._files, self._listed_in = str(root.absolute()), root, files, listed_in
        self.num_images = len(files)

    def name(self, i: int) -> str:
        """Relative to the root."""
        return self._files[i].name

    def identity(self, i: int) -> str:
        """Its folder, or what the list says."""
        return self._files[i].identity

    def template(self, i: int) -> str:
        """Its folder in the identity's, or what the list says."""
        return self._files[i].template

    def where(self, i: int) -> str:
        """The line of the list, and the name; or the path."""
        file = self._files[i]
        return f"{self._listed_in}:{file.line}: {file.name}" if self._listed_in else str(self._root / file.name)

    def pixels(self, i: int, image_shape: Sequence[int]) -> np.ndarray:
        """Decoded."""
        return decode_file(self._root / self._files[i].name, image_shape, self.where(i))

    def fingerprint(self, missing: bool = False) -> str:
        """Of names, identities, templates, sizes and times."""
        found = hashlib.sha256()
        for i, file in enumerate(self._files):
            state: tuple[int, ...] = ()
            try:
                status = os.stat(self._root / file.name)
                state = status.st_size, status.st_mtime_ns
            except OSError as problem:
                if not missing:
                    raise unreadable(self.where(i), problem) from None
            words = (*file[:3], *map(str, state))
            try:
                found.update(("\0".join(words) + "\n").encode())
            except UnicodeEncodeError:
                raise DataError(f"{self.where(i)!r}: the name is not UTF-8; rename the file") from None
        return found.hexdigest()


class Base64Parts:
    """A `Collection` of the lines of base64 parts, in the order of their list; the labels are the identities."""

    def __init__(self, file_list: Path) -> None:
        self.source = str(file_list.parent.absolute())
        self._parts = read_file_list(str(file_list.parent), file_list.name)
        self._offsets = [_offsets(part) for part in self._parts]
        self._firsts = np.cumsum([0, *(len(offsets) - 1 for offsets in self._offsets)]).tolist()
        self.num_images = self._firsts[-1]

    def name(self, i: int) -> str:
        """`part:line`, from 1."""
        part, line = self._place(i)
        return f"{self._parts[part].name}:{line + 1}"

    def identity(self, i: int) -> str:
        """The label; '' of a line that has none."""
        _, tab, label = self._read(i, _LABEL_ENDS).rpartition(b"\t")
        return label.decode() if tab and label.isdigit() else ""

    def template(self, i: int) -> str:
        """None."""
        return ""

    def where(self, i: int) -> str:
        """The part's path and the line."""
        part, line = self._place(i)
        return f"{self._parts[part].path}:{line + 1}"

    def pixels(self, i: int, image_shape: Sequence[int]) -> np.ndarray:
        """Decoded."""
        line = self._read(i)
        fault = check_line(line, len(line))
        if fault:
            raise DataError(f"{self.where(i)}: {ADVICE[fault]}")
        return decode(binascii.a2b_base64(line.rpartition(b"\t")[0]), image_shape, self.where(i))

    def fingerprint(self, missing: bool = False) -> str:
        """Of the parts' names, sizes and times."""
        parts = [(part.name, part.size, part.modified) for part in self._parts]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _place(self, i: int) -> tuple[int, int]:
        part = bisect.bisect_right(self._firsts, i) - 1
        return part, i - self._firsts[part]

    def _read(self, i: int, most: Optional[int] = None) -> bytes:
        """A line, or its last `most` bytes."""
        part, line = self._place(i)
        first, end = (int(offset) for offset in self._offsets[part][line : line + 2])
        first = first if most is None else max(first, end - most)
        with open_part(self._parts[part]) as file:  # opened for each: there may be more parts than a process may open
            return os.pread(file.fileno(), end - first, first).removesuffix(b"\n")


class ArrayImages:
    """A `Collection` of uint8 images [N, H, W, C] in memory, each of them once.

    Attributes:
        rows: int64 [N], which of the collection's images each of the array is.
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
        """The number of its first place in the array."""
        return f"image {self._firsts[i]}"

    def identity(self, i: int) -> str:
        """Not known."""
        return ""

    def template(self, i: int) -> str:
        """None."""
        return ""

    def where(self, i: int) -> str:
        """The array's name and the number."""
        return f"{self._name}: {self.name(i)}"

    def pixels(self, i: int, image_shape: Sequence[int]) -> np.ndarray:
        """As they are: they have the shape."""
        return self._images[self._firsts[i]]

    def fingerprint(self, missing: bool = False) -> str:
        """Of the pixels."""
        return hashlib.sha256(b"".join(self._digests)).hexdigest()


def open_collection(path: Path) -> Collection:
    """The images of a path.

    Args:
        path: a folder of images, `<identity>/<image>` or `<identity>/<template>/<image>` or flat, or with a `label.txt` or
            `file_list.txt`; a list of images, `path identity` a line, or `path<TAB>identity<TAB>template`, or `path` alone
            on all lines; or a list of base64 parts (`base64<TAB>label` lines). Paths are relative to the list's folder.

    Raises:
        DataError: there are no images, or a list that cannot be read.
    """
    if path.is_dir():
        lists = [path / name for name in _LISTS if (path / name).is_file()]
        return open_collection(lists[0]) if lists else _of_folder(path)
    lines = read_list(path)
    files = [file for _, line in lines[:_TRIED] if os.path.isfile(file := path.parent / line)]
    if files and _is_text(files[0]):
        return Base64Parts(path)
    if not files and check_line(lines[0][1].encode(), len(lines[0][1])) is None:
        raise DataError(f"{path}: holds base64 data itself; name the list of such parts, even of a single one")
    return ImageFiles(path.parent, [_of_line(path, number, line, bool(files)) for number, line in lines], path)


def folder_of_images(root: Path, folder: Path) -> list[Listed]:
    """The image files below a folder, sorted, with names relative to `root`. Raises DataError when there are none."""
    listed = []
    for path in image_files(folder):
        folders = path.relative_to(folder).parts[:-1]
        template = "/".join(folders) if len(folders) > 1 else ""
        listed.append(Listed(path.relative_to(root).as_posix(), folders[0] if folders else "", template))
    return listed


def read_list(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers. Raises DataError when there are none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ValueError
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or "not UTF-8"
        raise DataError(
            f"{path}: cannot be read ({reason}); name a folder of images, or a UTF-8 list of them"
        ) from None
    found = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not found:
        raise DataError(f"{path}: names nothing; write one image a line")
    return found


def _of_folder(folder: Path) -> ImageFiles:
    return ImageFiles(folder, folder_of_images(folder, folder))


def _of_line(path: Path, number: int, line: str, alone: bool) -> Listed:
    if alone:
        return Listed(line, line=number)
    words = [word.strip() for word in (line.split("\t") if "\t" in line else line.rsplit(None, 1))]
    if not 2 <= len(words) <= 3 or not all(words[:2]):
        raise DataError(
            f"{path}:{number}: {line[:80]!r} is not 'path identity' or 'path<TAB>identity<TAB>template'; or are the images of the first lines "
            "missing?"
        )
    name, identity = words[0], sys.intern(words[1])  # millions of images have few identities
    return Listed(name, identity, f"{identity}/{words[2]}" if words[2:] and words[2] else "", number)


def _is_text(path: Path) -> bool:
    """Whether a file begins as base64 parts do, and images do not; a damaged part may not begin with base64 data."""
    if path.suffix.lower() in SUFFIXES:
        return False
    try:
        with open(path, "rb") as stream:
            begin = stream.read(256)
    except OSError:
        return False
    return begin.isascii() and b"\0" not in begin


def _offsets(part: Part) -> np.ndarray:
    """Where the lines of a part begin, and where the last ends, which may have no newline."""
    try:
        offsets = offsets_of_lines(part.path)
    except OSError as problem:
        raise DataError(f"{part.path}: cannot be read ({problem.strerror}); restore it, or leave it out") from None
    return offsets if offsets[-1] == part.size else np.append(offsets, part.size)
