"""Training images in Parquet files, as the Hugging Face datasets and data frames write them. Needs pyarrow."""

from __future__ import annotations

import bisect
import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from plsc.data.parquet_tables import Chunk, Table, load_pyarrow, no_image, open_table, read_chunk
from plsc.data.records import Opening, Record, Records, check_label
from plsc.data.sampler import WINDOW_BLOCKS
from plsc.data.shard_files import find_files, holds_files, plain_name
from plsc.errors import DataError, counted
from plsc.machine.json_files import json_text
from plsc.machine.memory import size_text
from plsc.machine.names import readable, to_text

logger = logging.getLogger("plsc")

_SUFFIXES = (".parquet",)
_MEMORY = 256_000_000  # bytes of the row groups that are kept decoded
_PATHS_MEMORY = 32_000_000  # bytes of the paths that are
_OPENING = 4  # files at a time
_GROUP_IMAGES, _GROUP_BYTES = 1000, 4_000_000  # the most that `ParquetWriter` puts into a row group


def holds_tables(path: str) -> bool:
    """Returns whether a path is a Parquet file, a folder with such files, or a pattern of them."""
    return holds_files(path, _SUFFIXES)


def open_records(opening: Opening) -> ParquetFiles:
    """Opens Parquet files; see `ParquetFiles`."""
    return ParquetFiles(opening.path, opening.num_classes)


