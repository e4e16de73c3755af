"""Converts a data set on Apache Spark, with a shard for each task. All machines see the source and the output.

Executors need Python with NumPy and Pillow (for Parquet also pyarrow), and neither plsc nor Paddle: a copy of plsc
without its top level, which asks for Paddle, is sent to them.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import platform
import tempfile
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Union

import plsc
from plsc.data.records import Records
from plsc.datasets.conversion import Failure, Job, Report, digest_of, make_shard
from plsc.datasets.opening import open_data
from plsc.datasets.staging import Staging
from plsc.errors import DataError, PlscError
from plsc.shuffle.spark_session import spark_context, spark_errors

_TOP_LEVEL = b'"""The parts of plsc that executors of Spark need."""\n'


def make_shards_on_spark(job: Job, records: Records, todo: list[int], report: Report) -> list[Failure]:
    """Makes shards on Spark. Returns the damaged images at which some of them stopped.

    Raises:
        ConfigError: There is no Spark.
        DataError: Spark failed, or the machines do not share the source and the output.
    """
    conversion = job.conversion
    places = {name: os.path.abspath(getattr(conversion, name)) for name in ("source", "output")}
    job = job._replace(conversion=replace(conversion, **places), class_names=tuple(job.class_names))
    with (
        spark_context("plsc: conversion of a data set") as context,
        spark_errors(),
        tempfile.TemporaryDirectory(prefix="plsc-") as folder,
    ):
        context.addPyFile(_archive(Path(folder)))
        tasks = context.parallelize(todo, len(todo))
        found: list[Any] = tasks.map(partial(_make_shard, job, digest_of(records))).collect()
    problem = next((one for one in found if isinstance(one, str)), None)
    if problem is not None:
        raise DataError(problem)
    failures = [one for one in found if one is not None]
    staging = Staging(Path(places["output"]))
    missing = [number for number in todo if not staging.shard(number).exists()]
    if missing and not failures:
        raise DataError(
            f"{conversion.output}: {len(missing)} of {len(todo)} shards are missing after Spark made them; give an "
            "output folder on a disk that all machines share under the same name"
        )
    return failures


def _archive(folder: Path) -> str:
    """Makes a zip file of plsc, whose name changes with its content, and returns its path."""
    root = Path(plsc.__file__).parent
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root.parent).as_posix()
            data = _TOP_LEVEL if name == "plsc/__init__.py" else path.read_bytes()
            archive.writestr(zipfile.ZipInfo(name), data)
    made = folder / f"plsc-{hashlib.sha256(content.getvalue()).hexdigest()[:12]}.zip"
    made.write_bytes(content.getvalue())
    return str(made)


def _make_shard(job: Job, digest: str, number: int) -> Union[Failure, str, None]:
    """Makes one shard on an executor. Returns the damaged image at which it stopped, or another error in one line."""
    conversion = job.conversion
    try:
        records = _opened(conversion.source, conversion.data_format, digest)
        return make_shard(job, records, number, lambda count: None)
    except PlscError as error:
        return str(error)
    except OSError as error:
        return (
            f"{error.filename or conversion.output}: {platform.node()} cannot write ({error.strerror or error}); free "
            "some space, or check quota and permissions, and run the same command again, which resumes"
        )


@functools.lru_cache(maxsize=1)
def _opened(source: str, data_format: str, digest: str) -> Records:
    """Returns the source, which the tasks of a process share."""
    records = open_data(source, data_format)[1]
    if digest_of(records) != digest:
        raise DataError(
            f"{source}: differs on {platform.node()}; put it on a disk that all machines share, and do not change it "
            "meanwhile"
        )
    return records
