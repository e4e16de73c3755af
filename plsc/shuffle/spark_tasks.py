"""The functions that `spark.py` runs on the executors, over the lines of a range of a part.

This module is sent to them by value, as are those whose functions it uses, so that executors do not need plsc.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from plsc.data.base64_parts import Fault, check_line
from plsc.shuffle.plan import BLOCK
from plsc.shuffle.runs import INDEX
from plsc.shuffle.scan import is_image, line_keys

CELLS = 1 << 16  # equal ranges of keys, whose lines are counted to find where the files end
CELL_SHIFT = np.uint64(48)

Record = tuple[int, str]  # place in the part, line
Place = tuple[int, int]  # key, place in all parts; sorts lines


class Source(NamedTuple):
    """A part: its number, and the bytes of all parts before it."""

    number: int
    offset: int


class Rules(NamedTuple):
    """The options that the executors need."""

    seed: int
    max_line: int
    check: bool


def _keyed(rules: Rules, source: Source, records: Iterable[Record]) -> Iterator[tuple[int, int, bytes]]:
    """Yields the key, the place in the part and the text of each line of a range.

    Hadoop assigns a line that begins exactly where a range does to the range before; `line_keys` allows for that.
    """
    current, stream = -1, None
    for place, text in records:
        block = place // BLOCK
        if block != current:
            current, stream = block, line_keys(rules.seed, source.number, block, place == block * BLOCK)
        yield int(stream.random_raw()), place, text.encode()  # type: ignore[union-attr]


class RangeScan(NamedTuple):
    """What the first pass found in a range of a part.

    Attributes:
        part: The number of the part.
        first: Where the first line begins in the part.
        end: Where the last line ends.
        lines: The number of lines, good and bad.
        whole: Whether the lines fill the range.
        largest_label: The largest label, or -1 without a good line.
        faults: The bad lines: number in the range, place in all parts, `Fault`.
        entries: The INDEX entries of the good lines.
    """

    part: int
    first: int
    end: int
    lines: int
    whole: bool
    largest_label: int
    faults: list[tuple[int, int, int]]
    entries: Any


def scan_range(rules: Rules, source: Source, records: Iterable[Record]) -> Iterator[RangeScan]:
    """Checks the lines of a range and gives them keys. Yields nothing for a range in which no line begins."""
    entries: list[tuple[int, int, int, int]] = []
    faults = []
    first, end, size, lines, largest = -1, 0, 0, 0, -1
    for key, place, line in _keyed(rules, source, records):
        fault = check_line(line, rules.max_line)
        image, _, label = line.rpartition(b"\t")
        if fault is None and rules.check and not is_image(image):
            fault = Fault.IMAGE
        if fault is None:
            entries.append((key, source.offset + place, len(line) + 1, 0))
            largest = max(largest, int(label))
        else:
            faults.append((lines, source.offset + place, int(fault)))
        first, end = place if first < 0 else first, place + len(line) + 1
        size, lines = size + len(line) + 1, lines + 1
    if lines:
        whole = bool(faults) or first + size == end
        yield RangeScan(
            part=source.number,
            first=first,
            end=end,
            lines=lines,
            whole=whole,
            largest_label=largest,
            faults=faults,
            entries=np.array(entries, INDEX),
        )


def cells_of(entries: np.ndarray) -> np.ndarray:
    """Returns the cell of the key of each line."""
    return (entries["key"] >> CELL_SHIFT).astype(np.int64)


def lines_in(cells: set[int], scan: RangeScan) -> list[Place]:
    """Returns the lines of a range whose keys are in some cells."""
    chosen = scan.entries[np.isin(cells_of(scan.entries), list(cells))]
    return list(zip(chosen["key"].tolist(), chosen["place"].tolist()))


def by_file(
    firsts: list[Place], copies: dict[Place, list[int]], scan: RangeScan
) -> Iterator[tuple[int, tuple[int, np.ndarray]]]:
    """Yields (file, (whether a copy, INDEX entries of its lines)) for a range."""
    places = list(zip(scan.entries["key"].tolist(), scan.entries["place"].tolist()))
    files = np.array([bisect.bisect_right(firsts, place) for place in places], np.int64)
    for file in np.unique(files).tolist():
        yield file, (0, scan.entries[files == file])
    for row, place in enumerate(places):
        for file in copies.get(place, ()):
            yield file, (1, scan.entries[row : row + 1])


def sorted_lengths(groups: Iterable[tuple[int, np.ndarray]]) -> bytes:
    """Returns the lengths of the lines of a file, in order, from what `by_file` yielded for all ranges."""
    groups = list(groups)
    entries = np.concatenate([lines for _, lines in groups])
    is_copy = np.concatenate([np.full(len(lines), copy) for copy, lines in groups])
    return entries["length"][np.lexsort((entries["place"], entries["key"], is_copy))].astype("<u4").tobytes()


def place_lines(
    rules: Rules,
    firsts: list[Place],
    copies: dict[Place, list[int]],
    bad: set[int],
    source: Source,
    records: Iterable[Record],
) -> Iterator[tuple[tuple[int, int, int, int], bytes]]:
    """Yields ((file, whether a copy, key, place), line) for the good lines of a range, and again for their copies."""
    for key, place, line in _keyed(rules, source, records):
        place += source.offset
        if place not in bad:
            yield (bisect.bisect_right(firsts, (key, place)), 0, key, place), line
            for file in copies.get((key, place), ()):
                yield (file, 1, key, place), line


def count_lines(counts: Any, number: int, lines: Iterable[bytes]) -> Iterator[bytes]:
    """Passes on the lines of a file, and then adds {file: (lines, bytes, sha256)} to `counts`."""
    samples, size, digest = 0, 0, hashlib.sha256()
    for line in lines:
        yield line
        digest.update(line + b"\n")
        samples, size = samples + 1, size + len(line) + 1
    counts.add({number: (samples, size, digest.hexdigest())})
