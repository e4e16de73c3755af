"""Sorted runs on disk: lines in the order of their random keys, so that any range of keys is read with few reads.

A run is what fitted in memory at once: the lines' text, then their index, then a table that says where each cell
begins. Cells are equal ranges of keys, the same for all runs, so one cell of all runs is a random share of all lines.
"""

from __future__ import annotations

import binascii
import mmap
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Optional

import numpy as np

from plsc.errors import DataError
from plsc.machine import files

KEYS = 1 << 64
INDEX = np.dtype([("key", "<u8"), ("place", "<u8"), ("length", "<u4"), ("label", "u1")])
LINE_BYTES = 160  # memory for what is kept of a line beside its text, while runs are sorted
_PIECE = 1 << 18  # bytes joined for one write, few enough to stay in cache
_PIECE_LINES = 4096


class Run(NamedTuple):
    """Where a run stands."""

    path: str
    text_at: int
    index_at: int
    table_at: int


def cell_bounds(count: int, low: int = 0, high: int = KEYS) -> np.ndarray:
    """The first key of each of `count` equal ranges of [low, high); fewer when there are fewer keys."""
    count = min(count, high - low)
    return np.array([low + number * (high - low) // count for number in range(count)], np.uint64)


def make_arena(size: int) -> mmap.mmap:
    """Memory of `size` bytes; what is not used costs nothing."""
    arena = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        arena.madvise(mmap.MADV_HUGEPAGE)
    return arena


def keep_freed_memory() -> None:
    """Lets glibc keep a few megabytes that were freed, for buffers that come and go with every block.

    It gives back to the kernel what is freed in pieces larger than the largest it has seen freed; taking them again
    costs a page fault every 4 kB, a third of the time of a run.
    """
    np.empty(1 << 22, np.uint8)  # freed at once, never touched


class RunWriter:
    """Takes lines into a fixed piece of memory and writes a run whenever it is full.

    Whoever reads puts text into `arena[filled:]`, then calls `add`, which says what of it are lines. Text that `add`
    has not taken yet survives a flush, moved to the new `filled`.

    Attributes:
        runs: what has been written.
        cell_lines, cell_bytes: lines, and bytes of text on disk, of each cell over all runs.
    """

    def __init__(self, path: str, bounds: np.ndarray, arena: mmap.mmap, max_lines: int, pack: bool = False) -> None:
        self.arena = arena
        self.filled = 0
        self.runs: list[Run] = []
        self.cell_lines = np.zeros(len(bounds), np.int64)
        self.cell_bytes = np.zeros(len(bounds), np.int64)
        self._path = path
        self._bounds = bounds
        self._max_lines = max_lines
        self._pack = pack
        self._index: list[np.ndarray] = []
        self._starts: list[np.ndarray] = []
        self._lines = 0
        self._file: Optional[int] = None
        self._offset = 0

    def add(self, index: np.ndarray, starts: np.ndarray, size: int) -> None:
        """Takes lines.

        Args:
            index: INDEX of each line.
            starts: where they begin, from `filled`.
            size: bytes to go on behind.
        """
        for first in range(0, len(index), self._max_lines):
            some = slice(first, first + self._max_lines)
            if self._lines + len(index[some]) > self._max_lines:
                self._write_run()
            self._index.append(index[some])
            self._starts.append(starts[some] + self.filled)
            self._lines += len(index[some])
        self.filled += size

    def flush(self, pending: int = 0) -> None:
        """Writes a run of all lines and empties the arena, but for `pending` bytes that follow them."""
        self._write_run()
        view = memoryview(self.arena)
        view[:pending] = bytes(view[self.filled : self.filled + pending])
        self.filled = 0

    def close(self) -> None:
        """Writes what is left."""
        self._write_run()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write_run(self) -> None:
        if not self._lines:
            return
        index, starts = np.concatenate(self._index), np.concatenate(self._starts)
        self._index, self._starts, self._lines = [], [], 0
        order = np.lexsort((index["place"], index["key"]))
        index, starts = index[order], starts[order]
        if self._file is None:
            self._file = create(self._path)
        text = self._offset
        if self._pack:
            for some, packed, changed in _packed(self.arena, starts, index):
                index[some] = changed
                self._write(packed)
        else:
            for piece, _ in joined(self.arena, starts, index["length"]):
                self._write(piece)
        table = np.zeros((len(self._bounds) + 1, 2), np.int64)
        table[:-1, 0] = np.searchsorted(index["key"], self._bounds)
        table[-1, 0] = len(index)
        sizes = np.concatenate([[0], np.cumsum(index["length"], dtype=np.int64)])
        table[:, 1] = sizes[table[:, 0]]
        self.cell_lines += np.diff(table[:, 0])
        self.cell_bytes += np.diff(table[:, 1])
        run = Run(self._path, text, self._offset, self._offset + index.nbytes)
        self._write(index.tobytes())
        self._write(table.tobytes())
        self.runs.append(run)

    def _write(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        write_all(self._file, data, self._path)
        self._offset += len(data)


class Load(NamedTuple):
    """Lines of a range of keys, in order: line i is `text[starts[i]:][:lengths[i]]`, packed where `labels[i]` is not 0."""

    text: mmap.mmap
    starts: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    def pieces(self, first: int, last: int) -> Iterator[tuple[bytes, np.ndarray]]:
        """The text of lines [first, last), about `_PIECE` bytes at a time, each time with their lengths."""
        starts, lengths, labels = self.starts[first:last], self.lengths[first:last], self.labels[first:last]
        return _unpacked(self.text, starts, lengths, labels) if labels.any() else joined(self.text, starts, lengths)


class RunReader:
    """Reads ranges of keys out of runs, no more at a time than fits in memory.

    Args:
        runs, bounds, cell_lines, cell_bytes: as the writers made them, summed over the writers.
        arena: memory for text; a line that is longer than it cannot be read.
        max_lines: most lines at a time.
        scratch: a path for a temporary file, used when a cell is larger than that.
    """

    def __init__(
        self,
        runs: list[Run],
        bounds: np.ndarray,
        cell_lines: np.ndarray,
        cell_bytes: np.ndarray,
        arena: mmap.mmap,
        max_lines: int,
        scratch: str,
        high: int = KEYS,
    ) -> None:
        self._runs = runs
        self._bounds = bounds
        self._high = high
        self._lines = cell_lines
        self._bytes = cell_bytes
        self._arena = arena
        self._max_lines = max_lines
        self._scratch = scratch
        self._ends = np.cumsum(cell_lines)
        self._files: dict[str, int] = {}

    def close(self) -> None:
        """Closes the files."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def lines(self, first: int, last: int) -> Iterator[tuple[Load, int, int]]:
        """The lines of ranks [first, last) in the order of keys: a load, and which of its lines."""
        if first >= last:
            return
        low = int(np.searchsorted(self._ends, first, side="right"))
        high = int(np.searchsorted(self._ends, last, side="left")) + 1
        rank = int(self._ends[low - 1]) if low else 0
        for load in self._loads(low, high):
            count = len(load.starts)
            begin, end = max(0, first - rank), min(count, last - rank)
            if begin < end:
                yield load, begin, end
            rank += count

    def _loads(self, low: int, high: int) -> Iterator[Load]:
        """Loads of cells [low, high), as many cells at once as fit."""
        while low < high:
            end, lines, size = low, 0, 0
            while end < high:
                lines += int(self._lines[end])
                size += int(self._bytes[end])
                if lines > self._max_lines or size > len(self._arena):
                    break
                end += 1
            if end > low:
                if self._ends[end - 1] > (self._ends[low - 1] if low else 0):
                    yield self._read(low, end)
                low = end
            else:
                yield from self._split(low)
                low += 1

    def _read(self, low: int, high: int) -> Load:
        view = memoryview(self._arena)
        parts, filled = [], 0
        for run in self._runs:
            index, size = self._read_run(run, low, high, view[filled:])
            filled += size
            parts.append(index)
        index = np.concatenate(parts)
        starts = np.cumsum(index["length"], dtype=np.int64) - index["length"]
        order = np.lexsort((index["place"], index["key"]))
        index = index[order]
        return Load(self._arena, starts[order], index["length"].astype(np.int64), index["label"].copy())

    def _read_run(self, run: Run, low: int, high: int, target: memoryview) -> tuple[np.ndarray, int]:
        """Reads cells [low, high) of one run; returns their index and the bytes of text."""
        first_line, first = self._table(run, low)
        end_line, end = self._table(run, high)
        if first_line == end_line:
            return np.empty(0, INDEX), 0
        index = np.empty(end_line - first_line, INDEX)
        self._fill(run.path, index.data.cast("B"), run.index_at + first_line * INDEX.itemsize)
        self._fill(run.path, target[: end - first], run.text_at + first)
        return index, end - first

    def _table(self, run: Run, cell: int) -> tuple[int, int]:
        row = np.empty(2, np.int64)
        self._fill(run.path, row.data.cast("B"), run.table_at + cell * row.nbytes)
        return int(row[0]), int(row[1])

    def _fill(self, path: str, target: memoryview, offset: int) -> None:
        try:
            if path not in self._files:
                self._files[path] = os.open(path, os.O_RDONLY)
            while len(target):
                count = os.preadv(self._files[path], [target], offset)
                if count == 0:
                    raise DataError(f"{path}: the temporary file is shorter than it was; was it changed? run again")
                target, offset = target[count:], offset + count
        except OSError as error:
            raise DataError(f"{path}: cannot read the temporary file ({error.strerror}); run again") from error

    def _split(self, cell: int) -> Iterator[Load]:
        """Loads of one cell that does not fit: its lines are written once more, in finer cells."""
        low = int(self._bounds[cell])
        high = int(self._bounds[cell + 1]) if cell + 1 < len(self._bounds) else self._high
        finer = cell_bounds(min(1024, 8 * self._loads_needed(cell)), low, high)
        path = f"{self._scratch}+"  # one at a time at each depth
        writer = RunWriter(path, finer, self._arena, self._max_lines)
        try:
            for run in self._runs:
                self._copy(run, cell, writer)
            writer.close()
            reader = RunReader(
                writer.runs, finer, writer.cell_lines, writer.cell_bytes, self._arena, self._max_lines, path, high
            )
            try:
                yield from reader._loads(0, len(finer))
            finally:
                reader.close()
        finally:
            if os.path.exists(path):
                os.unlink(path)

    def _loads_needed(self, cell: int) -> int:
        return int(max(self._bytes[cell] // len(self._arena), self._lines[cell] // self._max_lines)) + 1

    def _copy(self, run: Run, cell: int, writer: RunWriter) -> None:
        (first_line, first), (end_line, end) = self._table(run, cell), self._table(run, cell + 1)
        if end - first + writer.filled > len(writer.arena):
            writer.flush()
        if end_line > first_line:
            index, size = self._read_run(run, cell, cell + 1, memoryview(writer.arena)[writer.filled :])
            writer.add(index, np.cumsum(index["length"], dtype=np.int64) - index["length"], size)


def create(path: str, mode: int = 0o600) -> int:
    """Opens a new file for writing. Raises DataError."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        raise write_error(path, error) from error


def write_all(descriptor: int, data: bytes | memoryview, path: str) -> None:
    """Writes all of `data`. Raises DataError, with the path, when the disk is full or fails."""
    try:
        files.write_all(descriptor, data)
    except OSError as error:
        raise write_error(path, error) from error


def forget(descriptor: int, first: int, size: int) -> None:
    """Tells the kernel that bytes of a file will not be read soon: it writes what is to be written, and its memory is
    used again for what comes next instead of filling the machine's."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, first, size, os.POSIX_FADV_DONTNEED)


def write_error(path: str, error: OSError) -> DataError:
    """The error for a file that could not be written."""
    return DataError(f"{path}: cannot write ({error.strerror or error}); free some space or choose another folder")


def joined(text: mmap.mmap, starts: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[bytes, np.ndarray]]:
    """The lines one after another, about `_PIECE` bytes at a time, each time with their lengths."""
    view = memoryview(text)
    for some in _slices(lengths):
        begins = starts[some].tolist()
        ends = (starts[some] + lengths[some]).tolist()
        yield b"".join([view[begin:end] for begin, end in zip(begins, ends)]), lengths[some]


def _slices(lengths: np.ndarray) -> Iterator[slice]:
    """Cuts lines into groups of about `_PIECE` bytes."""
    sizes = np.cumsum(lengths, dtype=np.int64)
    first, done = 0, 0
    while first < len(lengths):
        last = max(int(np.searchsorted(sizes, done + _PIECE, side="right")), first + 1)
        last = min(last, first + _PIECE_LINES)
        yield slice(first, last)
        first, done = last, int(sizes[last - 1])


# Packed, a line is its image's bytes and then its label; `label` in the index is the length of the label, and 0 for a
# line that is kept as it is.


def _packed(text: mmap.mmap, starts: np.ndarray, index: np.ndarray) -> Iterator[tuple[slice, bytes, np.ndarray]]:
    view = memoryview(text)
    for some in _slices(index["length"]):
        part = index[some].copy()
        pieces = []
        for number, start in enumerate(starts[some].tolist()):
            line = view[start : start + int(part["length"][number])]
            packed = pack_line(bytes(line))
            if packed is not None:
                part["length"][number], part["label"][number] = len(packed[0]), packed[1]
            pieces.append(packed[0] if packed is not None else line)
        yield some, b"".join(pieces), part


def pack_line(line: bytes) -> Optional[tuple[bytes, int]]:
    """The image decoded, with the label behind it, and the label's length; None when that would not give the line back."""
    image, _, label = line[:-1].rpartition(b"\t")
    # Bits behind the last byte of an image may be set: such base64 is decoded to the same bytes as another.
    last = image[-4:]
    if binascii.b2a_base64(binascii.a2b_base64(last), newline=False) != last:
        return None
    return binascii.a2b_base64(image) + label, len(label)


def unpack_line(packed: bytes | memoryview, label: int) -> bytes:
    """The line that `pack_line` packed."""
    image = binascii.b2a_base64(packed[: len(packed) - label], newline=False)
    return b"%b\t%b\n" % (image, bytes(packed[len(packed) - label :]))


def _unpacked(
    text: mmap.mmap, starts: np.ndarray, lengths: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[bytes, np.ndarray]]:
    view = memoryview(text)
    for some in _slices(lengths):
        rows: Iterable[tuple[int, int, int]] = zip(starts[some].tolist(), lengths[some].tolist(), labels[some].tolist())
        lines = [
            unpack_line(view[start : start + length], label) if label else bytes(view[start : start + length])
            for start, length, label in rows
        ]
        yield b"".join(lines), np.array([len(line) for line in lines])
