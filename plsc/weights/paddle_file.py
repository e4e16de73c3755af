"""Reads the files of `paddle.save` (`.pdparams`), which are pickles of NumPy arrays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Optional

import numpy as np

from plsc.machine.pickles import (
    DICT_STEPS,
    PLAIN_STEPS,
    FloatDtype,
    Unpickler,
    arrays,
    unwrap,
)
from plsc.weights.source import Weights, leaves_of, open_file, reading_pickle

_NAMES = "StructuredToParameterName@@"  # Paddle's own names of the tensors
_PARTS = "UnpackBigParamInfor@@"  # tensors of more than a gigabyte, which older protocols keep in parts


def _tuple(values: Any = ()) -> tuple[Any, ...]:
    return tuple(values)


_ALLOWED = {**arrays(FloatDtype), **{(module, "tuple"): _tuple for module in ("builtins", "__builtin__")}}
_ALLOWED["collections", "OrderedDict"] = dict


class PaddleFile(Weights):
    """The tensors of a file of `paddle.save`: a state dict, or dicts of them, whose names are joined by dots.

    Args:
        path: The file.

    Raises:
        ConfigError: It is no such file, or holds more than arrays and plain values.
    """

    of_torch = False

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading_pickle(path, "paddle.save"), open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            content = Unpickler(file, size, _ALLOWED, (*PLAIN_STEPS, *DICT_STEPS), encoding="latin1").load()
            self._arrays = dict(leaves_of(_joined(content), _array))
        self.shapes = {name: array.shape for name, array in self._arrays.items()}
        self.check_not_empty()

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor; see `Weights.read`. Paddle keeps bfloat16 as uint16, which nothing tells apart."""
        return self._arrays[name]


def _joined(content: Any) -> Any:
    """Returns a state dict with its large tensors in one part."""
    if not isinstance(content, dict):
        return content
    parts = content.pop(_PARTS, {})
    content.pop(_NAMES, None)
    for name, record in parts.items():
        slices = [unwrap(content.pop(part)) for part in record["slices"]]
        content[name] = np.concatenate(slices).reshape(record["OriginShape"])
    return content


def _array(thing: Any) -> Optional[np.ndarray]:
    """Returns the array that a thing stands for, or None. Paddle pickles a tensor as its name and its values."""
    if isinstance(thing, tuple) and len(thing) == 2 and isinstance(thing[0], str):
        thing = thing[1]
    thing = unwrap(thing)
    return thing if isinstance(thing, np.ndarray) else None
