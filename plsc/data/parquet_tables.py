"""Opens a Parquet file of images: finds its columns and its labels, and decodes row groups."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from plsc.data.records import LARGEST_LABEL
from plsc.errors import ConfigError, DataError, PlscError, counted, reason_of, shown
from plsc.machine.files import advice_on
from plsc.machine.json_files import parse_json
from plsc.machine.mounts import mount_of, open_stream
from plsc.machine.names import CONTROLS, quoted, utf8_path

_MAGIC, _ENCRYPTED = b"PAR1", b"PARE"
# Names of columns, in any case; the first that a table has is taken.
_IMAGE_NAMES = ("image", "img", "images", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "data", "content")
_LABEL_NAMES = ("label", "labels", "class", "cls", "class_id", "label_id", "identity", "person", "target")
_BYTES, _PATH = "bytes", "path"  # of the struct that the Hugging Face datasets keep an image in
_BATCH_BYTES = 64_000_000  # decoded at a time, since Arrow cannot hold more than 2 GB in one array
_READ_BYTES = 1 << 20  # read at a time
_CONTROLS = frozenset(CONTROLS)


class Layout(NamedTuple):
    """The columns that are used.

    Attributes:
        image: Path of the column with the encoded images, as `image` or `image.bytes`.
        path: Path of the column with their names, as `image.path`; None without one.
        label: Name of the column with the labels.
        named: Whether the labels are texts.
    """

    image: str
    path: Optional[str]
    label: str
    named: bool


class Table(NamedTuple):
    """What is known about a file.

    Attributes:
        path: The file.
        layout: Its columns.
        groups: Number of each row group that has rows.
        rows: Number of rows of each.
        sizes: Bytes of each, decompressed.
        spans: Where the bytes of each begin and how many they are, in the file.
        labels: The label of each row, int64 [n], or the number of its text in `texts`.
        texts: The labels that are texts, each once.
        class_names: Names that the file gives to integer labels; empty if it gives none.
    """

    path: str
    layout: Layout
    groups: list[int]
    rows: list[int]
    sizes: list[int]
    spans: list[tuple[int, int]]
    labels: np.ndarray
    texts: Sequence[str]
    class_names: tuple[str, ...]


class Chunk:
    """A decoded column of a row group.

    Args:
        arrays: Its values, in pieces.
    """

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._arrays = [array for array in arrays if len(array)]
        self._ends = np.cumsum([len(array) for array in self._arrays]).tolist()
        self.size = sum(array.nbytes for array in self._arrays)  # bytes

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def value(self, row: int) -> Any:
        """Returns a value as a Python object; None if it is null."""
        number = 0
        while row >= self._ends[number]:  # there is rarely more than one
            number += 1
        return self._arrays[number][row - self._ends[number]].as_py()  # counted from the end of the piece


def load_pyarrow() -> tuple[Any, Any]:
    """Returns the modules `pyarrow` and `pyarrow.parquet`. Raises ConfigError if they are not installed."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError("Parquet needs pyarrow; run pip install '.[parquet]' in the plsc clone") from None


def open_table(path: str) -> Table:
    """Reads the footer and the labels of a file.

    Raises:
        DataError: It is no Parquet file or damaged, its columns do not fit, or a label is null or wrong.
    """
    _check_file(path)
    _, parquet = load_pyarrow()
    try:
        with _readable(path) as plain, parquet.ParquetFile(plain) as file:
            schema = file.schema_arrow
            layout = _layout_of(path, schema)
            groups, rows, sizes = _groups_of(file.metadata)
            spans = [] if mount_of(path) is None else [_span_of(file.metadata.row_group(one)) for one in groups]
            values = file.read([layout.label]).column(0)
            labels, texts = _labels_of(path, layout, values)
            names = () if layout.named else _class_label(schema.metadata or {}, layout.label)
    except PlscError:
        raise
    except Exception as error:  # Arrow raises exceptions of many types for damaged files
        raise damaged(path, error) from error
    if len(labels) != sum(rows):
        raise DataError(
            f"{path}: has {counted(sum(rows), 'row')} and {counted(len(labels), 'label')}, so it is damaged; copy it "
            "again"
        )
    return Table(path, layout, groups, rows, sizes, spans, labels=labels, texts=texts, class_names=names)


