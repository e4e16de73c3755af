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
        is_joined: Whether the files of all shards become one, which the writer's `add_file` joins.
        needs_pyarrow: Whether the writer uses pyarrow.
    """

    writer: str
    about: str
    file: str = ""
    has_shards: bool = False
    has_names: bool = False
    has_image_names: bool = True
    is_joined: bool = False
    needs_pyarrow: bool = False

    def check(self) -> None:
        """Checks that the writer can work, before anything is written. Raises ConfigError if a package is missing."""
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
        module, _, name = self.writer.partition(":")
        make: Any = getattr(importlib.import_module(module), name)
        if not self.file:
            return make(folder, class_names, num_classes)
        return make(folder / self.file.format(shard=number, shards=count), class_names)


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
        is_joined=True,
    ),
}
