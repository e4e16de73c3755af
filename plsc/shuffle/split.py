"""Second pass of a base64 shuffle: reads range after range of keys out of all runs and writes the files of the ranks."""

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
from plsc.machine.memory import peak_memory
from plsc.shuffle.plan import Plan
from plsc.shuffle.runs import Run, RunReader, create, forget, keep_freed_memory, make_arena, write_all, write_error
from plsc.shuffle.scan import Scan
from plsc.shuffle.worker_pool import Tasks, run_workers

_FORGET_BYTES = 32_000_000  # written before the disk is told to begin


class Split(NamedTuple):
    """Which ranks of the shuffled order go to which file: each gets `each`, the first `rest` one more."""

    each: int
    rest: int
    nranks: int

    @classmethod
    def of(cls, samples: int, nranks: int) -> Split:
        """Of so many lines for so many files."""
        return cls(*divmod(samples, nranks), nranks)

    @property
    def samples(self) -> int:
        """Lines, without the copies."""
        return self.each * self.nranks + self.rest

    def first(self, file: int) -> int:
        """The rank of the file's first line."""
        return file * self.each + min(file, self.rest)

    def padding(self, file: int) -> int:
        """1 if the file ends with a copy."""
        return int(self.rest > 0 and file >= self.rest)

    @property
    def copied(self) -> int:
        """How many lines stand a second time: the first of the shuffled order, as random a choice as any other."""
        return min(self.samples, self.nranks - self.rest if self.rest else 0)

    def copy(self, file: int) -> int:
        """The rank of the line that ends the file as a copy; no line stands a third time before all stand twice."""
        return (file - self.rest) % self.copied


def write_all_files(
    plan: Plan, scans: Sequence[Scan], lock: int, watch: Callable[[int], None]
) -> list[tuple[OutputFile, int]]:
    """Writes and fsyncs the file of each rank in the staging folder.

    Args:
        scans: what the workers of the first pass found.
        lock: a file descriptor the workers shall not keep open.
        watch: told how many bytes have been written.

    Returns:
        The files in the order of ranks, each with the most memory its worker had had by then, in bytes.
    """
    runs = [run for scan in scans for run in scan.runs]
    cell_lines = np.sum([scan.cell_lines for scan in scans], axis=0)
    cell_bytes = np.sum([scan.cell_bytes for scan in scans], axis=0)
    split = Split.of(int(cell_lines.sum()), plan.options.nranks)
    reader = partial(_reader, plan, runs, cell_lines, cell_bytes)
    padding = run_workers(partial(_write_padding, plan, split, reader), 1, plan.workers, lambda done: None, lock)
    results = run_workers(
        partial(_write_files, plan, split, reader, max(padding, key=len)),
        plan.options.nranks,
        min(plan.workers, plan.options.nranks),
        watch,
        lock,
    )
    return sorted(
        (entry for result in results for entry in result), key=lambda entry: int(entry[0].name.split("_")[-1])
    )


def _reader(
    plan: Plan, runs: list[Run], cell_lines: np.ndarray, cell_bytes: np.ndarray, arena: mmap.mmap, name: str
) -> RunReader:
    path = os.path.join(plan.scratch, name)
    return RunReader(runs, plan.bounds, cell_lines, cell_bytes, arena, plan.max_lines, path)


def _write_padding(plan: Plan, split: Split, make_reader: Any, tasks: Tasks) -> array:
    """Puts the lines that stand a second time into a file; returns where each begins, and the end."""
    offsets = array("q", [0])
    if not split.copied or not list(tasks):  # a single task
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
    keep_freed_memory()
    reader = make_reader(make_arena(plan.arena), f"split-{os.getpid()}")
    try:
        return [(_write_file(plan, split, reader, padding, tasks, number), peak_memory()) for number in tasks]
    finally:
        reader.close()


def _write_file(plan: Plan, split: Split, reader: RunReader, padding: array, tasks: Tasks, number: int) -> OutputFile:
    name = rank_file_name(number)
    path = os.path.join(plan.staging, name)
    samples = split.first(number + 1) - split.first(number) + split.padding(number)
    digest, size, forgotten = hashlib.sha256(), 0, 0
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
                if size - forgotten > _FORGET_BYTES:
                    forget(descriptor, 0, size)
                    forgotten = size
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
