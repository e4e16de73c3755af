"""The Spark engine: the shuffle of `local.py` on Apache Spark, with the same keys, order, files and manifest.

Spark reads the parts twice: first to check the lines and to find the keys with which the files begin, then to send
every line to its file, where lines are sorted. Executors need Python with NumPy (and Pillow for --check), but not plsc.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import itertools
import os
import re
import sys
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from plsc.data import base64_parts, encoded_image
from plsc.data.base64_index import LENGTH, begin_index, index_name
from plsc.data.base64_parts import (
    ADVICE,
    FILE_LIST_NAME,
    MANIFEST_NAME,
    SKIPPED_NAME,
    Fault,
    Manifest,
    OutputFile,
    Part,
    changed,
    rank_file_name,
    read_file_list,
)
from plsc.errors import ConfigError, DataError
from plsc.machine.names import to_text
from plsc.shuffle import scan, spark_tasks
from plsc.shuffle.local import Result
from plsc.shuffle.plan import BLOCK, Options
from plsc.shuffle.spark_session import spark_context, spark_errors
from plsc.shuffle.spark_tasks import (
    CELL_SHIFT,
    CELLS,
    Place,
    RangeScan,
    Rules,
    Source,
    by_file,
    cells_of,
    count_lines,
    lines_in,
    place_lines,
    scan_range,
    sorted_lengths,
)
from plsc.shuffle.split import Split
from plsc.shuffle.workspace import Workspace, check_targets, discard, finish, open_workspace
from plsc.storage.base import DurableStorage, StorageError
from plsc.storage.hadoop import HadoopStorage
from plsc.storage.local import LOCAL

SPLIT_BYTES = 64 * BLOCK  # what a task reads; whole blocks, since each block has its own stream of keys
_PREFIX = ".base64_shuffle-"
_SENT = (base64_parts, encoded_image, scan, spark_tasks, sys.modules[__name__])  # Executors need no plsc.
_BAD_CHARACTERS = ",*?[]{}\\"  # Hadoop takes paths with them for patterns or lists


def shuffle_on_spark(options: Options) -> Result:
    """Does what `shuffle_base64` does. `data_dir` and `output_dir` may be URIs such as hdfs://host:9000/folder.

    Raises:
        ConfigError: The options cannot work, or there is no Spark.
        DataError: An input has a mistake, files are in the way, or Spark failed. No output is changed or left behind.
    """
    _check_name(options.data_dir)
    with spark_context("plsc: shuffle of base64 data", _SENT) as context, spark_errors():
        source = _storage_of(context, options.data_dir)
        parts = read_file_list(options.data_dir, options.file_list, source)
        for part in parts:
            _check_part(part.path)
        output_dir = options.output_dir or options.data_dir
        _check_name(output_dir)
        with _open_workspace(context, output_dir) as workspace:
            return _shuffle(context, options, source, parts, workspace)


def _shuffle(context: Any, options: Options, source: DurableStorage, parts: list[Part], workspace: Workspace) -> Result:
    names = [*map(rank_file_name, range(options.nranks)), *map(index_name, range(options.nranks)), FILE_LIST_NAME]
    inputs = [*(part.path for part in parts), os.path.join(options.data_dir, options.file_list)]
    earlier = check_targets(workspace.output, [*names, SKIPPED_NAME, MANIFEST_NAME], inputs, workspace.storage)
    total = sum(part.size for part in parts)
    _check_free(workspace, total)
    rules = Rules(options.seed, options.max_line, options.check)
    ranges = _union(context, parts, partial(scan_range, rules)).persist(_disk_only())
    try:
        scans = sorted(ranges.map(lambda one: one._replace(entries=None)).collect())
        _check_ends(scans, parts)
        skipped = _faults(scans, parts, options)
        layout = _layout(ranges, scans, options.nranks)
        _write_indexes(ranges, layout, workspace)
    finally:
        ranges.unpersist()
    bad = {fault.place for fault in skipped}
    lines = _union(context, parts, partial(place_lines, rules, layout.firsts, layout.copies(), bad))
    written = _write(context, lines, layout.split, workspace)
    for part in parts:
        found = source.status(part.path)
        if found is None or (found.size, found.modified) != (part.size, part.modified):
            raise changed(part)
    if skipped:
        text = "".join(f"{parts[one.part].name}:{one.line}: {_advice(options, one.fault)}\n" for one in skipped)
        workspace.write(SKIPPED_NAME, text.encode())
        names.append(SKIPPED_NAME)
    manifest = _manifest(options, parts, scans, written)
    finish(workspace, manifest, names, earlier)
    return Result(
        manifest=manifest,
        input_bytes=total,
        output_bytes=sum(file.bytes for file in written),
        workers=context.defaultParallelism,
        peak_memory=0,
    )


def _check_free(workspace: Workspace, need: int) -> None:
    free = workspace.storage.free(workspace.output)
    if free < need:
        raise DataError(
            f"{workspace.output}: needs {need / 1e9:.3f} GB free, and has {free / 1e9:.3f}; free some space, or give "
            "another folder with --output_dir"
        )


def _manifest(options: Options, parts: Sequence[Part], scans: Sequence[RangeScan], files: list[OutputFile]) -> Manifest:
    padding = sum(file.padding for file in files)
    return Manifest(
        nranks=options.nranks,
        seed=options.seed,
        samples=sum(file.samples for file in files) - padding,
        padding=padding,
        skipped=sum(len(scanned.faults) for scanned in scans),
        samples_per_file=files[0].samples,
        largest_label=max(scanned.largest_label for scanned in scans),
        files=files,
        source_list=to_text(options.file_list),
        sources=[
            {
                "name": part.name,
                "bytes": part.size,
                "lines": sum(scanned.lines for scanned in scans if scanned.part == number),
            }
            for number, part in enumerate(parts)
        ],
    )


# Where files are


def _is_uri(path: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def _storage_of(context: Any, path: str) -> DurableStorage:
    return HadoopStorage(context) if _is_uri(path) else LOCAL


def _uri(path: str) -> str:
    """Returns a path in the form that Spark takes: not encoded, and on this machine unless it is a URI."""
    return path if _is_uri(path) else f"file://{os.path.abspath(path)}"


def _check_name(path: str) -> None:
    if any(character in path for character in _BAD_CHARACTERS):
        raise ConfigError(f"{path}: Spark cannot use a path that contains one of {_BAD_CHARACTERS}; rename it")
    if not base64_parts.is_utf8(path):
        raise ConfigError(f"{path}: Spark cannot use a path that is not UTF-8; rename it, or use --engine local")


def _check_part(path: str) -> None:
    """Raises ConfigError for a part that Hadoop cannot read: it calls some names hidden, and some no path."""
    _check_name(path)
    if os.path.basename(path).startswith(("_", ".")):
        raise ConfigError(f"{path}: Spark leaves out files whose names begin with '_' or '.'; rename it")
    if ":" in re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/]*", "", path):
        raise ConfigError(f"{path}: Spark cannot read a path that contains ':'; rename it, or use --engine local")


@contextlib.contextmanager
def _open_workspace(context: Any, output_dir: str) -> Iterator[Workspace]:
    if not _is_uri(output_dir):
        with open_workspace(output_dir, output_dir) as workspace:
            yield workspace
        return
    storage = HadoopStorage(context)
    staging = os.path.join(output_dir, f"{_PREFIX}{uuid.uuid4().hex}")
    try:
        storage.mkdirs(output_dir)
        for name in storage.list(output_dir):
            if name.startswith(_PREFIX):
                discard(storage, output_dir, os.path.join(output_dir, name))
        storage.mkdirs(staging)
    except StorageError as error:
        raise ConfigError(
            f"{output_dir}: cannot write there ({error.reason}); give another folder with --output_dir"
        ) from error
    try:
        yield Workspace(output_dir, staging, staging, storage)
    finally:
        discard(storage, output_dir, staging)


def _disk_only() -> Any:
    from pyspark import StorageLevel

    return StorageLevel.DISK_ONLY


# Reading


def _union(context: Any, parts: Sequence[Part], function: Any) -> Any:
    """Returns what `function(source, records)` yields for the lines of each range of each part."""
    settings = {
        "textinputformat.record.delimiter": "\n",
        "mapreduce.input.fileinputformat.split.minsize": str(SPLIT_BYTES),
        "mapreduce.input.fileinputformat.split.maxsize": str(SPLIT_BYTES),
    }
    offsets = itertools.accumulate((part.size for part in parts), initial=0)
    return context.union(
        [
            context.newAPIHadoopFile(
                _uri(part.path),
                "org.apache.hadoop.mapreduce.lib.input.TextInputFormat",
                "org.apache.hadoop.io.LongWritable",
                "org.apache.hadoop.io.Text",
                conf=settings,
            ).mapPartitions(partial(function, Source(number, offset)))
            for number, (part, offset) in enumerate(zip(parts, offsets))
        ]
    )


def _check_ends(scans: Sequence[RangeScan], parts: Sequence[Part]) -> None:
    """Raises DataError if Spark read anything but the bytes of the parts."""
    for number, part in enumerate(parts):
        own = [scanned for scanned in scans if scanned.part == number]
        # Bad lines may contain characters that are longer once decoded, and the last line may lack its newline.
        joins = own and own[0].first == 0 and all(one.end == two.first or one.faults for one, two in zip(own, own[1:]))
        ends = own and (own[-1].end - part.size in (0, 1) or own[-1].faults)
        if not (joins and ends and all(scanned.whole for scanned in own)):
            raise DataError(
                f"{part.path}: Spark reads other bytes than the file holds; if it begins with a byte order mark, "
                "remove the mark; if it has the name of a compressed file, rename it"
            )


class _Fault(NamedTuple):
    """A bad line. Lines of a part are numbered from 1."""

    part: int
    line: int
    place: int
    fault: int


def _faults(scans: Sequence[RangeScan], parts: Sequence[Part], options: Options) -> list[_Fault]:
    """Returns the bad lines in order. Raises DataError for the first unless they are skipped, or if no line is good."""
    found, line, part = [], 1, -1
    for scanned in scans:
        line = line if scanned.part == part else 1
        found += [_Fault(scanned.part, line + row, place, fault) for row, place, fault in scanned.faults]
        line, part = line + scanned.lines, scanned.part
    if found and not options.skip_errors:
        first = found[0]
        raise DataError(f"{parts[first.part].path}:{first.line}: {_advice(options, first.fault)}")
    if len(found) == sum(scanned.lines for scanned in scans):
        raise DataError(f"{os.path.join(options.data_dir, options.file_list)}: none of its parts has a good line")
    return found


def _advice(options: Options, fault: int) -> str:
    return ADVICE[Fault(fault)].format(max_line=options.max_line)


# Writing


class _Layout(NamedTuple):
    """Which line goes to which file.

    Attributes:
        split: The division of the shuffled order.
        firsts: The first lines of the files, from the second file on.
        copied: The lines that are copied: the first of the shuffled order.
    """

    split: Split
    firsts: list[Place]
    copied: list[Place]

    def copies(self) -> dict[Place, list[int]]:
        """Returns for each copied line the files that end with its copy."""
        files: dict[Place, list[int]] = {}
        for file in filter(self.split.padding, range(self.split.nranks)):
            files.setdefault(self.copied[self.split.copy(file)], []).append(file)
        return files


def _layout(ranges: Any, scans: Sequence[RangeScan], nranks: int) -> _Layout:
    split = Split.of(sum(scanned.lines - len(scanned.faults) for scanned in scans), nranks)
    ranks = [split.first(file) for file in range(1, nranks)]
    found = _lines_at(ranges, [*(rank for rank in ranks if rank < split.samples), *range(split.copied)])
    # A file that holds nothing but a copy begins after all keys.
    firsts = [found.get(rank, (1 << 64, 0)) for rank in ranks]
    return _Layout(split, firsts, [found[rank] for rank in range(split.copied)])


def _lines_at(ranges: Any, ranks: Sequence[int]) -> dict[int, Place]:
    """Returns the lines at some positions of the shuffled order."""
    if not ranks:
        return {}
    ends = np.cumsum(ranges.map(lambda one: np.bincount(cells_of(one.entries), minlength=CELLS)).treeReduce(np.add))
    cells = set(np.searchsorted(ends, ranks, side="right").tolist())
    lines = sorted(ranges.flatMap(partial(lines_in, cells)).collect())
    found = {}
    for rank in ranks:
        cell = int(np.searchsorted(ends, rank, side="right"))
        low = bisect.bisect_left(lines, (cell << int(CELL_SHIFT), 0))
        found[rank] = lines[low + rank - (int(ends[cell - 1]) if cell else 0)]
    return found


def _write_indexes(ranges: Any, layout: _Layout, workspace: Workspace) -> None:
    """Writes the index of each file into the staging folder."""
    nranks = layout.split.nranks
    lengths = (
        ranges.flatMap(partial(by_file, layout.firsts, layout.copies()))
        .groupByKey(nranks, lambda file: file)
        .mapValues(sorted_lengths)
    )
    for number, data in lengths.toLocalIterator():
        header = io.BytesIO()
        begin_index(header, len(data) // LENGTH.itemsize)
        workspace.write(index_name(number), header.getvalue() + data)


def _write(context: Any, lines: Any, split: Split, workspace: Workspace) -> list[OutputFile]:
    """Writes the file of each rank into the staging folder."""
    from pyspark import AccumulatorParam

    class Union(AccumulatorParam):
        """Merges dictionaries: a task that runs twice reports the same twice."""

        def zero(self, value: dict) -> dict:
            return {}

        def addInPlace(self, value1: dict, value2: dict) -> dict:  # noqa: N802 - Spark's name
            return {**value1, **value2}

    counts, storage = context.accumulator({}, Union()), workspace.storage
    folder = os.path.join(workspace.staging, "ranks")
    sorted_lines = lines.repartitionAndSortWithinPartitions(split.nranks, lambda key: key[0]).values()
    sorted_lines.mapPartitionsWithIndex(partial(count_lines, counts)).saveAsTextFile(_uri(folder))
    written = []
    for number in range(split.nranks):
        path = os.path.join(workspace.staging, rank_file_name(number))
        storage.rename(os.path.join(folder, f"part-{number:05d}"), path)
        samples, size, digest = counts.value[number]
        wanted = split.first(number + 1) - split.first(number) + split.padding(number)
        found = storage.status(path)
        if samples != wanted or found is None or found.size != size:
            raise DataError(
                f"{path}: Spark wrote {samples} lines of {wanted}, or not all of their bytes; run again, and do not "
                "let it compress its output"
            )
        storage.sync(path)
        written.append(OutputFile(rank_file_name(number), samples, split.padding(number), size, digest))
    return written
