"""Files that keep the index of data, so that it is made once and not at every start: arrays and a record in JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plsc.machine.files import open_regular, replacing
from plsc.machine.json_files import parse_json

# What is changed twice within the precision of the disk's clock has the same time after both changes.
CLOCK = 2_000_000_000  # nanoseconds; FAT has the coarsest clock
_ABOUT = "about"


def write_index(path: Path, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an index, if the folder lets that happen. Otherwise the next start makes the index again.

    Args:
        path: The file.
        about: What is no array. It says to what the index belongs.
        arrays: The arrays, by name.
    """
    every: dict[str, Any] = {**arrays, _ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8)}
    with contextlib.suppress(OSError), replacing(path) as part, open(part, "wb") as stream:
        np.savez(stream, **every)


@contextlib.contextmanager
def open_index(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yields what `write_index` was given: the record, and a mapping that reads each array when it is asked for.

    Raises:
        Exception: Of any type, if the file is missing or damaged: NumPy raises many.
    """
    with open_regular(path) as stream, np.load(stream, allow_pickle=False) as file:
        yield parse_json(file[_ABOUT].tobytes()), file


def text_of(name: bytes) -> str:
    """Returns the bytes of a name as a text that JSON can hold."""
    return name.decode("latin-1")


def bytes_of(text: str) -> bytes:
    """Returns the bytes of which `text_of` has made a text."""
    return text.encode("latin-1")
