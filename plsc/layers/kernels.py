"""Kernels of oneDNN for the layers on a CPU, and the variable that switches them off."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

from paddle import Tensor

from plsc.machine import onednn

VARIABLE = "PLSC_ONEDNN"
_OFF = ("0", "off", "no", "false")
_SHAPES = 256  # for which kernels are kept


def is_switched_off() -> bool:
    """Returns whether `PLSC_ONEDNN` leaves all computations to Paddle's own operators."""
    return os.environ.get(VARIABLE, "").lower() in _OFF


def kernels(kind: Any, *sizes: Any) -> Any:
    """Returns an object of a class of `plsc.machine.onednn_layers` for these sizes.

    None stands for what oneDNN does not compute: it is switched off, or missing, or has no kernels of this processor.
    """
    library = None if is_switched_off() else onednn.library()
    return None if library is None else _kernels_for(kind, sizes, library.threads())


def addresses(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Returns where the values of each tensor begin in memory."""
    return tuple(tensor.data_ptr() for tensor in tensors)


@functools.lru_cache(maxsize=_SHAPES)
def _kernels_for(kind: Any, sizes: tuple[Any, ...], threads: int) -> Any:
    try:
        return kind(onednn.library(), *sizes)
    except NotImplementedError:
        return None
