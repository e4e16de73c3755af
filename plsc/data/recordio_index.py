"""The index of a RecordIO file: a line `key<TAB>offset` for each record, which says where the record begins."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np

from plsc.errors import DataError, shown
from plsc.machine.files import advice_on, open_regular, replacing

_CHUNK = 1 << 22
_AT_A_TIME = 1 << 16  # lines that are written together
_LINE = re.compile(rb"\d{1,18}\t\d{1,18}")
_LONG = re.compile(rb"\d{19}")
_DIGITS = b"0123456789"
_REMOVE = "copy it again, or remove it, since the records can be found without it"


class Index(NamedTuple):
    """Where the records of a file begin, in the order of the file.

    Attributes:
        keys: The key of each record, int64 [n].
        places: Where it begins, int64 [n].
    """

    keys: np.ndarray
    places: np.ndarray


def read_index(path: str, records: str, size: int) -> Index:
    """Reads an index.

    Args:
        path: The index.
        records: The file of records, for error messages.
        size: The number of bytes of that file.

    Raises:
        DataError: It is not an index of such a file.
    """
    try:
        keys, places = _numbers_in(path)
    except OSError as problem:
        advice = advice_on(problem, "check its permissions, or remove it, since the records can be found without it")
        raise DataError(f"{path}: cannot read the index ({problem.strerror}); {advice}") from problem
    if not len(keys):
        raise DataError(f"{path}: is empty; {_REMOVE}")
    wrong = np.flatnonzero((places >= size) | (places % 4 != 0))
    if len(wrong):
        line = int(wrong[0])
        raise DataError(
            f"{path}:{line + 1}: record {keys[line]} should begin at byte {places[line]}, but {records} has {size} "
            "bytes, and records begin at multiples of 4; one of the two files is cut, or of other data: copy both again"
        )
    for values, what in ((keys, "key"), (places, "offset")):
        twice = _twice(values)
        if twice is not None:
            raise DataError(f"{path}: the {what} {twice} stands there twice; {_REMOVE}")
    if np.any(np.diff(places) < 0):
        order = np.argsort(places)
        keys, places = keys[order], places[order]
    return Index(keys, places)


def write_index(path: Path, index: Index) -> None:
    """Writes an index, which appears whole or not at all. Raises OSError if the disk refuses it."""
    with replacing(path) as part, open(part, "wb") as stream:
        for first in range(0, len(index.keys), _AT_A_TIME):
            some = slice(first, first + _AT_A_TIME)
            pairs = zip(index.keys[some].tolist(), index.places[some].tolist())
            stream.write(b"".join(b"%d\t%d\n" % pair for pair in pairs))


def _numbers_in(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns both columns of an index, int64 [lines]. Raises DataError for a line that is no pair of numbers."""
    found, lines, rest = [np.empty((0, 2), np.int64)], 0, b""
    with open_regular(path) as stream:
        while True:
            read = stream.read(_CHUNK)
            text = (rest + read if read or not rest else rest + b"\n").replace(b"\r\n", b"\n")
            whole = text.rfind(b"\n") + 1
            text, rest = text[:whole], text[whole:]
            if text:
                found.append(_parsed(text, path, lines))
                lines += len(found[-1])
            if not read:
                return np.concatenate([one[:, 0] for one in found]), np.concatenate([one[:, 1] for one in found])


def _parsed(text: bytes, path: str, lines: int) -> np.ndarray:
    """Returns the numbers of whole lines, of which `lines` come before, int64 [n, 2]."""
    marks = text.translate(None, _DIGITS)
    count = len(marks) // 2
    if marks == b"\t\n" * count and not _LONG.search(text):
        numbers = np.fromstring(text, np.int64, sep=" ")
        if len(numbers) == 2 * count:
            return numbers.reshape(count, 2)
    bad, line = next(pair for pair in enumerate(text.split(b"\n")) if not _LINE.fullmatch(pair[1]))
    text_of_line = shown(line[:60].decode("utf-8", "backslashreplace"))
    raise DataError(f"{path}:{lines + bad + 1}: {text_of_line} is not 'key<TAB>offset', with two integers; {_REMOVE}")


def _twice(values: np.ndarray) -> Optional[int]:
    """Returns a value that stands in an array twice; None if there is none."""
    if np.all(np.diff(values) > 0):
        return None
    ordered = np.sort(values)
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    return int(ordered[twice[0]]) if len(twice) else None
