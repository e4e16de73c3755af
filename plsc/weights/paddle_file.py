"""Reads the files of `paddle.save` (`.pdparams`), which are pickles of NumPy arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plsc.errors import ConfigError
from plsc.machine.pickles import (
    DICT_STEPS,
    PLAIN_STEPS,
    FloatDtype,
    RefusedError,
    Unpickler,
    arrays,
    reason,
    unwrap,
)
from plsc.weights.source import Weights, damaged, open_file

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
        try:
            with open_file(path) as file:
                size = os.fstat(file.fileno()).st_size
                content = Unpickler(file, size, _ALLOWED, (*PLAIN_STEPS, *DICT_STEPS), encoding="latin1").load()
            self._arrays = dict(_arrays_of(_joined(content), ""))
        except ConfigError:
            raise
        except RefusedError as problem:
            raise ConfigError(
                f"{path}: asks for {problem}, which weights do not need, so it is not read; save the state_dict of the "
                "network alone with paddle.save"
            ) from None
        except Exception as problem:  # A damaged pickle can raise nearly any type.
            raise damaged(path, reason(problem)) from None
        self.shapes = {name: array.shape for name, array in self._arrays.items()}
        if not self.shapes:
            raise ConfigError(f"{path}: holds no tensors; name a file with the state_dict of a network")

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


def _arrays_of(content: Any, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays in dicts and lists, with their names."""
    content = unwrap(content)
    if isinstance(content, tuple) and len(content) == 2 and isinstance(content[0], str):
        content = unwrap(content[1])  # how Paddle pickles a tensor: its name and its values
    if isinstance(content, np.ndarray):
        yield prefix or "tensor", content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _arrays_of(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(content, (list, tuple)):
        for number, value in enumerate(content):
            yield from _arrays_of(value, f"{prefix}.{number}" if prefix else str(number))
