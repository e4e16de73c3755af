"""The Parquet file of an embeddings folder, for other programs. Needs no Paddle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Optional

import numpy as np

from plsc.data.parquet_tables import load_pyarrow
from plsc.errors import ConfigError
from plsc.machine.files import remove_leftovers, replacing, sync
from plsc.machine.json_files import json_text, parse_json
from plsc.machine.locks import lock_folder
from plsc.machine.names import readable, utf8_path
from plsc.search.embeddings import PARQUET, open_embeddings

_NAME, _META, _ROWS = PARQUET, b"plsc", 65_536  # rows that are written at a time


def check_parquet(folder: Path) -> None:
    """Checks, before the images are embedded, that `write_parquet` will be able to write.

    Raises:
        ConfigError: pyarrow is missing, or the folder holds an `embeddings.parquet` that plsc did not write.
    """
    _, parquet = load_pyarrow()
    _meta_of(parquet, folder / _NAME)


def write_parquet(folder: Path) -> Path:
    """Writes `embeddings.parquet` into a complete folder, with columns `name`, `identity` and `embedding`.

    The rows are in the order of `images.tsv`. Parquet holds UTF-8 only, so names are written as `readable` shows them.
    A file of the same embeddings stays unchanged.

    Returns:
        Path of the file.

    Raises:
        ConfigError: pyarrow is missing, or the file cannot be written, or plsc did not write the existing one.
        DataError: The folder is not complete.
    """
    pyarrow, parquet = load_pyarrow()
    place = folder / _NAME
    made = open_embeddings(folder)
    if _meta_of(parquet, place) == made.meta:
        return place
    kind = pyarrow.list_(pyarrow.float32(), made.vectors.shape[1])
    schema = pyarrow.schema(
        [("name", pyarrow.string()), ("identity", pyarrow.string()), ("embedding", kind)],
        metadata={_META: json_text(made.meta)},
    )
    try:
        with lock_folder(folder, "choose another folder"):
            remove_leftovers(place)
            with replacing(place) as written:
                with utf8_path(written) as path, parquet.ParquetWriter(path, schema) as writer:
                    for first in range(0, len(made.names), _ROWS):
                        part = slice(first, first + _ROWS)
                        values = pyarrow.array(np.asarray(made.vectors[part]).reshape(-1))
                        rows = pyarrow.FixedSizeListArray.from_arrays(values, made.vectors.shape[1])
                        texts = [list(map(readable, column[part])) for column in (made.names, made.identities)]
                        writer.write_table(pyarrow.table([*texts, rows], schema=schema))
                sync(written)
        sync(folder)
    except OSError as problem:
        raise ConfigError(
            f"{place}: cannot be written ({problem.strerror or problem}); free space, or name another folder"
        ) from None
    return place


def _meta_of(parquet: Any, place: Path) -> Optional[dict[str, Any]]:
    """Returns the manifest that the file holds a copy of; None if there is no file.

    Raises:
        ConfigError: plsc did not write the file.
    """
    if not os.path.lexists(place):
        return None
    try:
        with utf8_path(place) as path:
            return parse_json(parquet.read_schema(path).metadata[_META])
    except (OSError, ValueError, KeyError, TypeError):  # The errors of pyarrow are ValueErrors.
        raise ConfigError(
            f"{place}: plsc predict did not write this file; name another folder, or move it away"
        ) from None
