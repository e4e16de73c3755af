"""Sinks: what receives the gradient of the rows, chunk by chunk, in the second walk of a step.

`plsc.optim.RowUpdate` and `plsc.optim.RowOptimizer` are the sinks that train: they move the rows as an optimizer would.
The two sinks here leave the rows where they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import paddle


class RowSink(Protocol):
    """What the second walk asks of a sink.

    Attributes:
        momentum: The factor on the first of `buffers` before a gradient is added to it; 0 for SGD.
        decay: The coefficient of the L2 decay, which the walk adds to the gradient.
        buffers: Tensors like the matrix that hold its moments, or its whole gradient.
        in_place: Whether the walk may compute `momentum * buffer + gradient` into the first buffer at once.
        moves_rows: Whether `apply` changes the rows.
    """

    momentum: float
    decay: float
    buffers: tuple[paddle.Tensor, ...]
    in_place: bool
    moves_rows: bool

    def begin(self) -> None:
        """Prepares for the chunks of a step; one thread calls it before the first of them."""

    def apply(self, rows: paddle.Tensor, gradient: paddle.Tensor, buffers: Sequence[paddle.Tensor]) -> None:
        """Takes the gradient of one chunk; several threads may call it at the same time.

        Args:
            rows: The chunk's rows [C, D], to be moved in place.
            gradient: Their gradient [C, D] with decay; it may be overwritten. It is the first buffer itself if the
                walk has already added it there.
            buffers: The chunk's parts of the buffers [C, D].
        """


class DenseGradient:
    """A sink that collects the gradient of the whole matrix in `whole`, for optimizers that need all of it.

    Rows that take no part in the step have a gradient of 0.
    """

    momentum, decay, in_place, moves_rows = 0.0, 0.0, True, False

    def __init__(self, parameter: paddle.Tensor) -> None:
        self.whole = paddle.zeros_like(parameter)
        self.buffers: tuple[paddle.Tensor, ...] = (self.whole,)

    def begin(self) -> None:
        """Does nothing."""

    def apply(self, rows: paddle.Tensor, gradient: paddle.Tensor, buffers: Sequence[paddle.Tensor]) -> None:
        """Copies the gradient into the buffer, unless the walk computed it there."""
        if gradient is not buffers[0]:
            paddle.assign(gradient, buffers[0])


class SquareSum:
    """A sink that adds up the squares of the gradient, so that its norm is known before any row moves."""

    momentum, decay, in_place, moves_rows = 0.0, 0.0, False, False
    buffers: tuple[paddle.Tensor, ...] = ()

    def __init__(self) -> None:
        self._chunk_sums: list[paddle.Tensor] = []

    def begin(self) -> None:
        """Does nothing."""

    def apply(self, rows: paddle.Tensor, gradient: paddle.Tensor, buffers: Sequence[paddle.Tensor]) -> None:
        """Adds the squares of one chunk."""
        self._chunk_sums.append(gradient.multiply_(gradient).sum())

    def total(self) -> float:
        """Returns the sum, which does not depend on the order of the chunks."""
        return math.fsum(paddle.stack(self._chunk_sums).tolist()) if self._chunk_sums else 0.0
