"""The second pass of a shuffle: reads all runs, one range of keys after another, and writes the files of the ranks."""

from __future__ import annotations

import hashlib
import mmap
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from plsc.data.base64_index import LENGTH, begin_index, index_name
from plsc.data.base64_parts import OutputFile, rank_file_name
from plsc.machine.files import drop_from_cache
from plsc.machine.memory import peak_memory
from plsc.shuffle.plan import Plan
from plsc.shuffle.runs import Run, RunReader, create, make_arena, write_all, write_error
from plsc.shuffle.scan import Scan
from plsc.shuffle.worker_pool import Tasks, run_workers

_DROP_BYTES = 32_000_000  # bytes after which the system is asked to write them to the disk


class Split(NamedTuple):
    """The division of the shuffled order into files, by the position of lines in that order.

    Attributes:
        each: The number of lines that every file gets.
        rest: The number of files, from the first on, that get one more.
        nranks: The number of files.
    """

    each: int
    rest: int
    nranks: int

    @classmethod
    def of(cls, samples: int, nranks: int) -> Split:
        """Divides `samples` lines into `nranks` files."""
        return cls(*divmod(samples, nranks), nranks)

    @property
    def samples(self) -> int:
        """The number of lines without the copies."""
        return self.each * self.nranks + self.rest

    def first(self, file: int) -> int:
        """Returns the position of the first line of a file."""
        return file * self.each + min(file, self.rest)

    def padding(self, file: int) -> int:
        """Returns 1 if the file ends with a copy, and otherwise 0."""
        return int(self.rest > 0 and file >= self.rest)

    @property
    def copied(self) -> int:
        """The number of lines that are copied: the first of the shuffled order, which is as random a choice as any."""
        return min(self.samples, self.nranks - self.rest if self.rest else 0)

    def copy(self, file: int) -> int:
        """Returns the position of the line whose copy ends the file. A second copy comes after one of every line."""
        return (file - self.rest) % self.copied


def write_all_files(plan: Plan, scans: Sequence[Scan], watch: Callable[[int], None]) -> list[tuple[OutputFile, int]]:
    """Writes the file of each rank into the staging folder, so that it outlasts a power cut.

    Args:
        plan: The plan of the work.
        scans: What the workers of the first pass found.
        watch: A function that is called now and then with the bytes written so far.

    Returns:
        The files in the order of ranks, each with the peak memory of its worker up to then, in bytes.
    """
    runs = [run for scan in scans for run in scan.runs]
    cell_lines = np.sum([scan.cell_lines for scan in scans], axis=0)
    cell_bytes = np.sum([scan.cell_bytes for scan in scans], axis=0)
    split = Split.of(int(cell_lines.sum()), plan.options.nranks)
    reader = partial(_reader, plan, runs, cell_lines, cell_bytes)
    padding = run_workers(partial(_write_padding, plan, split, reader), 1, plan.workers, lambda done: None)
    results = run_workers(
        partial(_write_files, plan, split, reader, max(padding, key=len)),
        plan.options.nranks,
        min(plan.workers, plan.options.nranks),
        watch,
    )
    return sorted(
        (entry for result in results for entry in result), key=lambda entry: int(entry[0].name.split("_")[-1])
    )


def _reader(
    plan: Plan, runs: list[Run], cell_lines: np.ndarray, cell_bytes: np.ndarray, arena: mmap.mmap, name: str
) -> RunReader:
    return RunReader(
        runs=runs,
        bounds=plan.bounds,
        cell_lines=cell_lines,
        cell_bytes=cell_bytes,
        arena=arena,
        max_lines=plan.max_lines,
        scratch=os.path.join(plan.scratch, name),
    )


def _write_padding(plan: Plan, split: Split, make_reader: Any, tasks: Tasks) -> array:
    """Writes the lines to be copied into a file. Returns where each begins, and the end."""
    offsets = array("q", [0])
    if not split.copied or not list(tasks):  # there is one task, for one of the workers
        return offsets
    path = os.path.join(plan.scratch, "padding")
    reader = make_reader(make_arena(plan.arena), "split-padding")
    descriptor = create(path)
    try:
        for load, begin, end in reader.lines(0, split.copied):
            for number in range(begin, end):
                line, _ = next(load.pieces(number, number + 1))
                write_all(descriptor, line, path)
                offsets.append(offsets[-1] + len(line))
    finally:
        os.close(descriptor)
        reader.close()
    return offsets


def _write_files(
    plan: Plan, split: Split, make_reader: Any, padding: array, tasks: Tasks
) -> list[tuple[OutputFile, int]]:
    reader = make_reader(make_arena(plan.arena), f"split-{os.getpid()}")
    try:
        return [(_write_file(plan, split, reader, padding, tasks, number), peak_memory()) for number in tasks]
    finally:
        reader.close()


def _write_file(plan: Plan, split: Split, reader: RunReader, padding: array, tasks: Tasks, number: int) -> OutputFile:
    name = rank_file_name(number)
    path = os.path.join(plan.staging, name)
    samples = split.first(number + 1) - split.first(number) + split.padding(number)
    digest, size, dropped = hashlib.sha256(), 0, 0
    descriptor = create(path, 0o666)
    try:
        with open(os.path.join(plan.staging, index_name(number)), "xb") as index:
            begin_index(index, samples)
            for piece, lengths in _pieces(plan, split, reader, padding, number):
                digest.update(piece)
                write_all(descriptor, piece, path)
                index.write(lengths.astype(LENGTH).tobytes())
                size += len(piece)
                tasks.report(len(piece))
                if size - dropped > _DROP_BYTES:
                    drop_from_cache(descriptor, 0, size)
                    dropped = size
            index.flush()
            os.fsync(index.fileno())
        os.fsync(descriptor)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        os.close(descriptor)
    return OutputFile(name, samples, split.padding(number), size, digest.hexdigest())


def _pieces(
    plan: Plan, split: Split, reader: RunReader, padding: array, number: int
) -> Iterator[tuple[bytes, np.ndarray]]:
    for load, begin, end in reader.lines(split.first(number), split.first(number + 1)):
        yield from load.pieces(begin, end)
    if split.padding(number):
        which = split.copy(number)
        with open(os.path.join(plan.scratch, "padding"), "rb") as file:
            file.seek(padding[which])
            size = padding[which + 1] - padding[which]
            yield file.read(size), np.array([size])