def damaged(path: str, error: Exception) -> DataError:
    """Returns the error for a file that Arrow cannot read."""
    if "ncrypted" in str(error) or "ecrypt" in str(error):
        return DataError(f"{path}: is encrypted; write it again without encryption")
    advice = "copy it again, or write it again"
    if isinstance(error, OSError) and error.errno is not None:
        advice = advice_on(error, advice)
    return DataError(f"{path}: cannot be read as Parquet ({reason_of(error)}); {advice}")


def read_chunk(path: str, group: int, leaf: str, size: int = 0) -> Chunk:
    """Decodes a column of a row group.

    Args:
        path: The file.
        group: Number of the row group.
        leaf: Path of the column.
        size: Bytes that it takes, roughly; 0 if they are few.

    Raises:
        DataError: The file cannot be read.
    """
    _, parquet = load_pyarrow()
    try:
        # A file object of Arrow is for one thread.
        with _readable(path) as plain, parquet.ParquetFile(plain, buffer_size=_READ_BYTES) as file:
            rows = file.metadata.row_group(group).num_rows
            batch = max(1, min(rows, rows * _BATCH_BYTES // max(size, 1)))
            arrays = []
            for one in file.iter_batches(batch, row_groups=[group], columns=[leaf], use_threads=False):
                array = one.column(0)
                arrays.append(array.flatten()[0] if _types().is_struct(array.type) else array)
    except PlscError:  # of a store
        raise
    except Exception as error:  # as in `open_table`
        raise damaged(path, error) from error
    chunk = Chunk(arrays)
    if len(chunk) != rows:
        raise DataError(f"{path}: row group {group} has {len(chunk)} of its {rows} rows; copy the file again")
    return chunk


@contextlib.contextmanager
def _readable(path: str) -> Iterator[Any]:
    """Yields what Arrow reads a file from: its path, or a stream of a file that is mounted."""
    if mount_of(path) is None:
        with utf8_path(Path(path)) as plain:
            yield plain
        return
    with open_stream(path) as stream:
        yield stream


def _check_file(path: str) -> None:
    """Raises DataError if a file does not begin and end as Parquet does."""
    try:
        with open_stream(path) as stream:
            begin = stream.read(4)
            stream.seek(0, 2)
            size = stream.tell()
            stream.seek(max(size - 4, 0))
            end = stream.read(4)
    except OSError as error:
        advice = advice_on(error, "copy it again, or correct the path")
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); {advice}") from error
    if _ENCRYPTED in (begin, end):
        raise damaged(path, ValueError("encrypted"))
    if begin != _MAGIC:
        why = "is empty" if not size else "is not a Parquet file"
        raise DataError(f"{path}: {why}; copy it again, or leave it out")
    if size < 12 or end != _MAGIC:
        raise DataError(f"{path}: has no footer at its end, so it was cut off; copy it again, or write it again")


def _layout_of(path: str, schema: Any) -> Layout:
    """Finds the columns of a table."""
    images = {one.name: leaf for one in schema if (leaf := _image_leaf(one)) is not None}
    columns = ", ".join(f"{quoted(one.name)} ({_kind(one.type)})" for one in schema) or "none"
    image = _first(images, _IMAGE_NAMES) or (next(iter(images)) if len(images) == 1 else None)
    if image is None:
        raise DataError(
            f"{path}: has no column 'image' of encoded images (binary, or a struct with bytes); the columns are "
            f"{columns}"
        )
    label = _first([one.name for one in schema], _LABEL_NAMES)
    if label is None:
        raise DataError(f"{path}: has no column 'label'; rename the column with the classes; the columns are {columns}")
    kind = schema.field(label).type
    named = _is_text(kind)
    if not named and not _types().is_integer(kind):
        raise DataError(
            f"{path}: the labels in column {quoted(label)} are {_kind(kind)}; make them integers that count from 0, or "
            "texts"
        )
    leaf = images[image]
    has_path = leaf != image and any(one.name == _PATH and _is_text(one.type) for one in schema.field(image).type)
    return Layout(leaf, f"{image}.{_PATH}" if has_path else None, label, named)


def _first(names: Any, wanted: Sequence[str]) -> Optional[str]:
    """Returns the name that comes first in `wanted`, in any case."""
    by_lower = {name.lower(): name for name in reversed(list(names))}
    return next((by_lower[name] for name in wanted if name in by_lower), None)


def _image_leaf(field: Any) -> Optional[str]:
    """Returns the path of the encoded images of a column; None if it has none."""
    if _is_binary(field.type):
        return field.name
    if _types().is_struct(field.type) and any(one.name == _BYTES and _is_binary(one.type) for one in field.type):
        return f"{field.name}.{_BYTES}"
    return None


def _types() -> Any:
    return importlib.import_module("pyarrow.types")


def _is_binary(kind: Any) -> bool:
    types = _types()
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_text(kind: Any) -> bool:
    types = _types()
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind)


