"""The local engine: shuffles base64 data sets of any size in bounded memory, and splits them for a number of ranks.

Every line gets a random 64-bit key that depends only on the seed and on the place of the line. The output is the lines
in the order of their keys. The first pass writes runs that are sorted by key; the second pass reads one range of keys
after another out of all runs. The number of runs and ranges depends on the memory, but the order does not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from plsc.data.base64_index import LENGTH, index_name
from plsc.data.base64_parts import (
    FILE_LIST_NAME,
    MANIFEST_NAME,
    SKIPPED_NAME,
    Manifest,
    OutputFile,
    Part,
    open_part,
    rank_file_name,
    read_file_list,
)
from plsc.machine.memory import peak_memory
from plsc.machine.names import to_text
from plsc.shuffle.plan import BLOCK, Options, Plan, make_plan
from plsc.shuffle.runs import INDEX
from plsc.shuffle.scan import Scan, lines_of_parts, raise_first_fault, scan_parts, write_skipped
from plsc.shuffle.split import write_all_files
from plsc.shuffle.worker_pool import run_workers
from plsc.shuffle.workspace import check_disk, check_targets, finish, open_workspace

Watch = Callable[[str, int, int], None]
_SHORTEST = 7  # bytes of the shortest line


class Result(NamedTuple):
    """The outcome of a split.

    Attributes:
        manifest: The description of the outputs.
        input_bytes: The size of all parts.
        output_bytes: The size of all outputs.
        workers: The number of workers.
        peak_memory: The sum of the peaks of all processes, in bytes; 0 where it is not known.
    """

    manifest: Manifest
    input_bytes: int
    output_bytes: int
    workers: int
    peak_memory: int


def shuffle_base64(options: Options, watch: Watch = lambda stage, done, total: None) -> Result:
    """Shuffles the lines of all parts and splits them into one file per rank, with a file list and a manifest.

    Args:
        options: The options of the tool.
        watch: A function that is called now and then with the stage ('reading' or 'writing'), the bytes done and all
            bytes.

    Returns:
        What was written.

    Raises:
        ConfigError: The options cannot work.
        DataError: An input has a mistake, a disk is full, or files are in the way. No output is changed or left behind.
    """
    parts = read_file_list(options.data_dir, options.file_list)
    output_dir = options.output_dir or options.data_dir
    tmp_dir = options.tmp_dir or output_dir
    numbers = range(options.nranks)
    names = [*map(rank_file_name, numbers), *map(index_name, numbers), FILE_LIST_NAME]
    inputs = [*(part.path for part in parts), os.path.join(options.data_dir, options.file_list)]
    with open_workspace(output_dir, tmp_dir) as workspace:
        earlier = check_targets(output_dir, [*names, SKIPPED_NAME, MANIFEST_NAME], inputs)
        total = sum(part.size for part in parts)
        _check_space(options, parts, total, output_dir, tmp_dir)
        plan = make_plan(options, parts, total, workspace.scratch, workspace.staging)
        scans = run_workers(
            partial(scan_parts, plan),
            len(plan.tasks),
            plan.workers,
            partial(_tell, watch, "reading", total),
        )
        raise_first_fault(plan, scans)
        peak = peak_memory() + (sum(scan.peak for scan in scans) if plan.workers > 1 else 0)
        written = write_all_files(plan, scans, partial(_tell, watch, "writing", total))
        manifest = _manifest(plan, scans, [file for file, _ in written])
        names += write_skipped(plan, scans)
        finish(workspace, manifest, names, earlier)
        return Result(
            manifest=manifest,
            input_bytes=total,
            output_bytes=sum(file.bytes for file in manifest.files),
            workers=plan.workers,
            peak_memory=max(peak, _peak_of_writing(plan, written)),
        )


def _tell(watch: Watch, stage: str, total: int, done: int) -> None:
    watch(stage, done, total)


def _check_space(options: Options, parts: list[Part], total: int, output_dir: str, tmp_dir: str) -> None:
    with open_part(parts[0]) as file:
        sample = file.read(BLOCK)
    mean_line = max(_SHORTEST, len(sample) // max(1, sample.count(b"\n")))
    lines = total // mean_line + 1
    text = total * 77 // 100 if options.compress_tmp else total
    outputs = total + options.nranks * mean_line + lines * LENGTH.itemsize + BLOCK
    check_disk(output_dir, outputs, tmp_dir, text + lines * INDEX.itemsize + BLOCK)


def _manifest(plan: Plan, scans: Sequence[Scan], files: list[OutputFile]) -> Manifest:
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
        source_list=to_text(plan.options.file_list),
        sources=[
            {"name": part.name, "bytes": part.size, "lines": count}
            for part, count in zip(plan.parts, lines_of_parts(plan, scans))
        ],
    )


def _peak_of_writing(plan: Plan, written: Sequence[tuple[OutputFile, int]]) -> int:
    workers = min(plan.workers, len(written))
    peaks = sorted((peak for _, peak in written), reverse=True)
    return peak_memory() + (sum(peaks[:workers]) if workers > 1 else 0)
