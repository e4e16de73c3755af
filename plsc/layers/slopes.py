"""PReLU by oneDNN on a CPU, where Paddle's own operator divides integers for every element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import paddle
from paddle import Tensor, nn
from paddle.nn import functional

from plsc.layers.gradients import Function, apply, contiguous, empty, is_for_us, operators_of
from plsc.layers.kernels import addresses, kernels
from plsc.machine import onednn_layers

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
    sums in another order, which rounds less. Paddle's operator computes everything that is not float32 on a CPU, what
    needs gradients with Paddle 2.6, and everything with `PLSC_ONEDNN=0` in the environment.

    Args:
        x: Input, [B, C, ...].
        slopes: One slope for each channel, [C], or one for all, [1].
    """
    is_ours = is_for_us(x, slopes, operators=_OPERATORS) and x.ndim > 1
    is_ours = is_ours and tuple(slopes.shape) in ((1,), (x.shape[1],))
    sizes = (*x.shape[:2], math.prod(x.shape[2:])) if is_ours else ()
    found = kernels(onednn_layers.Prelu, *sizes) if is_ours else None
    return functional.prelu(x, slopes) if found is None else apply(_Slopes(found), contiguous(x), slopes)


class _Slopes(Function):
    def __init__(self, kernels: onednn_layers.Prelu) -> None:
        self._kernels = kernels

    def output(self, *tensors: Tensor) -> tuple[Tensor, None]:
        x, slopes = tensors
        y, inputs = empty(x.shape), (x, _of_channels(x, slopes))  # which live until the kernels have run
        self._kernels.output(addresses(inputs), y.data_ptr())
        return y, None

    def gradients(
        self, tensors: Sequence[Tensor], kept: None, gradient: Tensor, wanted: Sequence[bool]
    ) -> Sequence[Optional[Tensor]]:
        x, slopes = tensors
        # With `create_graph`, the gradients are to be differentiated in turn.
        compute = self._differentiable_gradients if paddle.is_grad_enabled() else self._gradients
        of_x, of_channels = compute(x, slopes, gradient)
        return of_x, of_channels if slopes.shape[0] > 1 else of_channels.sum().reshape(slopes.shape)

    def _gradients(self, x: Tensor, slopes: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        inputs, results = (x, _of_channels(x, slopes)), (empty(x.shape), empty(x.shape[1:2]))
        self._kernels.gradients(addresses(inputs), gradient.data_ptr(), addresses(results))
        return results

    def _differentiable_gradients(self, x: Tensor, slopes: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what `_gradients` returns, by operations that Paddle can differentiate."""
        is_positive = (x > 0).astype(x.dtype)
        slope = slopes.reshape([1, -1, *[1] * (x.ndim - 2)])
        parts = (1.0 - is_positive) * x * gradient
        of_x = gradient * (is_positive + (1.0 - is_positive) * slope)
        return of_x, parts.sum([axis for axis in range(x.ndim) if axis != 1])


def _of_channels(x: Tensor, slopes: Tensor) -> Tensor:
    """Returns the slope of each channel of x, [C]. oneDNN has no kernels of the processor for one slope for all."""
    return contiguous(slopes if slopes.shape[0] == x.shape[1] else slopes.detach().expand(x.shape[1:2]))
