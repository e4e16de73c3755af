"""What `plsc data convert` writes: the formats, and the names of their files."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plsc.data.records import RecordWriter


class Target(NamedTuple):
    """A format that images can be converted to.

    Attributes:
        writer: Module and name of the `RecordWriter`, which is imported when it is first used.
        about: What it is, for the help.
        file: Name of the file of a shard, for `format(shard=..., shards=...)`; '' if each image is a file.
        has_shards: Whether users choose the number of files.
        has_names: Whether the writer keeps the names of the classes.
        has_image_names: Whether it keeps the names of the images.
        part: If all shards become one file, module and name of the `RecordWriter` of a shard; otherwise ''.
        needs_pyarrow: Whether the writer uses pyarrow.
    """

    writer: str
    about: str
    file: str = ""
    has_shards: bool = False
    has_names: bool = False
    has_image_names: bool = True
    part: str = ""
    needs_pyarrow: bool = False

    def check(self) -> None:
        """Loads the writer, before anything is written, and once for all processes that are forked.

        Raises:
            ConfigError: A package is missing.
        """
        _imported(self.writer)
        if self.needs_pyarrow:
            from plsc.data.parquet_tables import load_pyarrow

            load_pyarrow()

    def open(self, folder: Path, number: int, count: int, class_names: Sequence[str], num_classes: int) -> RecordWriter:
        """Returns the writer of a shard.

        Args:
            folder: Folder that receives the file, or those of the images.
            number: Number of the shard, from 0.
            count: Number of shards.
            class_names: Name of each class; empty if they are unknown.
            num_classes: Number of classes.
        """
        make = _imported(self.part if self.part and count > 1 else self.writer)
        if not self.file:
            return make(folder, class_names, num_classes)
        return make(folder / self.file.format(shard=number, shards=count), class_names)

    def open_whole(self, folder: Path, class_names: Sequence[str]) -> Any:
        """Returns the writer of the file that all shards become, which resumes one that an earlier run has begun.

        Args:
            folder: Folder that receives the file.
            class_names: Name of each class; empty if they are unknown.
        """
        return _imported(self.writer)(folder / self.file, class_names, is_shared=True)


def _imported(name: str) -> Any:
    """Returns what `module:name` names."""
    module, _, name = name.partition(":")
    return getattr(importlib.import_module(module), name)


_NUMBERS = "{shard:05d}-of-{shards:05d}"
TARGETS = {
    "folder": Target("plsc.datasets.image_tree:TreeWriter", "a folder for each class", has_names=True),
    "base64": Target(
        "plsc.datasets.writers:Base64Writer",
        "base64 parts",
        file=f"part-{_NUMBERS}",
        has_shards=True,
        has_image_names=False,
    ),
    "tar": Target(
        "plsc.data.tar_shards:TarWriter", "tar shards", file=f"train-{_NUMBERS}.tar", has_shards=True, has_names=True
    ),
    "parquet": Target(
        "plsc.data.parquet_files:ParquetWriter",
        "Parquet files",
        file=f"train-{_NUMBERS}.parquet",
        has_shards=True,
        has_names=True,
        needs_pyarrow=True,
    ),
    "recordio": Target(
        "plsc.data.recordio:RecordIOWriter",
        "train.rec and train.idx",
        file="train.rec",
        has_names=True,
        has_image_names=False,
        part="plsc.data.recordio_parts:RecordIOPart",
    ),
}
