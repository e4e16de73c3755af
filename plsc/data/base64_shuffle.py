"""Shuffles base64 data sets of any size in bounded memory and splits them for a number of ranks.

Every line gets a random 64-bit key that depends on the seed and the line's place alone; the output is the lines in the
order of their keys. The first pass writes runs sorted by key, the second reads range after range of keys out of all
runs. How many runs and ranges there are depends on the memory; the order does not.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import mmap
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Optional

import numpy as np

from plsc.data.base64_parts import (
    ADVICE,
    FILE_LIST_NAME,
    MANIFEST_NAME,
    SKIPPED_NAME,
    Fault,
    Lines,
    Manifest,
    OutputFile,
    Part,
    changed,
    find_lines,
    open_part,
    rank_file_name,
    read_file_list,
)
from plsc.data.base64_runs import (
    INDEX,
    LINE_BYTES,
    Run,
    RunReader,
    RunWriter,
    cell_bounds,
    create,
    keep_freed_memory,
    make_arena,
    write_all,
    write_error,
)
from plsc.data.base64_workspace import Workspace, check_disk, check_targets, open_workspace, publish, write_file
from plsc.data.worker_pool import Tasks, run_workers
from plsc.errors import ConfigError, DataError

BLOCK = 1 << 20  # lines that begin in one such piece of a part draw their keys from one stream
_AHEAD = 1 << 16  # bytes read at a time beyond a block, for the end of its last line
_MAIN_BYTES = 44_000_000  # resident memory of this process without data (Python 3.11, NumPy 2.4)
_WORKER_BYTES = 28_000_000  # and of a forked worker
_CHECK_LINES = 1 << 14  # short lines are checked this many at a time, or a few more
_CHECK_BYTES = 6_000_000  # memory that takes
_SHORTEST = 7  # bytes of a line
DEFAULT_MEMORY = 512_000_000
DEFAULT_MAX_LINE = 8_000_000

Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """What the tool's options say; sizes in bytes."""

    data_dir: str
    file_list: str
    nranks: int
    output_dir: Optional[str] = None
    seed: int = 0
    memory: int = DEFAULT_MEMORY
    workers: Optional[int] = None
    tmp_dir: Optional[str] = None
    check: bool = False
    skip_errors: bool = False
    compress_tmp: bool = False
    max_line: int = DEFAULT_MAX_LINE

    def __post_init__(self) -> None:
        for name, least in (("nranks", 1), ("seed", 0), ("workers", 1), ("max_line", 1000)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name} {value}: expected at least {least}")
        if self.seed >= 1 << 64:
            raise ConfigError(f"--seed {self.seed}: expected less than 2^64")
        if self.max_line > 1_000_000_000:
            raise ConfigError(f"--max_line {self.max_line}: expected at most 1GB")
        least_memory = least_bytes(self.workers or 1, self.max_line)
        if self.memory < least_memory:
            raise ConfigError(
                f"--memory {self.memory / 1e6:g}MB: with --workers {self.workers or 1} and --max_line "
                f"{self.max_line / 1e6:g}MB at least {-(-least_memory // 1_000_000)}MB is needed; give more memory, "
                "fewer workers or a smaller line"
            )


