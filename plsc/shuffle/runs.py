"""Sorted runs on disk: lines in the order of their random keys, so that any range of keys is read with few reads.

A run holds the lines that fitted in memory at once: first their text, then their index, then a table of where each cell
begins. Cells are equal ranges of keys and the same for all runs, so that one cell of all runs is a random share of all
lines.
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
LINE_BYTES = 160  # memory for a line in addition to its text, while runs are sorted
_PIECE = 1 << 18  # bytes that are joined for one write; few enough to stay in the cache of the processor
_PIECE_LINES = 4096


class Run(NamedTuple):
    """The file of a run, and where its text, its index and its table begin."""

    path: str
    text_at: int
    index_at: int
    table_at: int


def cell_bounds(count: int, low: int = 0, high: int = KEYS) -> np.ndarray:
    """Returns the first key of each of `count` equal ranges of [low, high), or of fewer if there are fewer keys."""
    count = min(count, high - low)
    return np.array([low + number * (high - low) // count for number in range(count)], np.uint64)


def make_arena(size: int) -> mmap.mmap:
    """Allocates `size` bytes of memory. Parts that are never used cost nothing."""
    arena = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        arena.madvise(mmap.MADV_HUGEPAGE)
    return arena


class RunWriter:
    """A writer that collects lines in a fixed piece of memory, and writes a run whenever that is full.

    The caller reads text into `arena[filled:]`, and then calls `add` to say which parts of it are lines. Text that was
    not added yet survives a flush, which moves it to the new `filled`.

    Args:
        path: The file for the runs.
        bounds: The first key of each cell.
        arena: The memory for text.
        max_lines: The most lines of a run.
        pack: Whether to store images decoded, which takes less space.

    Attributes:
        arena: The memory for text.
        filled: The number of bytes in it that belong to lines.
        runs: The runs that have been written.
        cell_lines: The number of lines in each cell, over all runs.
        cell_bytes: The bytes of text on disk in each cell, over all runs.
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
        """Adds lines.

        Args:
            index: The INDEX entry of each line.
            starts: Where the lines begin, counted from `filled`.
            size: The number of bytes by which `filled` advances.
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
        """Writes a run of all lines and empties the arena, except for `pending` bytes that follow the lines."""
        self._write_run()
        view = memoryview(self.arena)
        view[:pending] = bytes(view[self.filled : self.filled + pending])
        self.filled = 0

    def close(self) -> None:
        """Writes the remaining lines and closes the file."""
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
    """The lines of a range of keys, in order.

    Line i is `text[starts[i] : starts[i] + lengths[i]]`. It is packed if `labels[i]` is not 0.
    """

    text: mmap.mmap
    starts: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    def pieces(self, first: int, last: int) -> Iterator[tuple[bytes, np.ndarray]]:
        """Yields the lines [first, last) joined in pieces of about `_PIECE` bytes, each with their lengths."""
        starts, lengths, labels = self.starts[first:last], self.lengths[first:last], self.labels[first:last]
        return _unpacked(self.text, starts, lengths, labels) if labels.any() else joined(self.text, starts, lengths)


class RunReader:
    """A reader of ranges of keys, which takes no more out of the runs at a time than fits in memory.

    Args:
        runs: The runs of all writers.
        bounds: The first key of each cell.
        cell_lines: The number of lines in each cell, over all writers.
        cell_bytes: The bytes of text in each cell, over all writers.
        arena: The memory for text. A longer line cannot be read.
        max_lines: The most lines to hold at a time.
        scratch: A path for a temporary file, which is used if a cell does not fit in memory.
        high: The end of the last cell.
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
        """Closes the files of the runs."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def lines(self, first: int, last: int) -> Iterator[tuple[Load, int, int]]:
        """Yields the lines at positions [first, last) in the order of keys, as loads with the range to take of each."""
        if first >= last:
            return
        low = int(np.searchsorted(self._ends, first, side="right"))
        high = int(np.searchsorted(self._ends, last, side="left")) + 1
        position = int(self._ends[low - 1]) if low else 0
        for load in self._loads(low, high):
            count = len(load.starts)
            begin, end = max(0, first - position), min(count, last - position)
            if begin < end:
                yield load, begin, end
            position += count

    def _loads(self, low: int, high: int) -> Iterator[Load]:
        """Yields the cells [low, high) in loads of as many cells as fit in memory."""
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
        """Reads cells [low, high) of one run. Returns their index and the size of their text."""
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
                    raise DataError(
                        f"{path}: the temporary file has become shorter; run again, and let nothing else write there"
                    )
                target, offset = target[count:], offset + count
        except OSError as error:
            raise DataError(f"{path}: cannot read the temporary file ({error.strerror}); run again") from error

    def _split(self, cell: int) -> Iterator[Load]:
        """Yields loads of a cell that does not fit in memory: its lines are written once more, in finer cells."""
        low = int(self._bounds[cell])
        high = int(self._bounds[cell + 1]) if cell + 1 < len(self._bounds) else self._high
        finer = cell_bounds(min(1024, 8 * self._loads_needed(cell)), low, high)
        path = f"{self._scratch}+"  # a longer name at each depth, which has one such file at a time
        writer = RunWriter(path, finer, self._arena, self._max_lines)
        try:
            for run in self._runs:
                self._copy(run, cell, writer)
            writer.close()
            reader = RunReader(
                runs=writer.runs,
                bounds=finer,
                cell_lines=writer.cell_lines,
                cell_bytes=writer.cell_bytes,
                arena=self._arena,
                max_lines=self._max_lines,
                scratch=path,
                high=high,
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
    """Makes a file and returns its descriptor. Raises DataError, also if something has that name."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except OSError as error:
        raise write_error(path, error) from error


def write_all(descriptor: int, data: bytes | memoryview, path: str) -> None:
    """Writes all of `data`. Raises DataError, with the path, if the disk is full or fails."""
    try:
        files.write_all(descriptor, data)
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: str, error: OSError) -> DataError:
    """Returns the error for a file that could not be written."""
    return DataError(f"{path}: cannot write ({error.strerror or error}); free some space or choose another folder")


def joined(text: mmap.mmap, starts: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[bytes, np.ndarray]]:
    """Yields the joined lines in pieces of about `_PIECE` bytes, each with the lengths of its lines."""
    view = memoryview(text)
    for some in _slices(lengths):
        begins = starts[some].tolist()
        ends = (starts[some] + lengths[some]).tolist()
        yield b"".join([view[begin:end] for begin, end in zip(begins, ends)]), lengths[some]


def _slices(lengths: np.ndarray) -> Iterator[slice]:
    """Yields slices of lines of about `_PIECE` bytes."""
    sizes = np.cumsum(lengths, dtype=np.int64)
    first, done = 0, 0
    while first < len(lengths):
        last = max(int(np.searchsorted(sizes, done + _PIECE, side="right")), first + 1)
        last = min(last, first + _PIECE_LINES)
        yield slice(first, last)
        first, done = last, int(sizes[last - 1])


# A packed line is the bytes of its image, followed by its label. `label` in the index is the length of that label, or 0
# for a line that is stored as it is.


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
    """Returns the decoded image followed by the label, and the length of the label. None if that cannot be undone."""
    image, _, label = line[:-1].rpartition(b"\t")
    # Bits after the last byte of an image may be set, and then another text is decoded to the same bytes.
    last = image[-4:]
    if binascii.b2a_base64(binascii.a2b_base64(last), newline=False) != last:
        return None
    return binascii.a2b_base64(image) + label, len(label)


def unpack_line(packed: bytes | memoryview, label: int) -> bytes:
    """Returns the line that `pack_line` packed."""
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