class ParquetFiles(Records):
    """The images in Parquet files, in the order of the files and of their rows.

    A row group is decoded as a whole and kept while its images are in use; all threads share it. The images of 16 row
    groups are mixed, or of as many as fit into 256 MB.

    Args:
        path: A file, a folder, or a pattern; see `find_files`.
        num_classes: Number of classes, which labels must be below; None accepts every label.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: There is no image; or a file is damaged, or has other columns, or a row has no label or a wrong one.
    """

    blocks: np.ndarray
    shuffle = "window"

    def __init__(self, path: str, num_classes: Optional[int] = None) -> None:
        load_pyarrow()
        with ThreadPoolExecutor(_OPENING, thread_name_prefix="plsc-tables") as threads:
            tables = list(threads.map(open_table, find_files(path, _SUFFIXES)))
        _check_alike(tables)
        self._paths, self._layout = [table.path for table in tables], tables[0].layout
        self.blocks = np.cumsum([0, *(count for table in tables for count in table.rows)]).astype(np.int64)
        self._starts: list[int] = self.blocks.tolist()
        self._first_rows: list[int] = np.cumsum([0, *(sum(table.rows) for table in tables)]).tolist()
        self._groups = [(number, group) for number, table in enumerate(tables) for group in table.groups]
        self._sizes = [size for table in tables for size in table.sizes]
        self._spans = [span for table in tables for span in table.spans]
        self.num_images = self._starts[-1]
        if not self.num_images:
            raise DataError(f"{path}: no image in {counted(len(tables), 'Parquet file')}")
        self.class_names, self._labels = _name_classes(tables)
        self._check_labels(num_classes)
        self._digest = _digest(tables, self._labels)
        largest = max(self._sizes)
        self.window = min(max(_MEMORY // max(largest, 1), 1), WINDOW_BLOCKS)
        if largest > _MEMORY:
            logger.warning(
                "%s: row groups have up to %.1f GB, and a rank holds up to three of them in memory; write "
                "the files again with 100 to 1000 images per row group",
                path,
                largest / 1e9,
            )
        # One more than are mixed, and one that is begun.
        kept, total = max(_MEMORY, (self.window + 2) * largest), sum(self._sizes)
        self._images = _Kept(kept, self._decode_images)
        if total > kept:
            self.slow_draws = (
                f"{path}: most images need a whole row group, {size_text(total // len(self._sizes))}, to be decoded, "
                f"because only {size_text(kept)} of {size_text(total)} are kept; convert the data, for instance with "
                "plsc data convert --to tar"
            )
        self._paths_of = _Kept(_PATHS_MEMORY, self._decode_paths)
        self.read(0)  # which fails at once where a table names files instead of holding them
        self._naming = threading.Lock()
        self._by_path: Optional[bool] = None

    def name(self, i: int) -> str:
        """Returns the path that the table gives to the image, or `FILE/ROW` unless all images have different ones."""
        with self._naming:
            if self._by_path is None:
                self._by_path = self._layout.path is not None and self._paths_differ()
        if self._by_path:
            block = bisect.bisect_right(self._starts, i) - 1
            return plain_name(self._paths_of.get(block).value(i - self._starts[block]))
        file, row = self._place(i)
        return f"{os.path.splitext(os.path.basename(self._paths[file]))[0]}/{row}"

    def where(self, i: int) -> str:
        """Returns `FILE: row N`, with rows counted from 0."""
        file, row = self._place(i)
        return f"{self._paths[file]}: row {row}"

    def labels(self) -> np.ndarray:
        """Returns the label of each image, int32 [num_images]."""
        return self._labels

    def digests(self) -> dict[str, str]:
        """Returns the number of images, and a digest of the row groups and labels of all files."""
        return {"the number of images in the tables": str(self.num_images), "the rows of the tables": self._digest}

    def read(self, i: int) -> tuple[bytes, int]:
        """Returns the encoded bytes and the label of image `i`.

        Raises:
            DataError: The file cannot be read, or the row has no image.
        """
        block = bisect.bisect_right(self._starts, i) - 1
        data = self._images.get(block).value(i - self._starts[block])
        if data is None:
            path = self._decode_paths(block).value(i - self._starts[block]) if self._layout.path else None
            raise no_image(self.where(i), self._layout, path)
        return data, int(self._labels[i])

    def stretches(self) -> np.ndarray:
        """Returns the row groups; see `Records.stretches`."""
        return self.blocks

    def span(self, first: int, end: int) -> tuple[str, int, int]:
        """Returns the file and the bytes of the row group of image `first`, for a mounted file; see `Records.span`."""
        block = bisect.bisect_right(self._starts, first) - 1
        return (self._paths[self._groups[block][0]], *self._spans[block])

    def _place(self, i: int) -> tuple[int, int]:
        """Returns the file and the row of an image."""
        file = bisect.bisect_right(self._first_rows, i) - 1
        return file, i - self._first_rows[file]

    def _decode_images(self, block: int) -> Chunk:
        file, group = self._groups[block]
        return read_chunk(self._paths[file], group, self._layout.image, self._sizes[block])

    def _decode_paths(self, block: int) -> Chunk:
        file, group = self._groups[block]
        assert self._layout.path is not None
        return read_chunk(self._paths[file], group, self._layout.path)

    def _paths_differ(self) -> bool:
        """Returns whether each image has a path that no other has."""
        found = np.empty(self.num_images, np.uint64)
        for block, first in enumerate(self._starts[:-1]):
            chunk = self._decode_paths(block)
            for row in range(len(chunk)):
                name = plain_name(chunk.value(row) or "")
                if not name:
                    return False
                digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                found[first + row] = int.from_bytes(digest, "little")
        found.sort()
        return not bool((found[1:] == found[:-1]).any())

    def _check_labels(self, num_classes: Optional[int]) -> None:
        largest, known = int(self._labels.max()), len(self.class_names)
        if self._labels.min() < 0 or (num_classes is not None and largest >= num_classes):
            limit = num_classes or largest + 1
            i = int(((self._labels < 0) | (self._labels >= limit)).argmax())
            check_label(int(self._labels[i]), self.where(i), num_classes, largest)
        if known and largest >= known:
            raise DataError(
                f"{self.where(int(self._labels.argmax()))}: label {largest} has no name, because the schema names "
                f"{known} classes; correct the names, or the label"
            )


class _Kept:
    """The chunks that were used last. Threads share them; one thread decodes a chunk while others wait for it.

    Args:
        limit: Bytes that they may take.
        decode: Decodes a chunk.
    """

    def __init__(self, limit: int, decode: Callable[[int], Chunk]) -> None:
        self._limit, self._decode = limit, decode
        self._chunks: dict[int, Future[Chunk]] = {}  # the one that was used last is the last
        self._sizes: dict[int, int] = {}  # of those that are decoded
        self._lock = threading.Lock()

    def get(self, number: int) -> Chunk:
        """Returns a chunk. Raises DataError if it cannot be decoded."""
        with self._lock:
            known = self._chunks.pop(number, None)
            future = self._chunks[number] = known or Future()
        if known is not None:
            return known.result()
        try:
            chunk = self._decode(number)
        except BaseException as error:
            with self._lock:
                del self._chunks[number]
            future.set_exception(error)
            raise
        with self._lock:
            self._sizes[number] = chunk.size
            self._drop(number)
        future.set_result(chunk)
        return chunk

    def _drop(self, new: int) -> None:
        """Drops the chunks whose last use is longest ago, as far as the limit requires."""
        total = sum(self._sizes.values())
        for number in list(self._chunks):
            if total <= self._limit:
                break
            if number != new and number in self._sizes:
                total -= self._sizes.pop(number)
                del self._chunks[number]


def _check_alike(tables: Sequence[Table]) -> None:
    """Raises DataError if files have different columns or names of classes."""
    first = tables[0]
    for table in tables[1:]:
        if table.layout != first.layout:
            raise DataError(
                f"{table.path}: the images and labels are in the columns {table.layout.image!r} and "
                f"{table.layout.label!r}, and in {first.path} in {first.layout.image!r} and {first.layout.label!r}, or "
                "of other types; write the files alike"
            )
        if table.class_names != first.class_names:
            raise DataError(f"{table.path}: names other classes than {first.path}; write the files with the same names")


def _name_classes(tables: Sequence[Table]) -> tuple[Sequence[str], np.ndarray]:
    """Returns the names of the classes and the labels of all images, int32 [n]. Texts are numbered in their order."""
    if not tables[0].layout.named:
        return tables[0].class_names, np.concatenate([table.labels for table in tables]).astype(np.int32)
    names = sorted({text for table in tables for text in table.texts})
    number_of = {name: number for number, name in enumerate(names)}
    every = (np.array([number_of[text] for text in table.texts], np.int32) for table in tables)
    return names, np.concatenate([numbers[table.labels] for numbers, table in zip(every, tables) if len(table.labels)])


def _digest(tables: Sequence[Table], labels: np.ndarray) -> str:
    found = hashlib.sha256(labels.tobytes())
    for table in tables:
        found.update(
            repr((os.path.basename(table.path), table.rows, table.sizes, table.layout)).encode("utf-8", "replace")
        )
    return found.hexdigest()


class ParquetWriter:
    """Writes a Parquet file as the Hugging Face datasets do, with small row groups, so that images are found quickly.

    Its columns are `image`, a struct of `bytes` and `path`, and `label`, an integer, a `ClassLabel` if the classes have
    names.

    Args:
        path: The file, which is replaced.
        class_names: Names of the classes.

    Raises:
        ConfigError: pyarrow is not installed.
        OSError: The file cannot be made.
    """

    def __init__(self, path: Path, class_names: Sequence[str] = ()) -> None:
        self._pyarrow, parquet = load_pyarrow()
        kind = self._pyarrow.struct([("bytes", self._pyarrow.binary()), ("path", self._pyarrow.string())])
        label = (
            {"names": list(class_names), "_type": "ClassLabel"} if class_names else {"dtype": "int64", "_type": "Value"}
        )
        features = {"image": {"_type": "Image"}, "label": label}
        self._schema = self._pyarrow.schema(
            [("image", kind), ("label", self._pyarrow.int64())],
            metadata={"huggingface": json_text({"info": {"features": features}}).encode("utf-8")},
        )
        self._records: list[Record] = []
        self._bytes = 0
        self._file = open(path, "wb")  # noqa: SIM115  # `close` closes it
        self._writer: Any = parquet.ParquetWriter(
            self._file,
            self._schema,
            compression={"image.bytes": "none", "image.path": "snappy", "label": "snappy"},  # JPEG does not shrink
            use_dictionary=["label"],
            write_statistics=["label"],  # those of images would hold whole small images
        )

    def add(self, record: Record) -> None:
        """Adds one image, which is written with its row group. Raises OSError if the disk refuses it."""
        self._records.append(record)
        self._bytes += len(record.data)
        if len(self._records) >= _GROUP_IMAGES or self._bytes >= _GROUP_BYTES:
            self._write()

    def close(self) -> None:
        """Writes the last row group and the footer, and closes the file."""
        with self._file:
            if self._records:
                self._write()
            self._writer.close()

    def _write(self) -> None:
        """Writes a row group. Parquet holds UTF-8 only, so names are written as `readable` shows them."""
        images = [{"bytes": one.data, "path": readable(to_text(one.name))} for one in self._records]
        columns = {"image": images, "label": [one.label for one in self._records]}
        self._writer.write_table(self._pyarrow.table(columns, schema=self._schema))
        self._records, self._bytes = [], 0
