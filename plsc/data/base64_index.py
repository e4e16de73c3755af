"""The index of a file of lines: the length of each, so that any line is found without reading those before it.

It is a NumPy array of uint32, which the tool writes for each file of a split. If it is missing, the file is read once
instead.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from plsc.errors import DataError, reason_of
from plsc.machine.files import advice_on, open_regular

LENGTH = np.dtype("<u4")
_NEWLINE = 10
_CHUNK = 1 << 22


def index_name(rank: int) -> str:
    """Returns the name of the index of the file of one rank."""
    return f"base64_index_{rank}.npy"


def begin_index(file: BinaryIO, lines: int) -> None:
    """Writes the header of the index of a file with `lines` lines. The lengths follow it."""
    header = {"descr": LENGTH.str, "fortran_order": False, "shape": (lines,)}
    np.lib.format.write_array_header_1_0(file, header)


def load_offsets(path: str, index_path: str, lines: int, size: int) -> np.ndarray:
    """Returns where the lines of a file begin, and where the last one ends: int64 [lines + 1].

    Args:
        path: The file.
        index_path: Its index.
        lines: The number of lines it must have.
        size: The number of bytes it must have.

    Raises:
        DataError: The file, or its index, does not have `lines` lines and `size` bytes.
    """
    try:
        with open_regular(index_path) as file:
            lengths = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        return _scan(path, lines, size)
    except OSError as error:
        advice = advice_on(error, "check the disk and the permissions, or remove the index, which can be done without")
        raise DataError(f"{index_path}: cannot read the index ({error.strerror or error}); {advice}") from error
    except Exception as error:  # NumPy raises exceptions of many types for damaged headers.
        raise DataError(
            f"{index_path}: is not an index ({reason_of(error)}); remove it, since the data can be read without it"
        ) from error
    if lengths.dtype != LENGTH or lengths.shape != (lines,) or int(lengths.sum(dtype=np.int64)) != size:
        raise DataError(f"{index_path}: is not the index of {path}; remove it, since the data can be read without it")
    offsets = np.zeros(lines + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def offsets_of_lines(path: str) -> np.ndarray:
    """Reads a file, and returns where its lines begin and where the last newline ends: int64 [lines + 1].

    Raises:
        OSError: The file cannot be read.
    """
    found, position = [np.zeros(1, np.int64)], 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            found.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == _NEWLINE) + (position + 1))
            position += len(chunk)
    return np.concatenate(found)


def _scan(path: str, lines: int, size: int) -> np.ndarray:
    offsets = offsets_of_lines(path)
    if len(offsets) != lines + 1 or offsets[-1] != size:
        raise DataError(
            f"{path}: holds {len(offsets) - 1} lines in {offsets[-1]} bytes, but the manifest says {lines} in {size}; "
            "copy the folder again, or split the data again"
        )
    return offsets