def least_bytes(workers: int, max_line: int) -> int:
    """The smallest memory that can do the work."""
    return _fixed_bytes(workers) + workers * (_passing_bytes(max_line) + (max_line + BLOCK + 4 * _AHEAD) * 8 // 7 + 1)


def _fixed_bytes(workers: int) -> int:
    return _MAIN_BYTES + (workers * _WORKER_BYTES if workers > 1 else 0)


def _passing_bytes(max_line: int) -> int:
    """Memory of a worker for what it has in hand, beside the arena and its index."""
    return 2 * (max_line + BLOCK) + _CHECK_BYTES


class Result(NamedTuple):
    """What a split came to; memory is the sum of the peaks of all processes, in bytes, 0 where it is not known."""

    manifest: Manifest
    input_bytes: int
    output_bytes: int
    workers: int
    peak_memory: int


class _Plan(NamedTuple):
    """Everything a worker needs to know."""

    options: Options
    parts: list[Part]
    part_offsets: list[int]  # bytes of all parts before
    tasks: list[tuple[int, int, int]]  # part, first byte, end
    bounds: np.ndarray
    workers: int
    arena: int
    max_lines: int
    scratch: str
    staging: str


class _Scan(NamedTuple):
    """What one worker found in the first pass."""

    runs: list[Run]
    cell_lines: np.ndarray
    cell_bytes: np.ndarray
    lines: dict[int, int]  # of each task
    skipped: dict[int, int]
    largest_label: int
    fault: Optional[tuple[int, int, int]]  # task, line of the task, Fault
    peak: int


def shuffle_base64(options: Options, watch: Watch = lambda stage, done, total: None) -> Result:
    """Shuffles the lines of all parts and splits them into one file a rank, beside a file list and a manifest.

    Args:
        options: what to do.
        watch: told the stage ('reading' or 'writing'), the bytes done and the bytes in all, from time to time.

    Raises:
        ConfigError: options that cannot work.
        DataError: an input with a mistake in it, a full disk, files in the way. No output is changed, none is left.
    """
    parts = read_file_list(options.data_dir, options.file_list)
    output_dir = options.output_dir or options.data_dir
    tmp_dir = options.tmp_dir or output_dir
    names = [*map(rank_file_name, range(options.nranks)), FILE_LIST_NAME]
    inputs = [*(part.path for part in parts), os.path.join(options.data_dir, options.file_list)]
    with open_workspace(output_dir, tmp_dir) as workspace:
        earlier = check_targets(output_dir, [*names, SKIPPED_NAME, MANIFEST_NAME], inputs)
        total = sum(part.size for part in parts)
        _check_space(options, parts, total, output_dir, tmp_dir)
        plan = _make_plan(options, parts, total, workspace)
        scans = run_workers(
            partial(_scan, plan), len(plan.tasks), plan.workers, partial(_tell, watch, "reading", total), workspace.lock
        )
        _raise_first_fault(plan, scans)
        written = _write_all_files(plan, scans, workspace, watch)
        manifest = _manifest(plan, scans, [file for file, _ in written])
        names += _write_skipped(plan, scans)
        write_file(os.path.join(workspace.staging, FILE_LIST_NAME), _lines(file.name for file in manifest.files))
        write_file(os.path.join(workspace.staging, MANIFEST_NAME), manifest.to_json().encode())
        publish(workspace, [*names, MANIFEST_NAME], earlier)
        return Result(
            manifest,
            total,
            sum(file.bytes for file in manifest.files),
            plan.workers,
            _peak_of_all(plan, scans, written),
        )


def _tell(watch: Watch, stage: str, total: int, done: int) -> None:
    watch(stage, done, total)


def _lines(names: Any) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def _check_space(options: Options, parts: list[Part], total: int, output_dir: str, tmp_dir: str) -> None:
    with open_part(parts[0]) as file:
        sample = file.read(BLOCK)
    mean_line = max(_SHORTEST, len(sample) // max(1, sample.count(b"\n")))
    lines = total // mean_line + 1
    text = total * 77 // 100 if options.compress_tmp else total
    check_disk(output_dir, total + options.nranks * mean_line + BLOCK, tmp_dir, text + lines * INDEX.itemsize + BLOCK)


def _make_plan(options: Options, parts: list[Part], total: int, workspace: Workspace) -> _Plan:
    workers = options.workers or _default_workers(options)
    work = (options.memory - _fixed_bytes(workers)) // workers - _passing_bytes(options.max_line)
    arena = work * 7 // 8
    # More cells than loads, so that a load of several fills the arena well.
    cells = min(4096, max(16, 6 * -(-total // arena)))
    step = max(16, -(-total // (4096 * BLOCK))) * BLOCK
    tasks = [
        (number, first, min(first + step, part.size))
        for number, part in enumerate(parts)
        for first in range(0, part.size, step)
    ]
    return _Plan(
        options=options,
        parts=parts,
        part_offsets=[0, *itertools.accumulate(part.size for part in parts)],
        tasks=tasks,
        bounds=cell_bounds(cells),
        workers=workers,
        arena=arena,
        max_lines=max(1, (work - arena) // LINE_BYTES),
        scratch=workspace.scratch,
        staging=workspace.staging,
    )


def _default_workers(options: Options) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return next(n for n in range(cores, 0, -1) if n == 1 or options.memory >= least_bytes(n, options.max_line))


# First pass


def _scan(plan: _Plan, tasks: Tasks) -> _Scan:
    keep_freed_memory()
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
    return _Scan(
        writer.runs,
        writer.cell_lines,
        writer.cell_bytes,
        scanner.lines,
        scanner.skipped,
        scanner.largest_label,
        scanner.fault,
        _peak_memory(),
    )


class _Scanner:
    """Reads ranges of parts into a writer's arena, checks their lines and gives them keys."""

    def __init__(self, plan: _Plan, writer: RunWriter, tasks: Tasks) -> None:
        self._plan = plan
        self._max_line = plan.options.max_line
        self._writer = writer
        self._tasks = tasks
        self.lines: dict[int, int] = {}
        self.skipped: dict[int, int] = {}
        self.largest_label = -1
        self.fault: Optional[tuple[int, int, int]] = None

    def scan(self, number: int) -> None:
        """Takes the lines that begin in the range of task `number`, up to the first bad one unless those are skipped."""
        part_number, first, end = self._plan.tasks[number]
        part = self._plan.parts[part_number]
        self._number = number
        self.lines[number] = 0
        with open_part(part) as file:
            self._file, self._part = file, part
            self._have = 0  # bytes in the arena behind `filled`; the first of them is at `self._position` in the part
            self._position = 0
            if first:
                self._skip_line(first - 1)
            for block in range(first // BLOCK, -(-end // BLOCK)):
                block_end = min((block + 1) * BLOCK, part.size)
                if self._position < block_end:
                    self._scan_block(part_number, block, block_end)
                if self.fault is not None:
                    return
        self._tasks.report(end - first)

    def _scan_block(self, part_number: int, block: int, block_end: int) -> None:
        writer, wanted = self._writer, block_end - self._position
        self._read(wanted)
        newline = self._find_end(wanted)
        too_long = newline < 0
        if too_long:
            newline = writer.arena.rfind(b"\n", writer.filled, writer.filled + wanted)
        region = writer.arena[writer.filled : max(writer.filled, newline + 1)]
        keys = line_keys(self._plan.options.seed, part_number, block)
        for piece in _cut(region):
            self._take(find_lines(piece, self._max_line), keys, part_number, len(piece))
        if too_long and self.fault is None:
            self._note(np.array([0]), np.array([Fault.LONG]))
            self.lines[self._number] += 1
            if self.fault is None:
                self._skip_line(self._position + self._have)

    def _read(self, wanted: int) -> None:
        """Makes sure of `wanted` bytes behind `filled`."""
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
        """Where in the arena the line ends that the last of `wanted` bytes is in; -1 when it is too long."""
        writer, start = self._writer, wanted - 1
        while True:
            newline = writer.arena.find(b"\n", writer.filled + start, writer.filled + self._have)
            if newline >= 0:
                return newline
            start = self._have
            ahead = min(_AHEAD, self._part.size - self._position - self._have)
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
        # Equal keys, if ever, go by the place.
        index["place"] = self._plan.part_offsets[part_number] + self._position + lines.starts[good]
        index["length"] = (lines.ends - lines.starts + 1)[good]
        self.largest_label = max(self.largest_label, int(lines.labels[good].max(initial=-1)))
        self.lines[self._number] += count
        self._writer.add(index, lines.starts[good], size)
        self._position += size
        self._have = max(0, self._have - size)

    def _note(self, rows: np.ndarray, faults: np.ndarray) -> None:
        """Keeps bad lines, in a file of the task: there may be many."""
        rows = rows + self.lines[self._number]
        if not self._plan.options.skip_errors:
            self.fault = (self._number, int(rows[0]), int(faults[0]))
            return
        self.skipped[self._number] = self.skipped.get(self._number, 0) + len(rows)
        path = _skipped_path(self._plan, self._number)
        try:
            with open(path, "ab") as file:
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
        """Goes on behind the next newline at or after `position`, or at the end of the part."""
        self._have = 0
        while position < self._part.size:
            self._file.seek(position)
            data = self._file.read(_AHEAD)
            if not data:
                raise changed(self._part)
            newline = data.find(b"\n")
            if newline >= 0:
                self._position = position + newline + 1
                return
            position += len(data)
        self._position = self._part.size


def line_keys(seed: int, part: int, block: int) -> np.random.Philox:
    """The stream of keys of the lines that begin in one block of a part: Philox numbers that no other block has."""
    counter = np.array([0, block, part, 0], np.uint64)
    return np.random.Philox(key=np.array([seed, 0], np.uint64), counter=counter)


def _cut(region: bytes) -> Iterator[bytes]:
    """The region whole, or, when it has very many lines, in pieces that end with a newline."""
    lines = np.count_nonzero(np.frombuffer(region, np.uint8) == 10) if region else 0
    step, first = len(region) * _CHECK_LINES // max(lines, _CHECK_LINES), 0
    while first < len(region):
        last = region.find(b"\n", first + step - 1) + 1 or len(region)
        yield region[first:last]
        first = last


def is_image(encoded: bytes) -> bool:
    """Whether Pillow can decode a base64 image."""
    import base64

    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            image.load()
    except Exception:  # Pillow's decoders raise whatever they meet in a broken file
        return False
    return True


def _skipped_path(plan: _Plan, task: int) -> str:
    return os.path.join(plan.scratch, f"skipped-{task}")


def _first_lines(plan: _Plan, scans: Sequence[_Scan]) -> list[int]:
    """For each task the number, in its part, of its first line."""
    counts = {task: count for scan in scans for task, count in scan.lines.items()}
    firsts, line, last_part = [], 1, -1
    for number, (part, _, _) in enumerate(plan.tasks):
        line = line if part == last_part else 1
        firsts.append(line)
        line, last_part = line + counts.get(number, 0), part
    return firsts


def _raise_first_fault(plan: _Plan, scans: Sequence[_Scan]) -> None:
    faults = [scan.fault for scan in scans if scan.fault is not None]
    if faults:
        task, row, fault = min(faults)
        part = plan.parts[plan.tasks[task][0]]
        line = _first_lines(plan, scans)[task] + row
        raise DataError(f"{part.path}:{line}: {_advice(plan, fault)}")
    if not sum(int(scan.cell_lines.sum()) for scan in scans):
        raise DataError(f"{os.path.join(plan.options.data_dir, plan.options.file_list)}: no part has a good line in it")


def _advice(plan: _Plan, fault: int) -> str:
    return ADVICE[Fault(fault)].format(max_line=plan.options.max_line)


def _write_skipped(plan: _Plan, scans: Sequence[_Scan]) -> list[str]:
    """Writes the list of skipped lines; returns its name, or nothing when there is none."""
    tasks = sorted(task for scan in scans for task in scan.skipped)
    if not tasks:
        return []
    firsts = _first_lines(plan, scans)
    path = os.path.join(plan.staging, SKIPPED_NAME)
    try:
        with open(path, "w", encoding="utf-8") as output:
            for task in tasks:
                name = plan.parts[plan.tasks[task][0]].name
                with open(_skipped_path(plan, task), "rb") as file:
                    while data := file.read(16 * 4096):
                        for row, fault in np.frombuffer(data, np.int64).reshape(-1, 2).tolist():
                            output.write(f"{name}:{firsts[task] + row}: {_advice(plan, fault)}\n")
            output.flush()
            os.fsync(output.fileno())
    except OSError as error:
        raise write_error(path, error) from error
    return [SKIPPED_NAME]


# Second pass


class _Split(NamedTuple):
    """Which ranks of the shuffled order go to which file: each gets `each`, the first `rest` one more."""

    each: int
    rest: int
    nranks: int

    def first(self, file: int) -> int:
        return file * self.each + min(file, self.rest)

    def padding(self, file: int) -> int:
        return int(self.rest > 0 and file >= self.rest)


def _write_all_files(
    plan: _Plan, scans: Sequence[_Scan], workspace: Workspace, watch: Watch
) -> list[tuple[OutputFile, int]]:
    runs = [run for scan in scans for run in scan.runs]
    cell_lines = np.sum([scan.cell_lines for scan in scans], axis=0)
    cell_bytes = np.sum([scan.cell_bytes for scan in scans], axis=0)
    samples = int(cell_lines.sum())
    split = _Split(*divmod(samples, plan.options.nranks), plan.options.nranks)
    reader = partial(_reader, plan, runs, cell_lines, cell_bytes)
    padding = run_workers(
        partial(_write_padding, plan, split, reader, samples), 1, plan.workers, lambda done: None, workspace.lock
    )
    total = sum(part.size for part in plan.parts)
    results = run_workers(
        partial(_write_files, plan, split, reader, max(padding, key=len)),
        plan.options.nranks,
        min(plan.workers, plan.options.nranks),
        partial(_tell, watch, "writing", total),
        workspace.lock,
    )
    return sorted(
        (entry for result in results for entry in result), key=lambda entry: int(entry[0].name.split("_")[-1])
    )


def _reader(
    plan: _Plan, runs: list[Run], cell_lines: np.ndarray, cell_bytes: np.ndarray, arena: mmap.mmap, name: str
) -> RunReader:
    path = os.path.join(plan.scratch, name)
    return RunReader(runs, plan.bounds, cell_lines, cell_bytes, arena, plan.max_lines, path)


def _write_padding(plan: _Plan, split: _Split, make_reader: Any, samples: int, tasks: Tasks) -> array:
    """Puts the lines that stand a second time into a file; returns where each begins, and the end.

    They are the first of the shuffled order, as random a choice as any, and distinct as long as there are enough.
    """
    offsets = array("q", [0])
    wanted = min(samples, split.nranks - split.rest if split.rest else 0)
    if not wanted or not list(tasks):  # a single task
        return offsets
    path = os.path.join(plan.scratch, "padding")
    reader = make_reader(make_arena(plan.arena), "split-padding")
    descriptor = create(path)
    try:
        for load, begin, end in reader.lines(0, wanted):
            for number in range(begin, end):
                line = next(load.pieces(number, number + 1))
                write_all(descriptor, line, path)
                offsets.append(offsets[-1] + len(line))
    finally:
        os.close(descriptor)
        reader.close()
    return offsets


def _write_files(
    plan: _Plan, split: _Split, make_reader: Any, padding: array, tasks: Tasks
) -> list[tuple[OutputFile, int]]:
    keep_freed_memory()
    reader = make_reader(make_arena(plan.arena), f"split-{os.getpid()}")
    try:
        return [(_write_file(plan, split, reader, padding, tasks, number), _peak_memory()) for number in tasks]
    finally:
        reader.close()


def _write_file(plan: _Plan, split: _Split, reader: RunReader, padding: array, tasks: Tasks, number: int) -> OutputFile:
    name = rank_file_name(number)
    path = os.path.join(plan.staging, name)
    digest, size = hashlib.sha256(), 0
    descriptor = create(path, 0o666)
    try:
        for piece in _pieces(plan, split, reader, padding, number):
            digest.update(piece)
            write_all(descriptor, piece, path)
            size += len(piece)
            tasks.report(len(piece))
        os.fsync(descriptor)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        os.close(descriptor)
    samples = split.first(number + 1) - split.first(number) + split.padding(number)
    return OutputFile(name, samples, split.padding(number), size, digest.hexdigest())


def _pieces(plan: _Plan, split: _Split, reader: RunReader, padding: array, number: int) -> Iterator[bytes]:
    for load, begin, end in reader.lines(split.first(number), split.first(number + 1)):
        yield from load.pieces(begin, end)
    if split.padding(number):
        which = (number - split.rest) % (len(padding) - 1)
        with open(os.path.join(plan.scratch, "padding"), "rb") as file:
            file.seek(padding[which])
            yield file.read(padding[which + 1] - padding[which])


def _manifest(plan: _Plan, scans: Sequence[_Scan], files: list[OutputFile]) -> Manifest:
    padding = sum(file.padding for file in files)
    return Manifest(
        nranks=plan.options.nranks,
        seed=plan.options.seed,
        samples=sum(file.samples for file in files) - padding,
        padding=padding,
        skipped=sum(sum(scan.skipped.values()) for scan in scans),
        samples_per_file=files[0].samples,
        largest_label=max(scan.largest_label for scan in scans),
        files=files,
        source_list=plan.options.file_list,
        sources=[
            {"name": part.name, "bytes": part.size, "lines": count}
            for part, count in zip(plan.parts, _lines_of_parts(plan, scans))
        ],
    )


def _lines_of_parts(plan: _Plan, scans: Sequence[_Scan]) -> list[int]:
    counts = [0] * len(plan.parts)
    for scan in scans:
        for task, count in scan.lines.items():
            counts[plan.tasks[task][0]] += count
    return counts


def _peak_memory() -> int:
    """The most memory this process has had, in bytes."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0


def _peak_of_all(plan: _Plan, scans: Sequence[_Scan], written: Sequence[tuple[OutputFile, int]]) -> int:
    if plan.workers == 1:
        return _peak_memory()
    scanning = sum(scan.peak for scan in scans)
    writing = sum(sorted((peak for _, peak in written), reverse=True)[: plan.workers])
    return _peak_memory() + max(scanning, writing)
