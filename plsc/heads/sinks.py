"""Sinks: what receives the gradient of the rows, chunk by chunk, in the second walk of a step.

`plsc.optim.RowUpdate` is the sink that trains: it moves the rows as SGD or Momentum would. The two sinks here leave the
rows where they are.
"""

from __future__ import annotations

import math
from typing import Optional, Protocol

import paddle


class RowSink(Protocol):
    """What the second walk asks of a sink.

    Attributes:
        momentum: The factor on `buffer` before a gradient is added to it; 0 for SGD.
        decay: The coefficient of the L2 decay, which the walk adds to the gradient.
        buffer: A tensor like the matrix that holds its momentum, or its whole gradient; None if the sink needs neither.
        in_place: Whether the walk may compute `momentum * buffer + gradient` into the buffer at once.
        moves_rows: Whether `apply` changes the rows.
    """

    momentum: float
    decay: float
    buffer: Optional[paddle.Tensor]
    in_place: bool
    moves_rows: bool

    def apply(self, rows: paddle.Tensor, gradient: paddle.Tensor, buffer: Optional[paddle.Tensor]) -> None:
        """Takes the gradient of one chunk; several threads may call it at the same time.

        Args:
            rows: The chunk's rows [C, D], to be moved in place.
            gradient: Their gradient [C, D] with decay; it may be overwritten. It is `buffer` itself if the walk has
                already added it there.
            buffer: The chunk's part of the buffer [C, D].
        """


class DenseGradient:
    """A sink that collects the gradient of the whole matrix in `buffer`, for optimizers that need all of it.

    Rows that take no part in the step have a gradient of 0.
    """

    momentum, decay, in_place, moves_rows = 0.0, 0.0, True, False

    def __init__(self, parameter: paddle.Tensor) -> None:
        self.buffer = paddle.zeros_like(parameter)

    def apply(self, rows: paddle.Tensor, gradient: paddle.Tensor, buffer: Optional[paddle.Tensor]) -> None:
        """Copies the gradient into the buffer, unless the walk computed it there."""
        if gradient is not buffer:
            paddle.assign(gradient, buffer)


class SquareSum:
    """A sink that adds up the squares of the gradient, so that its norm is known before any row moves."""

    momentum, decay, buffer, in_place, moves_rows = 0.0, 0.0, None, False, False

    def __init__(self) -> None:
        self._chunk_sums: list[paddle.Tensor] = []

    def apply(self, rows: paddle.Tensor, gradient: paddle.Tensor, buffer: Optional[paddle.Tensor]) -> None:
        """Adds the squares of one chunk."""
        self._chunk_sums.append(gradient.multiply_(gradient).sum())

    def total(self) -> float:
        """Returns the sum, which does not depend on the order of the chunks."""
        return math.fsum(paddle.stack(self._chunk_sums).tolist()) if self._chunk_sums else 0.0
