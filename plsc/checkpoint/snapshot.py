"""Copies of tensors in host memory, so that they can be written while training continues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle

from plsc import parallel


class Snapshot:
    """Memory for copies, which is reused each time: to allocate it costs several times as much as to copy."""

    def __init__(self) -> None:
        self._copies: dict[str, np.ndarray] = {}

    def take(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns contiguous copies of all arrays, which are valid until the next call."""
        copies = {}
        for name, array in arrays.items():
            kept = self._copies.get(name)
            if kept is None or kept.shape != array.shape or kept.dtype != array.dtype:
                kept = np.empty(array.shape, array.dtype)
            np.copyto(kept, array)
            copies[name] = kept
        self._copies = copies
        return copies


def host_array(tensor: paddle.Tensor) -> np.ndarray:
    """Returns a tensor as an array: its own memory on a CPU, and a copy from another device.

    bfloat16, which NumPy does not have, becomes float32.
    """
    if tensor.dtype == paddle.bfloat16:
        tensor = tensor.astype("float32")
    if not tensor.place.is_cpu_place():
        return tensor.numpy()
    return np.from_dlpack(_ForNumpy(tensor.detach()))


def as_tensor(array: np.ndarray) -> paddle.Tensor:
    """Returns an array as a tensor, which on a CPU shares its memory."""
    if not parallel.on_cpu() or array.dtype == bool:  # the exchange format has booleans only since 2022
        return paddle.to_tensor(array)
    return paddle.utils.dlpack.from_dlpack(array.__dlpack__())


class _ForNumpy:
    """A tensor with the methods through which NumPy shares memory. Paddle 2.6 has only the function behind them."""

    def __init__(self, tensor: paddle.Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return paddle.utils.dlpack.to_dlpack(self._tensor)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU
