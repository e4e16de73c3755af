"""The index of a tar in a file next to it, so that the headers of a large tar are read once and not at every start."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from plsc.data.tar_index import TarIndex, index_tar
from plsc.machine.files import replacing
from plsc.machine.json_files import parse_json

_VERSION = 1
# A tar that is written twice within the precision of the disk's clock, in equally many bytes, has the same state.
_CLOCK = 2_000_000_000  # nanoseconds; FAT has the coarsest clock
_FEWEST = 1000  # images; to read the headers of fewer takes no longer than to open another file
_ARRAYS = {"offsets": "<i8", "lengths": "<u4", "labels": "<i4", "headers": "<u2", "keys": "<u8"}
_ABOUT = "about"


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
    return os.path.join(folder, f".{name}.index.npz")


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
    if keeps_index and before is not None and len(index.offsets) >= _FEWEST and _is_final(path, before):
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
    return _state_of(path) == state and time.time_ns() - state.changed > _CLOCK


def _keep(index: TarIndex, state: _State) -> None:
    about = {
        "version": _VERSION,
        "state": state,
        "texts": list(index.texts),
        "first_of": [[is_text, _text(name), label] for is_text, (name, label) in index.first_of.items()],
        "classes": None if index.classes is None else _text(index.classes),
        "left_out": [[reason, count, _text(name)] for reason, (count, name) in index.left_out.items()],
        "absolute": _text(index.absolute),
    }
    arrays = {name: getattr(index, name).astype(kind) for name, kind in _ARRAYS.items()}
    arrays[_ABOUT] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    try:
        with replacing(Path(index_path(index.path))) as part, open(part, "wb") as stream:
            np.savez(stream, **arrays)
    except OSError:  # The folder may be read-only. The next start reads the headers again.
        pass


def _load(path: str, state: _State) -> Optional[TarIndex]:
    """Returns the index that is kept for a tar in some state; None if there is none, or only that of another state."""
    try:
        with np.load(index_path(path), allow_pickle=False) as file:
            about = parse_json(file[_ABOUT].tobytes())
            if about["version"] != _VERSION or tuple(about["state"]) != state:
                return None
            arrays = {name: file[name] for name in _ARRAYS}
        return _checked(TarIndex(path, **arrays), about, state.size)
    except Exception:  # NumPy raises exceptions of many types for damaged files; the headers say what is right.
        return None


def _checked(index: TarIndex, about: Any, size: int) -> TarIndex:
    """Fills in what is no array. Raises an exception of some type if the index cannot be that of a tar of `size`."""
    index.texts = {str(text): number for number, text in enumerate(about["texts"])}
    index.first_of = {bool(is_text): (_bytes(name), label) for is_text, name, label in about["first_of"]}
    index.classes = None if about["classes"] is None else _bytes(about["classes"])
    index.left_out = {str(reason): (int(count), _bytes(name)) for reason, count, name in about["left_out"]}
    index.absolute = _bytes(about["absolute"])
    for name, kind in _ARRAYS.items():
        array = getattr(index, name)
        if array.dtype != np.dtype(kind) or array.shape != index.offsets.shape:
            raise ValueError(name)
    if len(index.offsets) and (index.offsets.min() < 0 or (index.offsets + index.lengths).max() > size):
        raise ValueError("offsets")
    if len(index.labels) and (index.labels.min() < 0 or (index.texts and index.labels.max() >= len(index.texts))):
        raise ValueError("labels")
    return index


def _text(name: bytes) -> str:
    return name.decode("latin-1")


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")
