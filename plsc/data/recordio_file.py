"""The bytes of a RecordIO file of MXNet: records, and the header that MXNet puts before each image.

A record is the magic number, a word with the length and a flag, and the data, filled up to a multiple of 4 bytes. Where
the data itself holds the magic number at a multiple of 4 bytes, the writer leaves it out and splits the record there
into chunks, so that the magic number marks the beginnings of records and chunks alone.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import struct
import time
from array import array
from typing import NamedTuple, Optional

import numpy as np

from plsc.data.shard_files import OpenFile
from plsc.errors import DataError
from plsc.machine.files import advice_on

logger = logging.getLogger("plsc")

MAGIC = struct.pack("<I", 0xCED7230A)
FRAME = struct.Struct("<II")  # the magic number; the flag in 3 bits and the length in 29
HEADER = struct.Struct("<IfQQ")  # the number of labels in an array, or 0; the label; the number of the record; unused
LARGEST_RECORD = (1 << 29) - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)
EXACT = 1 << 24  # below it, float32 tells all integers apart

_NUMBERS = struct.Struct("<IIIfQ")  # a frame, and the header of its data up to the number of the record
_FIRST_READ = 1 << 20  # bytes; nearly all images are smaller
_MOST_CHUNKS = 1 << 20
_AT_A_TIME = 1 << 18  # records whose labels are read together
_FORGOTTEN = 1 << 28  # bytes after which the mapped pages are given back
_LOG_SECONDS = 10.0


class Header(NamedTuple):
    """What MXNet stores before an image.

    Attributes:
        labels: The label, or those of the array.
        number: The number of the record.
        begin: Where the image begins in the data of the record.
    """

    labels: tuple[float, ...]
    number: int
    begin: int


class BrokenError(Exception):
    """The error for bytes that are no record. It says what is wrong with them, and what to do."""

    def __init__(self, what: str, advice: str = "copy the file again") -> None:
        super().__init__(f"{what}; {advice}")


class RecordFile:
    """A RecordIO file, which several threads may read.

    Args:
        path: The file.

    Attributes:
        path: The file.
        size: Its size in bytes.

    Raises:
        DataError: The file cannot be opened, or is empty.
    """

    def __init__(self, path: str) -> None:
        try:
            self._file = OpenFile(path)
        except OSError as problem:
            advice = advice_on(problem, "check the path and the permissions")
            raise DataError(f"{path}: cannot read ({problem.strerror}); {advice}") from problem
        self.path, self.size = path, self._file.size
        if not self.size:
            raise DataError(f"{path}: is empty; copy it again")

    def record(self, place: int, most: int = _FIRST_READ) -> tuple[memoryview, int]:
        """Reads a record.

        Args:
            place: Where it begins.
            most: Bytes that it takes, as far as that is known.

        Returns:
            Its data, and where it ends.

        Raises:
            BrokenError: No whole record begins there.
            OSError: The file cannot be read.
        """
        data = self._file.pread(max(FRAME.size, min(most, _FIRST_READ)), place)
        flag, length = _frame(data)
        if flag != WHOLE:
            return self._joined(place)
        end = FRAME.size + length
        if end > len(data):
            data += self._file.pread(end - len(data), place + len(data))
        if end > len(data):
            raise BrokenError("the file ends within this record")
        return memoryview(data)[FRAME.size : end], place + end + -length % 4

    def _joined(self, place: int) -> tuple[memoryview, int]:
        """Reads a record that is split into chunks; see `record`."""
        parts: list[bytes] = []
        size = 0
        while len(parts) < _MOST_CHUNKS:
            flag, length = _frame(self._file.pread(FRAME.size, place))
            if flag not in ((MIDDLE, LAST) if parts else (FIRST,)):
                raise BrokenError("the chunks of this record are out of order")
            size += length + len(MAGIC)
            if size > LARGEST_RECORD:
                break
            parts.append(self._file.pread(length, place + FRAME.size))
            if len(parts[-1]) < length:
                raise BrokenError("the file ends within this record")
            place += FRAME.size + length + -length % 4
            if flag == LAST:
                return memoryview(MAGIC.join(parts)), place
        raise BrokenError("the chunks of this record do not end")

    def read_ahead(self, first: int, size: int) -> None:
        """Asks the system to read bytes that are needed soon."""
        if hasattr(os, "posix_fadvise") and self._file.descriptor is not None:
            with contextlib.suppress(OSError):  # some file systems take no advice
                os.posix_fadvise(self._file.descriptor, first, size, os.POSIX_FADV_WILLNEED)

    def scan(self) -> tuple[np.ndarray, np.ndarray]:
        """Finds all records by going from each to the next.

        Returns:
            The number in the header of each record, uint64 [n], and where it begins, int64 [n].

        Raises:
            DataError: The file holds something else.
        """
        numbers, places = array("Q"), array("q")
        progress = _Progress(f"{self.path}: the records are being found", self.size)
        if self._file.descriptor is None:
            self._scan_distant(numbers, places, progress)
            return np.frombuffer(numbers, np.uint64), np.frombuffer(places, np.int64)
        magic = int.from_bytes(MAGIC, "little")
        place = forgotten = 0
        with mmap.mmap(self._file.descriptor, self.size, access=mmap.ACCESS_READ) as mapped:
            _advise(mapped, "MADV_SEQUENTIAL")
            while place < self.size:
                places.append(place)
                begin, word, _, _, number = (
                    _NUMBERS.unpack_from(mapped, place) if place + _NUMBERS.size <= self.size else (0,) * 5
                )
                end = place + FRAME.size + word + -word % 4
                if begin != magic or not HEADER.size <= word <= LARGEST_RECORD or end > self.size:
                    header, end = self._header_at(place)
                    number = header.number
                numbers.append(number)
                place = end
                if place - forgotten > _FORGOTTEN:
                    forgotten = _forget(mapped, forgotten, place)
                    progress.log(place)
        return np.frombuffer(numbers, np.uint64), np.frombuffer(places, np.int64)

    def _scan_distant(self, numbers: array[int], places: array[int], progress: _Progress) -> None:
        """Does what `scan` does for a file that cannot be mapped into memory."""
        place = 0
        while place < self.size:
            places.append(place)
            header, place = self._header_at(place)
            numbers.append(header.number)
            progress.log(place)

    def _header_at(self, place: int) -> tuple[Header, int]:
        """Returns the header of a record, and where the record ends. Raises DataError if it is broken."""
        try:
            data, end = self.record(place)
            return header_of(data), end
        except BrokenError as problem:
            raise DataError(f"{self.path}: byte {place}: {problem}") from None
        except OSError as problem:
            raise DataError(f"{self.path}: cannot read ({problem.strerror}); check the disk") from problem

    def first_labels(self, places: np.ndarray) -> np.ndarray:
        """Returns the label of many records, or the first of their labels, float32 [n].

        Args:
            places: Where the records begin, in ascending order, int64 [n].

        Raises:
            DataError: A record is broken.
        """
        found = np.empty(len(places), np.float32)
        progress = _Progress(f"{self.path}: the labels are being read", len(places))
        if self._file.descriptor is None:
            for i, place in enumerate(places.tolist()):
                found[i] = self._header_at(place)[0].labels[0]
                progress.log(i)
            return found
        mapped = mmap.mmap(self._file.descriptor, self.size, access=mmap.ACCESS_READ)  # closed when no array needs it
        _advise(mapped, "MADV_SEQUENTIAL")
        for first in range(0, len(places), _AT_A_TIME):
            some = places[first : first + _AT_A_TIME]
            found[first : first + len(some)] = self._labels_in(mapped, some)
            _forget(mapped, int(some[0]), int(some[-1]))
            progress.log(first)
        return found

    def _labels_in(self, mapped: mmap.mmap, places: np.ndarray) -> np.ndarray:
        """Does what `first_labels` does for a few records, of which those that are not simple are read one by one."""
        words = np.frombuffer(mapped, "<u4", self.size // 4)
        at = places // 4
        frame, arrays = FRAME.size // 4, (FRAME.size + HEADER.size) // 4
        last = len(words) - 1
        lengths, flags = words[np.minimum(at + 1, last)], words[np.minimum(at + frame, last)]
        labels = words[np.minimum(at + np.where(flags > 0, arrays, frame + 1), last)].view("<f4")
        is_simple = (words[at] == words.dtype.type(int.from_bytes(MAGIC, "little"))) & (lengths <= LARGEST_RECORD)
        is_simple &= lengths >= HEADER.size + 4 * np.minimum(flags, 1 << 20).astype(np.int64)
        is_simple &= (flags <= 1 << 20) & (places + FRAME.size + lengths <= self.size)
        labels = labels.astype(np.float32)
        for i in np.flatnonzero(~is_simple).tolist():
            labels[i] = self._header_at(int(places[i]))[0].labels[0]
        return labels


def header_of(data: memoryview) -> Header:
    """Returns the header at the beginning of the data of a record. Raises BrokenError if there is none."""
    if len(data) < HEADER.size:
        raise BrokenError(f"the record has {len(data)} bytes, and MXNet's header alone takes {HEADER.size}")
    count, label, number, _ = HEADER.unpack_from(data)
    if not count:
        return Header((label,), number, HEADER.size)
    begin = HEADER.size + 4 * count
    if begin > len(data):
        raise BrokenError(f"the record should hold an array of {count} labels, but has {len(data)} bytes")
    return Header(struct.unpack_from(f"<{count}f", data, HEADER.size), number, begin)


def frames_of(data: bytes) -> list[bytes]:
    """Returns what a file holds of a record with this data, as pieces to write one after another."""
    parts = _split(data)
    pieces: list[bytes] = []
    for k, part in enumerate(parts):
        flag = WHOLE if len(parts) == 1 else FIRST if k == 0 else LAST if k == len(parts) - 1 else MIDDLE
        pieces += [MAGIC, struct.pack("<I", flag << 29 | len(part)), part]
    pieces.append(bytes(-len(parts[-1]) % 4))
    return pieces


def _split(data: bytes) -> list[bytes]:
    """Splits data at each magic number that begins at a multiple of 4 bytes, and leaves those out."""
    parts, begin, place = [], 0, data.find(MAGIC)
    while place >= 0:
        if place % 4 == 0:
            parts.append(data[begin:place])
            begin = place + len(MAGIC)
        place = data.find(MAGIC, begin if place < begin else place + 1)
    return [*parts, data[begin:]]


def _frame(data: bytes) -> tuple[int, int]:
    """Returns the flag and the length of a record or chunk. Raises BrokenError if none begins there."""
    if len(data) < FRAME.size:
        raise BrokenError("the file ends within this record")
    if data[:4] != MAGIC:
        if data[:4] == MAGIC[::-1]:
            raise BrokenError("its numbers are big-endian", "write the file again on a little-endian machine")
        raise BrokenError(f"no record begins there (it should begin with {MAGIC.hex()}, and has {data[:4].hex()})")
    word = int.from_bytes(data[4:8], "little")
    return word >> 29, word & LARGEST_RECORD


class _Progress:
    """A line in the log every few seconds of something that takes long."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._next = what, total, time.monotonic() + _LOG_SECONDS

    def log(self, done: int) -> None:
        """Logs how much is done, if it is time for it."""
        if time.monotonic() > self._next:
            self._next = time.monotonic() + _LOG_SECONDS
            logger.info("%s: %d%%", self._what, 100 * done // self._total)


def _advise(mapped: mmap.mmap, advice: str, first: int = 0, size: Optional[int] = None) -> None:
    if hasattr(mmap, advice):
        mapped.madvise(getattr(mmap, advice), first, len(mapped) - first if size is None else size)


def _forget(mapped: mmap.mmap, first: int, end: int) -> int:
    """Gives the pages between two places back, so that they do not count as memory; returns where it stopped."""
    first, end = (place // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY for place in (first, end))
    if end > first:
        _advise(mapped, "MADV_DONTNEED", first, end - first)
    return end
