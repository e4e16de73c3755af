"""Reads lists of images by the million lines: paths stay in the file, and memory holds a few numbers for each line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from plsc.data.image_lists import BYTE_ORDER_MARK, Listed, byte_columns_of, checked, is_blank, parse_line
from plsc.data.packed import Block, Numbering, TextsOfFile, blocks_of_lines, most_lines, state_of
from plsc.machine.files import open_regular

_TAB, _BLANK, _NOT_ASCII = b"\t \x80"  # their numbers
_LONGEST_NUMBER = 9  # digits

# Bytes of lines that are read one by one: zero, rare blanks, and the beginnings of blanks of Unicode and of a byte
# order mark, of which the second byte decides.
_ODD = np.zeros(256, bool)
_ODD[[0x00, 0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x1F]] = True
_ODD_PAIRS = np.frombuffer(b"\xc2\x85\xc2\xa0\xe1\x9a\xe2\x80\xe2\x81\xe3\x80\xef\xbb", ">u2")
_ODD_FIRST = np.zeros(256, bool)
_ODD_FIRST[_ODD_PAIRS >> 8] = True


class Column(Protocol):
    """What the columns after the path mean, as a number for each line."""

    def of_many(self, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Returns the numbers of lines of two columns, int32 [n].

        Args:
            data: Bytes that hold the second columns, uint8.
            starts: Where each begins, int64 [n].
            lengths: Their lengths, int64 [n].

        Returns:
            The numbers; -1 for what `of_line` must look at.
        """

    def of_line(self, columns: list[bytes], line: bytes, number: int) -> int:
        """Returns the number of a line of any form; raises DataError if it is wrong.

        Args:
            columns: The columns; see `columns_of`.
            line: The line.
            number: Number of the line, from 1.
        """


class ListedPaths:
    """The paths of a list, and the numbers of its other columns.

    Attributes:
        paths: The paths of the N lines that are not blank.
        values: The number of each line, int32 [N]; 0 if the lines are paths alone.
    """

    def __init__(self, paths: TextsOfFile, values: np.ndarray, blank_before: np.ndarray) -> None:
        self.paths, self.values, self._blank_before = paths, values, blank_before

    def line(self, i: int) -> int:
        """Returns the number of the line of path `i`, from 1."""
        blank = int(np.searchsorted(self._blank_before, i, side="right")) if len(self._blank_before) else 0
        return i + 1 + blank


class ListedFiles(Sequence[Listed]):
    """The images of a list, without a Python object for each.

    Args:
        path: The list. Its lines have the forms of `parse_line`.
        is_plain: Whether the lines are paths and nothing else.

    Raises:
        DataError: A line has another form.
        OSError: The list cannot be read.
    """

    def __init__(self, path: Path, is_plain: bool) -> None:
        column = _Identities(path)
        self._listed = read_paths(path, None if is_plain else column)
        self._kinds = [("", "")] if is_plain else list(map(_kind, column.found.numbers))

    def __len__(self) -> int:
        return len(self._listed.paths)

    def __getitem__(self, i: Any) -> Any:
        """Returns an image."""
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        identity, template = self._kinds[self._listed.values[i]]
        return Listed(self._listed.paths[i], identity, template, self._listed.line(i % len(self)))

    def identities(self) -> set[str]:
        """Returns the different identities."""
        return {identity for identity, _ in self._kinds}


