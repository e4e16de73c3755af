"""The options of a shuffle, and the plan of its work: tasks, and how the memory is divided."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Optional

import numpy as np

from plsc.data.base64_parts import Part
from plsc.errors import ConfigError
from plsc.machine import threads
from plsc.shuffle.runs import LINE_BYTES, cell_bounds

BLOCK = 1 << 20  # bytes of a part; lines that begin in one block draw their keys from one stream
AHEAD = 1 << 16  # bytes read at a time beyond a block, to find the end of its last line
_MAIN_BYTES = 44_000_000  # resident memory of the main process without data (Python 3.11, NumPy 2.4)
_WORKER_BYTES = 28_000_000  # the same of a forked worker
CHECK_LINES = 1 << 14  # lines that are checked at a time, if they are short; sometimes a few more
_CHECK_BYTES = 6_000_000  # memory that such a check takes
_PILLOW_BYTES = 16_000_000  # memory of Pillow with a small image
_ROOM_BYTES = 48_000_000  # memory beyond the least that makes another worker worthwhile: runs should be long
DEFAULT_MEMORY = 512_000_000
DEFAULT_MAX_LINE = 8_000_000


@dataclass(frozen=True)
class Options:
    """The options of the tool; `--help` describes each. Sizes are in bytes.

    Raises:
        ConfigError: A value is out of its range, or the memory is too small for the work.
    """

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
        least_memory = least_bytes(self.workers or 1, self.max_line, self.check)
        if self.memory < least_memory:
            raise ConfigError(
                f"--memory {self.memory / 1e6:g}MB: with --workers {self.workers or 1} and --max_line "
                f"{self.max_line / 1e6:g}MB at least {-(-least_memory // 1_000_000)}MB is needed; give more memory, "
                "fewer workers or a smaller --max_line"
            )


def least_bytes(workers: int, max_line: int, check: bool = False) -> int:
    """Returns the smallest memory that can do the work."""
    return _fixed_bytes(workers, check) + workers * (
        _passing_bytes(max_line) + (max_line + BLOCK + 4 * AHEAD) * 8 // 7 + 1
    )


def _fixed_bytes(workers: int, check: bool) -> int:
    return _MAIN_BYTES + (workers * _WORKER_BYTES if workers > 1 else 0) + (workers * _PILLOW_BYTES if check else 0)


def _passing_bytes(max_line: int) -> int:
    """Returns the memory of a worker for the lines in hand, in addition to the arena and its index."""
    return 2 * (max_line + BLOCK) + _CHECK_BYTES


class Plan(NamedTuple):
    """What a worker needs to know.

    Attributes:
        options: The options of the tool.
        parts: The input files.
        part_offsets: For each part, the bytes of all parts before it.
        tasks: The ranges to read: part, first byte, end.
        bounds: The first key of each cell.
        workers: The number of workers.
        arena: The memory of a worker for the text of lines, in bytes.
        max_lines: The most lines that a worker holds at a time.
        scratch: The folder for temporary files.
        staging: The folder in which the outputs are made.
    """

    options: Options
    parts: list[Part]
    part_offsets: list[int]
    tasks: list[tuple[int, int, int]]
    bounds: np.ndarray
    workers: int
    arena: int
    max_lines: int
    scratch: str
    staging: str


def make_plan(options: Options, parts: list[Part], total: int, scratch: str, staging: str) -> Plan:
    """Divides the parts, `total` bytes in all, into tasks, and the memory among the workers."""
    workers = options.workers or _default_workers(options)
    work = (options.memory - _fixed_bytes(workers, options.check)) // workers - _passing_bytes(options.max_line)
    arena = work * 7 // 8
    # There are more cells than loads, so that several cells fill the arena well. There are several for each file, since
    # the cell in which a file ends is read again for the next one.
    cells = min(4096, max(16, 6 * -(-total // arena), 8 * options.nranks))
    step = max(16, -(-total // (4096 * BLOCK))) * BLOCK
    tasks = [
        (number, first, min(first + step, part.size))
        for number, part in enumerate(parts)
        for first in range(0, part.size, step)
    ]
    return Plan(
        options=options,
        parts=parts,
        part_offsets=[0, *itertools.accumulate(part.size for part in parts)],
        tasks=tasks,
        bounds=cell_bounds(cells),
        workers=workers,
        arena=arena,
        max_lines=max(1, (work - arena) // LINE_BYTES),
        scratch=scratch,
        staging=staging,
    )


def _default_workers(options: Options) -> int:
    least = partial(least_bytes, max_line=options.max_line, check=options.check)
    return next(n for n in range(threads.cores(), 0, -1) if n == 1 or options.memory >= least(n) + n * _ROOM_BYTES)