def _kind(kind: Any) -> str:
    return shown(str(kind))[1:-1]


def _groups_of(footer: Any) -> tuple[list[int], list[int], list[int]]:
    """Returns the numbers of the row groups, their rows, and their bytes."""
    groups, rows, sizes = [], [], []
    for group in range(footer.num_row_groups):
        # Not the size of the column: pyarrow 26 aborts the process if the footer describes a column wrongly.
        about = footer.row_group(group)
        if about.num_rows > 0:
            groups.append(group)
            rows.append(about.num_rows)
            sizes.append(max(about.total_byte_size, 0))
    return groups, rows, sizes


def _span_of(group: Any) -> tuple[int, int]:
    """Returns where a row group begins in its file, and its bytes."""
    columns = [group.column(k) for k in range(group.num_columns)]
    begins = [min(filter(None, (one.dictionary_page_offset, one.data_page_offset))) for one in columns]
    first = min(begins)
    return first, max(begin + one.total_compressed_size for begin, one in zip(begins, columns)) - first


def no_image(where: str, layout: Layout, name: Optional[str]) -> DataError:
    """Returns the error for a row without an image, whose path is `name`."""
    if name:
        return DataError(
            f"{where}: {quoted(layout.image)} is null, and only {quoted(name)} in {quoted(layout.path or '')} names a "
            "file, which is not in the table; write the table with the bytes of the images"
        )
    return DataError(f"{where}: {quoted(layout.image)} is null; write the table without this row")


def _labels_of(path: str, layout: Layout, values: Any) -> tuple[np.ndarray, list[str]]:
    """Returns the labels as integers, and the texts that they number."""
    if values.null_count:
        row = np.flatnonzero(np.asarray(values.is_null().to_numpy()))[0]
        raise DataError(f"{path}: row {row}: {quoted(layout.label)} is null; write the table without this row")
    if not layout.named:
        labels = values.to_numpy()
        if len(labels) and (int(labels.max()) > LARGEST_LABEL or int(labels.min()) < -LARGEST_LABEL):
            row = int(np.argmax((labels > LARGEST_LABEL) | (labels.astype(np.float64) < -LARGEST_LABEL)))
            raise DataError(f"{path}: row {row}: label {int(labels[row])} is outside [0, {LARGEST_LABEL}]; correct it")
        return labels.astype(np.int64), []
    pyarrow, _ = load_pyarrow()
    kind = values.type
    if _types().is_dictionary(kind):  # its dictionary may hold a text twice, or one that no row has
        values = values.cast(kind.value_type)
    encoded = pyarrow.chunked_array(values.chunks, values.type).combine_chunks().dictionary_encode()
    if isinstance(encoded, pyarrow.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    texts, numbers = encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    wrong = next((k for k, text in enumerate(texts) if not text.strip() or _CONTROLS.intersection(text)), None)
    if wrong is not None:
        row = int((numbers == wrong).argmax())
        raise DataError(f"{path}: row {row}: label {shown(texts[wrong])} is not the name of a class; correct it")
    return numbers, texts


def _class_label(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...]:
    """Returns the names of a `ClassLabel` of the Hugging Face datasets; empty if the schema has none."""
    try:
        names = parse_json(metadata.get(b"huggingface", b"{}"))["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(one, str) for one in names) else ()