class _Identities:
    """Numbers for the identities, and templates, of a list; a `Column`."""

    def __init__(self, path: Path) -> None:
        self.found, self._path = Numbering(), path

    def of_many(self, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Returns a number for each identity; see `Column.of_many`."""
        return self.found.of(data, starts, lengths)

    def of_line(self, columns: list[bytes], line: bytes, number: int) -> int:
        """Returns a number for the identity and the template of a line; see `Column.of_line`."""
        parse_line(self._path, number, line)
        return self.found.number(b"\t".join(columns[1:]))


def _kind(columns: bytes) -> tuple[str, str]:
    """Returns the identity and the template, '' without one."""
    identity, tab, template = os.fsdecode(columns).partition("\t")
    return identity, f"{identity}/{template}" if tab else ""


def read_paths(path: Path, column: Column | None) -> ListedPaths:
    """Reads a list.

    Args:
        path: The list.
        column: What the columns after the path mean; None if lines are paths alone, which may hold blanks.

    Raises:
        DataError: A line is wrong.
        OSError: The file cannot be read.
    """
    with contextlib.ExitStack() as failed:
        file = failed.enter_context(open_regular(path))
        state = state_of(file.fileno())
        most = most_lines(file.fileno())
        # Parts that are joined at the end would take twice the memory. Pages that nothing is written to take none.
        starts, lengths, values = np.empty(most, np.int64), np.empty(most, np.int32), np.empty(most, np.int32)
        blank_before: list[np.ndarray] = []
        number = count = 0
        for block in blocks_of_lines(file.fileno()):
            own, ends, numbers = _read_block(path, block, column, number)
            kept = numbers >= 0
            number += len(kept)
            blank_before.append(count + np.cumsum(kept)[~kept])
            part = slice(count, count + int(kept.sum()))
            count = part.stop
            starts[part] = block.position + own[kept]
            lengths[part] = (ends - own)[kept]
            values[part] = numbers[kept]
        paths = TextsOfFile(path, file, starts[:count], lengths[:count], state)
        failed.pop_all()
    return ListedPaths(paths, values[:count], np.concatenate([np.empty(0, np.int64), *blank_before]))


def _read_block(
    path: Path, block: Block, column: Column | None, before: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns where the path of each line begins and ends, and the number of the line, -1 if it is blank."""
    starts, ends, values = block.starts.copy(), block.ends.copy(), np.full(len(block.starts), -1, np.int32)
    plain = starts < ends
    plain[_lines_of_bytes(block, _odd(block.data))] = False
    if column is None:
        values[plain & (block.data[np.minimum(starts, len(block.data) - 1)] > _BLANK)] = 0
    else:
        rows, middles = _with_two_columns(block, plain)
        values[rows] = column.of_many(block.data, middles + 1, block.ends[rows] - middles - 1)
        ends[rows] = middles
    for k in np.flatnonzero((values < 0) & (block.starts < block.ends)).tolist():
        line = block.line(k).removeprefix(BYTE_ORDER_MARK)
        if is_blank(line):
            continue
        checked(line, f"{path}:{before + k + 1}")
        starts[k] = block.ends[k] - len(line)
        ends[k] = block.ends[k]
        if column is None:
            values[k] = 0
            continue
        columns = byte_columns_of(line)
        values[k] = column.of_line(columns, line, before + k + 1)
        starts[k] += line.find(columns[0])
        ends[k] = starts[k] + len(columns[0])
    return starts, ends, values


def _odd(data: np.ndarray) -> np.ndarray:
    """Returns the places of bytes that keep a line from being split by plain blanks and tabs."""
    low = np.flatnonzero(data < _BLANK)
    odd = low[_ODD[data[low]]]
    if data.max(initial=0) < _NOT_ASCII:
        return odd
    firsts = np.flatnonzero(data[:-1] >= _NOT_ASCII)
    firsts = firsts[_ODD_FIRST[data[firsts]]]
    pairs = data[firsts].astype(np.uint16) << 8 | data[firsts + 1]
    return np.concatenate([odd, firsts[np.isin(pairs, _ODD_PAIRS)]])


def _lines_of_bytes(block: Block, places: np.ndarray) -> np.ndarray:
    return np.searchsorted(block.starts, places, side="right") - 1


def _with_two_columns(block: Block, plain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns those lines that are two columns with a single blank or tab between, and where that is.

    Args:
        block: The lines.
        plain: Which lines hold no odd bytes and are not empty, bool [n].
    """
    data = block.data
    is_tab = data == _TAB
    tabs = np.flatnonzero(is_tab)
    blanks = np.flatnonzero(is_tab | (data == _BLANK))
    if not len(blanks):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    at = np.searchsorted(blanks, block.ends) - 1
    middles = blanks[at]  # The last blank; where there is none (-1), a later one, which is not in the line.
    fits = plain & (middles > block.starts) & (middles < block.ends - 1)
    rows = np.flatnonzero(fits)
    middles = middles[rows]
    starts = block.starts[rows]
    alone = (data[middles - 1] != _BLANK) & (data[middles - 1] != _TAB)
    alone &= (data[starts] != _BLANK) & (data[starts] != _TAB)
    if len(tabs):
        count = np.searchsorted(tabs, block.ends[rows]) - np.searchsorted(tabs, starts)
        alone &= count == is_tab[middles]
    return rows[alone], middles[alone]


def numbers_of(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns what up to nine digits say, int64 [n]; -1 for anything else. For the arguments see `Column.of_many`."""
    found = np.zeros(len(starts), np.int64)
    good = (lengths > 0) & (lengths <= _LONGEST_NUMBER)
    for k in range(min(int(lengths.max(initial=0)), _LONGEST_NUMBER)):
        has = lengths > k
        digits = data[np.where(has, starts + k, 0)] - np.uint8(ord("0"))  # other bytes become larger than 9
        good &= ~has | (digits <= 9)
        found = np.where(has, found * 10 + digits, found)
    return np.where(good, found, -1)
