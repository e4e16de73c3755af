"""PReLU at the speed of the memory on a CPU, where Paddle's own operator divides integers for every element."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import paddle
from paddle import Tensor, nn
from paddle.nn import functional

from plsc.layers.gradients import Function, apply, is_for_us, operators_of

_PIECE = 1 << 18  # elements that are computed at a time; few enough to stay in the cache of the processor
_OPERATORS = operators_of("prelu")


class PReLU(nn.PReLU):
    """Paddle's PReLU layer, with the same parameter, and outputs and gradients that are equal but for rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x where it is positive, and slope * x elsewhere, [B, C, ...] -> [B, C, ...]."""
        # No super(): Paddle 2.6 cannot translate it where it exports a network.
        return nn.PReLU.forward(self, x) if self._data_format != "NCHW" else prelu(x, self._weight)


def prelu(x: Tensor, slopes: Tensor) -> Tensor:
    """Returns x where it is positive, and slope * x elsewhere.

    On a CPU, outputs and gradients of x equal those of Paddle's operator to the bit; the gradients of the slopes are
    sums in another order, which rounds less. Paddle's operator computes everything that is not float32 on a CPU, and
    with Paddle 2.6 what needs gradients.

    Args:
        x: Input, [B, C, ...].
        slopes: One slope for each channel, [C], or one for all, [1].
    """
    if not is_for_us(x, slopes, operators=_OPERATORS):
        return functional.prelu(x, slopes)
    return apply(_Slopes(), x, slopes)


class _Slopes(Function):
    """PReLU of few passes over memory: Paddle computes each of these operations with vector instructions.

    A map of one channel of one image is a row here, [B * C, H * W], because a factor for each row is quick in Paddle,
    unlike one for each channel, [1, C, 1, 1]. The rows are computed in pieces that stay in the cache: temporary tensors
    as large as x would scatter over the memory and raise its peak by a fifth.
    """

    def output(self, *tensors: Tensor) -> tuple[Tensor, None]:
        x, slopes = tensors
        return _outputs(x, slopes), None

    def gradients(
        self, tensors: Sequence[Tensor], kept: None, gradient: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor, Tensor]:
        x, slopes = tensors
        # With `create_graph`, the gradients are to be differentiated in turn.
        gradients = _differentiable_gradients if paddle.is_grad_enabled() else _gradients
        return gradients(x, slopes, gradient)


def _gradients(x: Tensor, slopes: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of x and of the slopes."""
    images, channels = x.shape[:2]
    of_x, sums = gradient.clone().reshape_([images * channels, -1]), []
    for rows, (of_row, slope) in _pieces(x, of_x, _by_row(x, slopes)):
        is_positive = paddle.sign(functional.relu(rows))
        is_negative = 1.0 - is_positive
        sums.append((rows * is_negative * of_row).sum(1))
        of_row.multiply_(is_negative.multiply_(slope).add_(is_positive))
    of_slopes = paddle.concat(sums).reshape([images, channels]).sum(0)
    return of_x.reshape_(x.shape), of_slopes if slopes.shape[0] > 1 else of_slopes.sum().reshape(slopes.shape)


def _differentiable_gradients(x: Tensor, slopes: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what `_gradients` returns, by operations that Paddle can differentiate."""
    is_positive = (x > 0).astype(x.dtype)
    slope = slopes.reshape([1, -1, *[1] * (x.ndim - 2)])
    parts = (1.0 - is_positive) * x * gradient
    of_slopes = parts.sum([axis for axis in range(x.ndim) if axis != 1])
    of_x = gradient * (is_positive + (1.0 - is_positive) * slope)
    return of_x, of_slopes if slopes.shape[0] > 1 else of_slopes.sum().reshape(slopes.shape)


def _outputs(x: Tensor, slopes: Tensor) -> Tensor:
    y = paddle.clip(x, -math.inf, 0.0).reshape_([x.shape[0] * x.shape[1], -1])
    for rows, (of_row, slope) in _pieces(x, y, _by_row(x, slopes)):
        of_row.multiply_(slope).add_(functional.relu(rows))
    return y.reshape_(x.shape)


def _by_row(x: Tensor, slopes: Tensor) -> Tensor:
    """Returns the slope of each row, [B * C, 1]."""
    return slopes.detach().expand(x.shape[:2]).reshape([-1, 1])


def _pieces(x: Tensor, *by_row: Tensor) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yields consecutive rows of x and of the other tensors; writing into them writes into the whole tensors."""
    rows = x.detach().reshape([x.shape[0] * x.shape[1], -1])
    step = max(1, _PIECE // rows.shape[1])
    for lower in range(0, rows.shape[0], step):
        upper = min(lower + step, rows.shape[0])
        yield rows._slice(lower, upper), [tensor._slice(lower, upper) for tensor in by_row]
