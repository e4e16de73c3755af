"""The first pass of a shuffle: reads the parts, checks every line, and writes runs that are sorted by random keys."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional

import numpy as np

from plsc.data.base64_parts import ADVICE, SKIPPED_NAME, Fault, Lines, changed, find_lines, open_part
from plsc.data.encoded_image import check_size, open_image
from plsc.data.pixels import MOST_PIXELS
from plsc.errors import DataError
from plsc.machine.files import drop_from_cache, refuse_links, sync
from plsc.machine.memory import peak_memory
from plsc.shuffle.plan import AHEAD, BLOCK, CHECK_LINES, Plan
from plsc.shuffle.runs import INDEX, Run, RunWriter, make_arena, write_error
from plsc.shuffle.worker_pool import Tasks


class Scan(NamedTuple):
    """What one worker found in the first pass.

    Attributes:
        runs: The runs that it wrote.
        cell_lines: The number of good lines in each cell.
        cell_bytes: The bytes of good lines in each cell.
        lines: The number of lines of each task, good and bad.
        skipped: The number of bad lines of each task that has any.
        largest_label: The largest label, or -1 without a good line.
        fault: The bad line that ended the pass: its task, its number in the task, and its `Fault`.
        peak: The peak memory of the worker, in bytes.
    """

    runs: list[Run]
    cell_lines: np.ndarray
    cell_bytes: np.ndarray
    lines: dict[int, int]
    skipped: dict[int, int]
    largest_label: int
    fault: Optional[tuple[int, int, int]]
    peak: int


def scan_parts(plan: Plan, tasks: Tasks) -> Scan:
    """Does the tasks of this worker. A bad line that is not to be skipped ends the pass, and the result names it."""
    path = os.path.join(plan.scratch, f"runs-{os.getpid()}")
    writer = RunWriter(path, plan.bounds, make_arena(plan.arena), plan.max_lines, plan.options.compress_tmp)
    scanner = _Scanner(plan, writer, tasks)
    for number in tasks:
        scanner.scan(number)
        if scanner.fault is not None:
            tasks.stop()
            break
    if scanner.fault is None:
        writer.close()
    return Scan(
        runs=writer.runs,
        cell_lines=writer.cell_lines,
        cell_bytes=writer.cell_bytes,
        lines=scanner.lines,
        skipped=scanner.skipped,
        largest_label=scanner.largest_label,
        fault=scanner.fault,
        peak=peak_memory(),
    )


class _Scanner:
    """A reader of ranges of parts, which checks their lines, gives them keys and hands them to a writer."""

    def __init__(self, plan: Plan, writer: RunWriter, tasks: Tasks) -> None:
        self._plan = plan
        self._max_line = plan.options.max_line
        self._writer = writer
        self._tasks = tasks
        self.lines: dict[int, int] = {}
        self.skipped: dict[int, int] = {}
        self.largest_label = -1
        self.fault: Optional[tuple[int, int, int]] = None

    def scan(self, number: int) -> None:
        """Takes the lines that begin in the range of a task, up to the first bad line unless those are skipped."""
        part_number, first, end = self._plan.tasks[number]
        part = self._plan.parts[part_number]
        self._number = number
        self.lines[number] = 0
        with open_part(part) as file:
            self._file, self._part = file, part
            self._have = 0  # bytes in the arena after `filled`; the first of them is at `self._position` in the part
            self._position = 0
            if first:
                self._skip_line(first - 1)
            for block in range(first // BLOCK, -(-end // BLOCK)):
                block_end = min((block + 1) * BLOCK, part.size)
                if self._position < block_end:
                    self._scan_block(part_number, block, block_end)
                if self.fault is not None:
                    return
                self._tasks.report(min(block_end, end) - block * BLOCK)
            drop_from_cache(file.fileno(), first, end - first)

    def _scan_block(self, part_number: int, block: int, block_end: int) -> None:
        writer, wanted = self._writer, block_end - self._position
        self._read(wanted)
        newline = self._find_end(wanted)
        too_long = newline < 0
        if too_long:
            newline = writer.arena.rfind(b"\n", writer.filled, writer.filled + wanted)
        region = writer.arena[writer.filled : max(writer.filled, newline + 1)]
        keys = line_keys(self._plan.options.seed, part_number, block, self._position == block * BLOCK)
        for piece in _cut(region):
            self._take(find_lines(piece, self._max_line), keys, part_number, len(piece))
        if too_long and self.fault is None:
            self._note(np.array([0]), np.array([Fault.LONG]))
            self.lines[self._number] += 1
            if self.fault is None:
                self._skip_line(self._position + self._have)

    def _read(self, wanted: int) -> None:
        """Reads until there are `wanted` bytes after `filled`."""
        writer = self._writer
        if writer.filled + wanted > len(writer.arena):
            writer.flush(self._have)
        view = memoryview(writer.arena)
        while self._have < wanted:
            self._file.seek(self._position + self._have)
            try:
                count = self._file.readinto(view[writer.filled + self._have : writer.filled + wanted])
            except OSError as error:
                raise DataError(f"{self._part.path}: cannot read ({error.strerror}); check the disk") from error
            if not count:
                raise changed(self._part)
            self._have += count

    def _find_end(self, wanted: int) -> int:
        """Returns where in the arena the line with the last of `wanted` bytes ends, or -1 if it is too long."""
        writer, start = self._writer, wanted - 1
        while True:
            newline = writer.arena.find(b"\n", writer.filled + start, writer.filled + self._have)
            if newline >= 0:
                return newline
            start = self._have
            ahead = min(AHEAD, self._part.size - self._position - self._have)
            if ahead == 0:  # the last line of the part has no newline
                self._room_for_newline()
                writer.arena[writer.filled + self._have] = 10
                return writer.filled + self._have
            if self._have - wanted > self._max_line:
                return -1
            self._read(self._have + ahead)

    def _room_for_newline(self) -> None:
        if self._writer.filled + self._have == len(self._writer.arena):
            self._writer.flush(self._have)

    def _take(self, lines: Lines, stream: np.random.Philox, part_number: int, size: int) -> None:
        count = len(lines.starts)
        keys = stream.random_raw(count)
        if self._plan.options.check:
            self._check_images(lines)
        bad = np.flatnonzero(lines.faults)
        if len(bad) and self.fault is None:
            self._note(bad, lines.faults[bad])
        good = lines.faults == 0
        index = np.zeros(int(good.sum()), INDEX)
        index["key"] = keys[good]
        # Lines with equal keys, should there be any, are sorted by their place.
        index["place"] = self._plan.part_offsets[part_number] + self._position + lines.starts[good]
        index["length"] = (lines.ends - lines.starts + 1)[good]
        self.largest_label = max(self.largest_label, int(lines.labels[good].max(initial=-1)))
        self.lines[self._number] += count
        self._writer.add(index, lines.starts[good], size)
        self._position += size
        self._have = max(0, self._have - size)

    def _note(self, rows: np.ndarray, faults: np.ndarray) -> None:
        """Records bad lines in a file of the task, as there may be many."""
        rows = rows + self.lines[self._number]
        if not self._plan.options.skip_errors:
            self.fault = (self._number, int(rows[0]), int(faults[0]))
            return
        self.skipped[self._number] = self.skipped.get(self._number, 0) + len(rows)
        path = _skipped_path(self._plan, self._number)
        try:
            with open(path, "ab", opener=refuse_links) as file:
                file.write(np.stack([rows, faults.astype(rows.dtype)], axis=1).astype(np.int64).tobytes())
        except OSError as error:
            raise write_error(path, error) from error

    def _check_images(self, lines: Lines) -> None:
        view = memoryview(self._writer.arena)
        for number in np.flatnonzero(lines.faults == 0).tolist():
            start = self._writer.filled + int(lines.starts[number])
            tab = self._writer.filled + int(lines.tabs[number])
            if not is_image(bytes(view[start:tab])):
                lines.faults[number] = Fault.IMAGE

    def _skip_line(self, position: int) -> None:
        """Moves to what follows the next newline at or after `position`, or to the end of the part."""
        self._have = 0
        while position < self._part.size:
            self._file.seek(position)
            data = self._file.read(AHEAD)
            if not data:
                raise changed(self._part)
            newline = data.find(b"\n")
            if newline >= 0:
                self._position = position + newline + 1
                return
            position += len(data)
        self._position = self._part.size


def line_keys(seed: int, part: int, block: int, at_start: bool) -> np.random.Philox:
    """Returns the stream of keys of the lines that begin in a block of a part: Philox numbers that no other block has.

    The first number belongs to a line that begins exactly where the block does. If there is none (`at_start` is False)
    it is left out. A reader that starts within the part, such as Hadoop's, then finds the same keys for all other
    lines.
    """
    counter = np.array([0, block, part, 0], np.uint64)
    stream = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=counter)
    if not at_start:
        stream.random_raw()
    return stream


def _cut(region: bytes) -> Iterator[bytes]:
    """Yields the region whole or, if it has very many lines, in pieces that end with a newline."""
    count = int(np.count_nonzero(np.frombuffer(region, np.uint8) == 10))  # twice as fast as bytes.count
    step, first = len(region) * CHECK_LINES // max(count, CHECK_LINES), 0
    while first < len(region):
        last = region.find(b"\n", first + step - 1) + 1 or len(region)
        yield region[first:last]
        first = last


def is_image(encoded: bytes) -> bool:
    """Returns whether a base64 image can be decoded, and has no more pixels than a training allows by default."""
    try:
        with open_image(base64.b64decode(encoded)) as image:
            check_size(image, MOST_PIXELS)
            image.load()
    except Exception:  # Pillow's decoders raise many kinds of errors for a broken file
        return False
    return True


def _skipped_path(plan: Plan, task: int) -> str:
    return os.path.join(plan.scratch, f"skipped-{task}")


def _first_lines(plan: Plan, scans: Sequence[Scan]) -> list[int]:
    """Returns for each task the number of its first line in its part."""
    counts = {task: count for scan in scans for task, count in scan.lines.items()}
    firsts, line, last_part = [], 1, -1
    for number, (part, _, _) in enumerate(plan.tasks):
        line = line if part == last_part else 1
        firsts.append(line)
        line, last_part = line + counts.get(number, 0), part
    return firsts


def raise_first_fault(plan: Plan, scans: Sequence[Scan]) -> None:
    """Raises DataError for the first bad line in the order of the list, or if no line is good."""
    faults = [scan.fault for scan in scans if scan.fault is not None]
    if faults:
        task, row, fault = min(faults)
        part = plan.parts[plan.tasks[task][0]]
        line = _first_lines(plan, scans)[task] + row
        raise DataError(f"{part.path}:{line}: {_advice(plan, fault)}")
    if not sum(int(scan.cell_lines.sum()) for scan in scans):
        raise DataError(
            f"{os.path.join(plan.options.data_dir, plan.options.file_list)}: none of its parts has a good line"
        )


def _advice(plan: Plan, fault: int) -> str:
    return ADVICE[Fault(fault)].format(max_line=plan.options.max_line)


def write_skipped(plan: Plan, scans: Sequence[Scan]) -> list[str]:
    """Writes the list of skipped lines. Returns its name, or an empty list if no line was skipped."""
    tasks = sorted(task for scan in scans for task in scan.skipped)
    if not tasks:
        return []
    firsts = _first_lines(plan, scans)
    path = os.path.join(plan.staging, SKIPPED_NAME)
    try:
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as output:
            for task in tasks:
                name = plan.parts[plan.tasks[task][0]].name
                with open(_skipped_path(plan, task), "rb") as file:
                    while data := file.read(16 * 4096):
                        for row, fault in np.frombuffer(data, np.int64).reshape(-1, 2).tolist():
                            output.write(f"{name}:{firsts[task] + row}: {_advice(plan, fault)}\n")
        sync(path)
    except OSError as error:
        raise write_error(path, error) from error
    return [SKIPPED_NAME]


def lines_of_parts(plan: Plan, scans: Sequence[Scan]) -> list[int]:
    """Returns the number of lines of each part, good and bad."""
    counts = [0] * len(plan.parts)
    for scan in scans:
        for task, count in scan.lines.items():
            counts[plan.tasks[task][0]] += count
    return counts
