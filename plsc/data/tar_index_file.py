"""The index of a tar in a file next to it, so that the headers of a large tar are read once and not at every start."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from plsc.data.index_files import CLOCK, bytes_of, open_index, text_of, write_index
from plsc.data.tar_index import TarIndex, index_tar
from plsc.machine.mounts import mount_of
from plsc.storage.local import index_of

_VERSION = 1
_FEWEST = 1000  # images; to read the headers of fewer takes no longer than to open another file
_ARRAYS = {"offsets": "<i8", "lengths": "<u4", "labels": "<i4", "headers": "<u2", "keys": "<u8"}


class _State(NamedTuple):
    """What says that a tar is the one that was indexed.

    Attributes:
        size: Its bytes.
        changed: When it was changed, in nanoseconds since 1970.
    """

    size: int
    changed: int


def index_path(path: str) -> str:
    """Returns the file that holds the index of a tar: `.train-0000.tar.index.npz` for `train-0000.tar`."""
    folder, name = os.path.split(path)
    return os.path.join(folder, index_of(name))


def indexed(path: str, keeps_index: bool) -> TarIndex:
    """Returns the index of a tar: from the file next to it if that belongs to the tar, or else from its headers.

    Args:
        path: The tar.
        keeps_index: Whether to write the index that is made for a tar of many images next to it.

    Raises:
        DataError: As for `index_tar`.
    """
    before = _state_of(path)
    found = None if before is None else _load(path, before)
    if found is not None:
        return found
    index = index_tar(path)
    is_costly = len(index.offsets) >= _FEWEST or mount_of(path) is not None
    if keeps_index and before is not None and is_costly and _is_final(path, before):
        _keep(index, before)
    return index


def _state_of(path: str) -> Optional[_State]:
    try:
        status = os.stat(path)
    except OSError:  # which `index_tar` reports
        return None
    return _State(status.st_size, status.st_mtime_ns)


def _is_final(path: str, state: _State) -> bool:
    """Returns whether a tar still has a state, and any later change would give it another."""
    return _state_of(path) == state and time.time_ns() - state.changed > CLOCK


def _keep(index: TarIndex, state: _State) -> None:
    about = {
        "version": _VERSION,
        "state": state,
        "texts": list(index.texts),
        "first_of": [[is_text, text_of(name), label] for is_text, (name, label) in index.first_of.items()],
        "classes": None if index.classes is None else text_of(index.classes),
        "left_out": [[reason, count, text_of(name)] for reason, (count, name) in index.left_out.items()],
        "absolute": text_of(index.absolute),
    }
    arrays = {name: getattr(index, name).astype(kind) for name, kind in _ARRAYS.items()}
    write_index(Path(index_path(index.path)), about, arrays)


def _load(path: str, state: _State) -> Optional[TarIndex]:
    """Returns the index that is kept for a tar in some state; None if there is none, or only that of another state."""
    try:
        with open_index(Path(index_path(path))) as (about, file):
            if about["version"] != _VERSION or tuple(about["state"]) != state:
                return None
            arrays = {name: file[name] for name in _ARRAYS}
        return _checked(TarIndex(path, **arrays), about, state.size)
    except Exception:  # NumPy raises exceptions of many types for damaged files; the headers say what is right.
        return None


def _checked(index: TarIndex, about: Any, size: int) -> TarIndex:
    """Fills in what is no array. Raises an exception of some type if the index cannot be that of a tar of `size`."""
    index.texts = {str(text): number for number, text in enumerate(about["texts"])}
    index.first_of = {bool(is_text): (bytes_of(name), label) for is_text, name, label in about["first_of"]}
    index.classes = None if about["classes"] is None else bytes_of(about["classes"])
    index.left_out = {str(reason): (int(count), bytes_of(name)) for reason, count, name in about["left_out"]}
    index.absolute = bytes_of(about["absolute"])
    for name, kind in _ARRAYS.items():
        array = getattr(index, name)
        if array.dtype != np.dtype(kind) or array.shape != index.offsets.shape:
            raise ValueError(name)
    if len(index.offsets) and (index.offsets.min() < 0 or (index.offsets + index.lengths).max() > size):
        raise ValueError("offsets")
    if len(index.labels) and (index.labels.min() < 0 or (index.texts and index.labels.max() >= len(index.texts))):
        raise ValueError("labels")
    return index
