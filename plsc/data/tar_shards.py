"""Training images in tar files, as WebDataset and img2dataset write them.

The members of a tar that have the same key, which is the name up to the first dot after its last slash, follow each
other and are one sample: `n01440764/0001.jpg` and `n01440764/0001.cls`, or `.json`.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import logging
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Optional

import numpy as np

from plsc.data.image_folders import is_image_suffix
from plsc.data.records import Opening, Record, Records, check_label
from plsc.data.shard_files import SharedFiles, find_files, holds_files, plain_name
from plsc.data.tar_headers import BLOCK, Window, name_of
from plsc.data.tar_index import CLASSES, TarIndex, clean_name, member_at, where_member
from plsc.data.tar_index_file import indexed
from plsc.errors import DataError, counted
from plsc.machine.files import advice_on
from plsc.machine.names import quoted, to_text

logger = logging.getLogger("plsc")

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # an error explains the compressed ones
_BLOCK_BYTES = 4_000_000  # neighbouring images are read together, in blocks of about this size
_BUFFER = 1 << 18  # bytes; with those of `open`, each member would be a write of its own, and take twice as long
_INDEXING = 8  # tars at a time, since a disk or a network serves several requests at once
# What the headers of all members have in common: the fields before the size, before the checksum, and after it.
_MODES, _TIME = b"0000644\0" + 2 * b"0000000\0", b"\0" + b"%011o\0" % 0
_KIND = (b"0".ljust(101, b"\0") + b"ustar  \0").ljust(BLOCK - 156, b"\0")
_REST_SUM = sum(_MODES + _TIME + b" " * 8 + _KIND)
_RECORD = 20 * BLOCK  # tar fills up files to whole records
_MAGIC = ((b"\x89PNG", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\0", "tif"), (b"MM\0*", "tif"))


def holds_tars(path: str) -> bool:
    """Returns whether a path is a tar, a folder with tars, or a pattern of them."""
    return holds_files(path, _SUFFIXES)


def open_records(opening: Opening) -> TarShards:
    """Opens tars; see `TarShards`."""
    keeps_index = opening.keeps_index and opening.rank == 0
    return TarShards(opening.path, opening.num_classes, opening.shuffle or "window", keeps_index=keeps_index)


class TarShards(Records):
    """The images in tars, in the order of the tars and of their members.

    The headers are read at the first start, and their index is kept next to the tars. An image then costs 18 bytes of
    memory.

    Args:
        path: A tar, a folder, or a pattern; see `find_files`.
        num_classes: Number of classes, which labels must be below; None accepts every label.
        shuffle: 'window' reads the tars in blocks of about 4 MB, in an order drawn for each epoch, and mixes the images
            of 16 blocks. 'full' draws images from all over the tars, at the price of a small read for each.
        keeps_index: Whether to write the indexes that are made for large tars next to them.

    Raises:
        DataError: There is no tar or no image, or a tar is damaged, or an image has no label or a wrong one.
    """

    def __init__(
        self, path: str, num_classes: Optional[int] = None, shuffle: str = "window", keeps_index: bool = False
    ) -> None:
        self._paths = find_files(path, _SUFFIXES)
        self._files = SharedFiles()
        with ThreadPoolExecutor(_INDEXING, thread_name_prefix="plsc-tars") as threads:
            indexes = list(threads.map(partial(indexed, keeps_index=keeps_index), self._paths))
        self._ends: list[int] = np.cumsum([len(index.offsets) for index in indexes]).tolist()
        self.num_images = self._ends[-1]
        _report(path, self.num_images, indexes)
        self._blocks = list(_block_starts(indexes))
        self.shuffle = shuffle
        if shuffle == "window":
            self.blocks = self.stretches()
        self._digest, self._prefixed = _digest(indexes), _keys_repeat(indexes)
        self.class_names = _name_classes(indexes)
        self._offsets, self._lengths, self._labels, self._headers = (
            np.concatenate([getattr(index, name) for index in indexes])
            for name in ("offsets", "lengths", "labels", "headers")
        )
        self._check_labels(num_classes)

    def name(self, i: int) -> str:
        """Returns the name of the member, after that of its tar if two tars have the same key."""
        name = os.fsdecode(clean_name(self._member_name(i)))
        tar = os.path.basename(self._paths[bisect.bisect_right(self._ends, i)])
        return f"{os.path.splitext(tar)[0]}/{name}" if self._prefixed else name

    def where(self, i: int) -> str:
        """Returns `TAR: member 'NAME'`."""
        try:
            name = self._member_name(i)
        except DataError:  # the tar has changed, which `read` reports
            name = b"?"
        return where_member(self._paths[bisect.bisect_right(self._ends, i)], name)

    def labels(self) -> np.ndarray:
        """Returns the label of each image, int32 [num_images]."""
        return self._labels

    def digests(self) -> dict[str, str]:
        """Returns the number of images, and a digest of the keys, places and labels of all."""
        return {"the number of images in the tars": str(self.num_images), "the members of the tars": self._digest}

    def read(self, i: int) -> tuple[bytes, int]:
        """Returns the encoded bytes and the label of image `i`.

        Raises:
            DataError: The tar cannot be read.
        """
        path = self._paths[bisect.bisect_right(self._ends, i)]
        try:
            if self.reads_ahead:
                self._read_ahead(path, i)
            return self._files.read(path, int(self._offsets[i]), int(self._lengths[i])), int(self._labels[i])
        except OSError as error:
            advice = advice_on(error, "check the disk, or copy the tar again")
            raise DataError(f"{self.where(i)}: cannot be read ({error.strerror or error}); {advice}") from error

    def stretches(self) -> np.ndarray:
        """Returns the blocks of about 4 MB; see `Records.stretches`."""
        return np.array([*self._blocks, self.num_images], np.int64)

    def span(self, first: int, end: int) -> tuple[str, int, int]:
        """Returns the tar, and its bytes from the header of image `first` on; see `Records.span`."""
        begin = int(self._offsets[first]) - BLOCK * int(self._headers[first])
        last = int(self._offsets[end - 1]) + int(self._lengths[end - 1])
        return self._paths[bisect.bisect_right(self._ends, first)], begin, last - begin

    def _read_ahead(self, path: str, i: int) -> None:
        """Asks the system to read the whole block of an image, at the first of its images to be read."""
        block = bisect.bisect_right(self._blocks, i)
        first, last = (
            self._blocks[block - 1],
            (self._blocks[block] if block < len(self._blocks) else self.num_images) - 1,
        )
        start = int(self._offsets[first])
        self._files.read_ahead(path, start, int(self._offsets[last]) + int(self._lengths[last]) - start)

    def _member_name(self, i: int) -> bytes:
        """Returns the name of a member as its header has it. Raises DataError if the tar cannot be read any more."""
        path = self._paths[bisect.bisect_right(self._ends, i)]
        try:
            file = self._files.open(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error}); copy it again") from error
        headers = int(self._headers[i])
        first = int(self._offsets[i]) - BLOCK * headers
        name = None
        if headers == 1:
            with contextlib.suppress(OSError):  # which the longer way reports
                name = name_of(file.pread(BLOCK, first))
        return member_at(Window(file.pread, path), path, file.size, first).name if name is None else name

    def _check_labels(self, num_classes: Optional[int]) -> None:
        largest = int(self._labels.max())
        if len(self.class_names) and largest >= len(self.class_names):
            where = self.where(int(self._labels.argmax()))
            raise DataError(
                f"{where}: label {largest} has no name, because {os.fsdecode(CLASSES)} lists "
                f"{counted(len(self.class_names), 'class')}; correct the list, or the label"
            )
        if num_classes is not None and largest >= num_classes:
            i = int((self._labels >= num_classes).argmax())
            check_label(int(self._labels[i]), self.where(i), num_classes, largest)


def _block_starts(indexes: Sequence[TarIndex]) -> Iterator[int]:
    """Yields the first image of each block."""
    first = 0
    for index in indexes:
        if len(index.offsets):
            yield first
            yield from (np.flatnonzero(np.diff(index.offsets // _BLOCK_BYTES)) + (first + 1)).tolist()
        first += len(index.offsets)


def _digest(indexes: Sequence[TarIndex]) -> str:
    found = hashlib.sha256()
    for index in indexes:
        found.update(repr((len(index.offsets), list(index.texts), index.classes)).encode("utf-8", "surrogatepass"))
        for one in (index.offsets, index.lengths, index.labels, index.keys):
            found.update(one)
    return found.hexdigest()


def _keys_repeat(indexes: Sequence[TarIndex]) -> bool:
    """Returns whether two tars have the same key, as where each tar numbers its images from 0."""
    keys = np.sort(np.concatenate([index.keys for index in indexes]))
    return bool((keys[1:] == keys[:-1]).any())


def _name_classes(indexes: Sequence[TarIndex]) -> Sequence[str]:
    """Returns the names of the classes, sorted, and numbers the labels that are texts by them."""
    mixed: dict[bool, str] = {}
    for index in reversed(indexes):
        mixed.update(
            {one: f"{where_member(index.path, name)}: {label!r}" for one, (name, label) in index.first_of.items()}
        )
    if len(mixed) == 2:
        raise DataError(
            f"labels are all integers or all names of classes, and here there are both: {mixed[False]}, and "
            f"{mixed[True]}; correct one of them"
        )
    listed = {index.classes: index.path for index in indexes if index.classes is not None}
    if True in mixed:
        names = sorted({text for index in indexes for text in index.texts})
        number_of = {name: number for number, name in enumerate(names)}
        for index in indexes:
            numbers = np.array([number_of[text] for text in index.texts], np.int32)
            index.labels = numbers[index.labels] if len(index.labels) else index.labels
        return names
    if len(listed) > 1:
        first, second = list(listed.values())[:2]
        raise DataError(f"{first} and {second} list different classes in {CLASSES.decode()}; write them again together")
    for content in listed:
        return content.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n") if content else ()
    return ()


def _report(path: str, count: int, indexes: Sequence[TarIndex]) -> None:
    """Logs what is left out. Raises DataError if that is everything."""
    found: dict[str, tuple[int, str]] = {}
    for index in indexes:
        for reason, (number, name) in index.left_out.items():
            earlier, first = found.get(reason, (0, quoted(os.fsdecode(name))))
            found[reason] = earlier + number, first
    said = ", ".join(f"{reason}: {number:,} (such as {first})" for reason, (number, first) in sorted(found.items()))
    if not count:
        raise DataError(
            f"{path}: no image in {counted(len(indexes), 'tar file')}"
            f"{'; left out: ' + said if said else ''}; a sample is KEY.jpg and KEY.cls or KEY.json"
        )
    if said:
        logger.info("%s: %s; left out: %s", path, counted(count, "image"), said)
    absolute = next((index for index in indexes if index.absolute), None)
    if absolute is not None:
        logger.info("%s: names begin with a slash, which is left out", where_member(absolute.path, absolute.absolute))


class TarWriter:
    """Writes a tar as `TarShards` and WebDataset read it: for each image `KEY.jpg` and `KEY.cls`.

    The key is the name of the image without its suffix. Dots in it become `_`, because a key ends at the first dot, and
    a key that the tar has already gets a number. Names of classes go into the member `__classes__`, one a line.

    Args:
        path: The tar, which is replaced.
        class_names: Names of the classes.

    Raises:
        OSError: The file cannot be made.
    """

    def __init__(self, path: Path, class_names: Sequence[str] = ()) -> None:
        self._file = open(path, "wb", buffering=_BUFFER)  # noqa: SIM115  # `close` closes it
        self._uses: dict[int, int] = {}  # by the hash of a key, the last number after it
        if class_names:
            self._write(
                CLASSES.decode(), "".join(f"{name}\n" for name in class_names).encode("utf-8", "surrogateescape")
            )

    def add(self, record: Record) -> None:
        """Writes one image. Raises OSError if the disk refuses it."""
        key, suffix = self._split(plain_name(to_text(record.name)), record.data)
        self._write(f"{key}.{suffix}", record.data)
        self._write(f"{key}.cls", b"%d" % record.label)

    def close(self) -> None:
        """Writes the end of the tar, and closes it."""
        with self._file:
            self._file.write(bytes(2 * BLOCK))
            self._file.write(bytes(-self._file.tell() % _RECORD))

    def _split(self, name: str, data: bytes) -> tuple[str, str]:
        """Returns the key and the suffix of the members of an image."""
        stem, suffix = os.path.splitext(name)
        if not is_image_suffix(suffix):
            stem = name
            suffix = next((f".{one}" for magic, one in _MAGIC if data.startswith(magic)), ".jpg")
            suffix = ".webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else suffix
        folder, slash, base = stem.rpartition("/")
        key = stem = f"{folder}{slash}{base.replace('.', '_') or '_'}"
        if key.startswith("__") and re.match("__[^/]*__($|/)", key):
            key = stem = f"x{key}"
        number = self._uses.get(hash(stem), 0)
        while hash(key) in self._uses:
            number += 1
            key = f"{stem}_{number}"
        self._uses[hash(stem)] = number
        self._uses.setdefault(hash(key), 0)
        return key, suffix[1:]

    def _write(self, name: str, data: bytes) -> None:
        self._file.write(b"".join((_header(name, len(data)), data, bytes(-len(data) % BLOCK))))


def _header(name: str, size: int) -> bytes:
    """Returns the header of a member. That of `tarfile`, which long names need, takes ten times as long to make."""
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > 100 or size >= 8**11:
        header = tarfile.TarInfo(name)
        header.size = size
        return header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    digits = b"%011o" % size
    total = (zlib.adler32(encoded + digits) & 0xFFFF) - 1 + _REST_SUM  # Its low half is the sum of the bytes plus one.
    return b"".join((encoded.ljust(100, b"\0"), _MODES, digits, _TIME, b"%06o\0 " % total, _KIND))
