"""What InsightFace stores with the images of a RecordIO file: ranges of identities, and the number of classes.

Records without an image say which records are images. The one with key 0 holds two numbers: that of the first identity
and the end of the identities. The records from 1 to the first identity are images. Each identity holds the first of its
images and their end. A file `property` holds `classes,height,width`.
"""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple, Optional

import numpy as np

from plsc.data.recordio_file import EXACT, BrokenError, RecordFile, header_of
from plsc.data.recordio_index import Index
from plsc.data.records import LARGEST_LABEL
from plsc.errors import DataError, shown
from plsc.machine.files import open_regular

PROPERTY = "property"
_LARGEST_PROPERTY = 4096  # bytes


class _Ranges(NamedTuple):
    """What the record with key 0 says: images are the records from 1 to `first`, identities those up to `end`."""

    first: int
    end: int


def images_of(file: RecordFile, index: Index) -> tuple[Index, int]:
    """Returns the records that hold images, and the number of those that hold identities.

    Raises:
        DataError: There are no images, or the record with key 0 does not fit.
    """
    zero = np.flatnonzero(index.keys == 0)
    ranges = None if not len(zero) else _ranges_in(file, int(index.places[zero[0]]), index)
    if ranges is None:
        return index, 0
    chosen = (index.keys >= 1) & (index.keys < ranges.first)
    if not chosen.any():
        raise DataError(f"{file.path}: holds no images; write it again")
    return Index(index.keys[chosen], index.places[chosen]), ranges.end - ranges.first


def _ranges_in(file: RecordFile, place: int, index: Index) -> Optional[_Ranges]:
    """Returns what the record with key 0 says; None if it is an image.

    Raises:
        DataError: The file does not have the records that it names.
    """
    where = f"{file.path}: record 0, at byte {place}"
    try:
        data, _ = file.record(place)
        header = header_of(data)
    except BrokenError as problem:
        raise DataError(f"{where}: {problem}") from None
    if len(header.labels) < 2 or header.begin < len(data):
        return None
    said = header.labels[:2]
    records, largest = len(index.keys), int(index.keys.max())
    names_all = largest == records - 1  # the keys are 0, 1, 2...
    if names_all and all(map(math.isfinite, said)) and _nearly(said[1], records) and 1 <= said[0] <= said[1]:
        first = int(said[0]) if said[0] < EXACT else _first_identity(file, index, said[0])
        if first <= records:
            return _Ranges(first, records)
    raise DataError(
        f"{where}: says that the images are the records from 1 to {said[0]:.0f} and the identities those up to "
        f"{said[1]:.0f}, but there are {records} records, the last with the key {largest}; copy the file and its index "
        "again, or write them again"
    )


def _nearly(said: float, number: int) -> bool:
    """Returns whether float32 may have rounded a number to the one that a header says."""
    return said == float(np.float32(number))


def _first_identity(file: RecordFile, index: Index, said: float) -> int:
    """Returns the key of the first record without an image, near a key that float32 has rounded."""
    error = int(np.spacing(np.float32(said)))
    near = (index.keys > said - error) & (index.keys < said + error)
    order = np.argsort(index.keys[near])
    for key, place in zip(index.keys[near][order].tolist(), index.places[near][order].tolist()):
        with contextlib.suppress(BrokenError):
            data, _ = file.record(place)
            if header_of(data).begin == len(data):
                return int(key)
    return len(index.keys)  # There are no identities.


def classes_of(path: str) -> Optional[int]:
    """Returns the number of classes that `property` names; None if there is no such file."""
    try:
        with open_regular(path) as stream:
            text = stream.read(_LARGEST_PROPERTY).decode("utf-8", "backslashreplace")
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise DataError(f"{path}: cannot read ({problem.strerror}); check it or remove it") from problem
    fields = text.strip().split(",")
    if len(fields) != 3 or not all(one.strip().isascii() and one.strip().isdecimal() for one in fields):
        raise DataError(f"{path}: {shown(text[:60])} is not 'classes,height,width'; correct it or remove the file")
    classes = int(fields[0][:20])
    if not 1 <= classes <= LARGEST_LABEL + 1:
        raise DataError(f"{path}: says that there are {classes:,} classes; correct it or remove the file")
    return classes
