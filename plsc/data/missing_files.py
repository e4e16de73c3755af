"""Finds the files of a list that are missing.

Each folder is listed once, because a look at each file takes minutes for millions of files on network storage.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np

from plsc.data.packed import Numbering, TextsOfFile, hashes_of
from plsc.errors import DataError

_SLASH = ord("/")
_NAMES = 1 << 18  # names of files that are looked for together
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def find_missing(folder: str, paths: TextsOfFile, where: Callable[[int], str]) -> tuple[int, int]:
    """Looks for the files of a list.

    Names are compared by hashes of 64 bits, so that the check takes 9 bytes for each path.

    Args:
        folder: Folder that the paths are relative to.
        paths: Paths of the N files.
        where: Returns where a path is listed, for error messages.

    Returns:
        The first missing file, -1 if there is none; and how many are missing.

    Raises:
        DataError: A folder cannot be listed.
    """
    folders, wanted = Numbering(), np.empty(len(paths), np.uint64)
    for first, _, keys in _keys_of(paths, folders):
        wanted[first : first + len(keys)] = keys
    wanted.sort()
    found = np.zeros(len(wanted), bool)
    for keys in _keys_in(folder, paths, folders, where):
        at = _places(np.sort(keys), wanted)
        found[at[at >= 0]] = True
    parts: list[np.ndarray] = []
    for start in range(0, len(wanted), _NAMES):
        rest = wanted[start : start + _NAMES][~found[start : start + _NAMES]]
        parts.append(rest[~found[np.searchsorted(wanted, rest)]])  # of equal paths the first is found
    lost = np.concatenate(parts)
    if not len(lost):
        return -1, 0
    first_of, total = len(paths), 0
    for first, _, keys in _keys_of(paths, folders):
        rows = np.flatnonzero(_places(keys, lost) >= 0)
        first_of, total = min(first_of, first + int(rows.min(initial=len(paths)))), total + len(rows)
    return first_of, total


def _places(keys: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Returns where each key is among sorted ones, -1 if it is not."""
    at = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return np.where(ordered[at] == keys, at, -1)


def _keys_of(paths: TextsOfFile, folders: Numbering) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields the first of some paths, the numbers of their folders, int32 [n], and their keys, uint64 [n]."""
    for first, data, starts, lengths in paths.chunks():
        slashes = np.concatenate([[-1], np.flatnonzero(data == _SLASH)])
        last = slashes[np.searchsorted(slashes, starts + lengths) - 1]
        names = np.maximum(last + 1, starts)  # where the last part begins
        inside = np.where(last > starts, last - starts, last == starts)  # The folder of "/1.jpg" is "/".
        ids = folders.of(data, starts, inside)
        yield first, ids, _keys(hashes_of(data, names, starts + lengths - names), ids)


def _keys_in(folder: str, paths: TextsOfFile, folders: Numbering, where: Callable[[int], str]) -> Iterator[np.ndarray]:
    """Yields the keys of the files in folders, uint64, from one listing of each folder."""
    root = os.path.join(os.fsencode(folder), b"")
    names: list[bytes] = []
    ids: list[int] = []
    for number, name in enumerate(folders.numbers):
        place = name if name.startswith(b"/") else root + name
        try:
            with os.scandir(place or b".") as entries:
                for entry in entries:
                    if entry.is_file():
                        names.append(entry.name)
                        ids.append(number)
                    if len(names) == _NAMES:
                        yield _keys_of_names(names, ids)
                        names, ids = [], []
        except (FileNotFoundError, NotADirectoryError, ValueError):
            continue
        except OSError as problem:
            of_folder = (first + np.flatnonzero(own == number) for first, own, _ in _keys_of(paths, folders))
            first = next(int(rows[0]) for rows in of_folder if len(rows))
            raise DataError(
                f"{where(first)}: cannot list directory {os.fsdecode(place)} ({problem.strerror or problem}); check "
                "its permissions"
            ) from problem
    yield _keys_of_names(names, ids)


def _keys_of_names(names: list[bytes], ids: list[int]) -> np.ndarray:
    lengths = np.fromiter(map(len, names), np.int64, len(names))
    data = np.frombuffer(b"".join(names), np.uint8)
    return _keys(hashes_of(data, np.cumsum(lengths) - lengths, lengths), np.array(ids, np.int64))


def _keys(hashes: np.ndarray, folders: np.ndarray) -> np.ndarray:
    """Returns keys of names in folders: equal ones may be taken to be the same file."""
    return hashes ^ (folders.astype(np.uint64) * _MULTIPLIER)
