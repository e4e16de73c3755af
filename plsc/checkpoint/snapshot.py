"""Copies of tensors in host memory, so that they can be written while training continues."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Union

import numpy as np
import paddle

from plsc import parallel
from plsc.checkpoint.tensor_file import Stream
from plsc.machine.bfloat16 import BFLOAT16

_PART_BYTES = 32 << 20  # of a tensor on a device, copied at a time


class Snapshot:
    """Memory for copies, which is reused each time: to allocate it costs several times as much as to copy."""

    def __init__(self) -> None:
        self._copies: dict[str, np.ndarray] = {}

    def take(self, arrays: Mapping[str, Union[np.ndarray, Stream]]) -> dict[str, np.ndarray]:
        """Returns contiguous copies of all arrays, which are valid until the next call."""
        copies = {}
        for name, array in arrays.items():
            kept = self._copies.get(name)
            if kept is None or kept.shape != array.shape or kept.dtype != array.dtype:
                kept = np.empty(array.shape, array.dtype)
            _copy(array, kept)
            copies[name] = kept
        self._copies = copies
        return copies


def host_array(tensor: paddle.Tensor) -> Union[np.ndarray, Stream]:
    """Returns a tensor as an array that shares its memory on a CPU, and otherwise as a stream of parts.

    The parts are copied from the device while the stream is read. bfloat16 becomes `BFLOAT16`.
    """
    tensor, dtype = tensor.detach(), np.dtype(str(tensor.dtype).rpartition(".")[2].replace("bfloat16", BFLOAT16.str))
    if dtype == BFLOAT16:
        tensor = tensor.view("int16")
    if _is_on_host(tensor):
        array = np.from_dlpack(_ForNumpy(tensor))
        return array.view(dtype) if dtype == BFLOAT16 else array
    return Stream(dtype, tuple(tensor.shape), _Parts(tensor, dtype))


def as_tensor(array: np.ndarray) -> paddle.Tensor:
    """Returns an array as a tensor, which on a CPU shares its memory."""
    if not parallel.on_cpu() or array.dtype == bool:  # the exchange format has booleans only since 2022
        return paddle.to_tensor(array)
    return paddle.utils.dlpack.from_dlpack(array.__dlpack__())


def _is_on_host(tensor: paddle.Tensor) -> bool:
    return bool(tensor.place.is_cpu_place())


def _copy(source: Union[np.ndarray, Stream], target: np.ndarray) -> None:
    if isinstance(source, np.ndarray):
        np.copyto(target, source)
        return
    flat, done = target.reshape(-1), 0
    for part in source.parts:
        flat[done : done + part.size] = part.reshape(-1)
        done += part.size


class _Parts:
    """The parts of a tensor along the first axis, as arrays in host memory; each iteration copies them again."""

    def __init__(self, tensor: paddle.Tensor, dtype: np.dtype) -> None:
        self._tensor, self._dtype = tensor, dtype

    def __iter__(self) -> Iterator[np.ndarray]:
        if not self._tensor.shape:
            yield self._tensor.numpy().view(self._dtype)
            return
        rows, a_row = self._tensor.shape[0], self._dtype.itemsize * math.prod(self._tensor.shape[1:])
        step = max(1, _PART_BYTES // max(1, a_row))
        for first in range(0, rows, step):
            yield self._tensor[first : first + step].numpy().view(self._dtype)


class _ForNumpy:
    """A tensor with the methods through which NumPy shares memory. Paddle 2.6 has only the function behind them."""

    def __init__(self, tensor: paddle.Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return paddle.utils.dlpack.to_dlpack(self._tensor)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU
