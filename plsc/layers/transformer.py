"""The layers of transformers on a CPU, where oneDNN takes a fraction of the time of some of Paddle's operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import paddle
from paddle import Tensor, nn

from plsc.layers.gradients import (
    HAS_GRADIENTS,
    Function,
    apply,
    contiguous,
    empty,
    is_for_us,
    is_plain,
    need_gradients,
    operators_of,
)
from plsc.layers.kernels import addresses, kernels
from plsc.machine import onednn_layers

_LINEAR, _GELU, _LAYER_NORM = (operators_of(*names) for names in (("matmul", "linear"), ("gelu",), ("layer_norm",)))
_FEWEST_OUTPUTS = 1 << 16  # With fewer, calling oneDNN takes longer than adding the bias.


class Linear(nn.Linear):
    """Paddle's linear layer, with the same parameters, and outputs and gradients that are equal but for rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x weight + bias, [..., in_features] -> [..., out_features]."""
        tensors = (x, self.weight, self.bias)
        if not is_plain(*tensors, operators=_LINEAR) or x.shape[-1] != self.weight.shape[0]:
            return nn.functional.linear(x, self.weight, self.bias)
        if not HAS_GRADIENTS and need_gradients(*tensors):
            # The bias in every row is a product with ones, and so is its gradient, as in `_Linear`.
            product = paddle.matmul(x, self.weight)
            ones = paddle.ones([product.size // product.shape[-1], 1])
            return product + paddle.matmul(ones, self.bias.unsqueeze(0)).reshape(product.shape)
        sizes = (x.size // x.shape[-1], *self.weight.shape)
        found = kernels(onednn_layers.Affine, *sizes) if sizes[0] * sizes[2] >= _FEWEST_OUTPUTS else None
        return apply(_Linear(found), contiguous(x), self.weight, self.bias)


class GELU(nn.GELU):
    """Paddle's GELU layer, with outputs and gradients that are equal but for rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x P(X <= x) of each element, where X is standard normal."""
        is_ours = not self._approximate and is_for_us(x, operators=_GELU)
        found = kernels(onednn_layers.Gelu, x.size) if is_ours else None
        return nn.GELU.forward(self, x) if found is None else apply(_Gelu(found), contiguous(x))


class LayerNorm(nn.LayerNorm):
    """Paddle's layer normalisation, with the same parameters, and outputs and gradients equal but for rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns the input with normalised rows, [..., *normalized_shape] -> the same."""
        shape = list(self._normalized_shape)
        is_ours = is_for_us(input, self.weight, self.bias, operators=_LAYER_NORM)
        found = None
        if is_ours and list(input.shape[-len(shape) :]) == shape:
            width = math.prod(shape)
            found = kernels(onednn_layers.LayerNorm, input.size // width, width, self._epsilon)
        if found is not None:
            return apply(_LayerNorm(found, self._epsilon), contiguous(input), self.weight, self.bias)
        if self.weight is None or self.bias is None or not self._has_wrong_gradient(input):
            return nn.LayerNorm.forward(self, input)
        normalised = nn.functional.layer_norm(input, shape, None, None, self._epsilon)
        return normalised * self.weight.reshape(shape) + self.bias.reshape(shape)

    def _has_wrong_gradient(self, input: Tensor) -> bool:
        """Returns whether Paddle (2.6 to 3.3) would leave the weight out of the gradient of the input: if frozen."""
        is_training = paddle.in_dynamic_mode() and paddle.is_grad_enabled() and not input.stop_gradient
        return is_training and input.place.is_cpu_place() and self.weight.stop_gradient


class _Linear(Function):
    def __init__(self, kernels: Optional[onednn_layers.Affine]) -> None:
        self._kernels = kernels

    def output(self, *tensors: Tensor) -> tuple[Tensor, None]:
        x, weight, bias = tensors
        if self._kernels is None:
            return paddle.matmul(x, weight).add_(bias), None
        y = empty([*x.shape[:-1], weight.shape[1]])
        self._kernels.output(addresses(tensors), y.data_ptr())
        return y, None

    def gradients(
        self, tensors: Sequence[Tensor], kept: None, gradient: Tensor, wanted: Sequence[bool]
    ) -> list[Optional[Tensor]]:
        x, weight, bias = tensors
        rows = gradient.reshape([-1, gradient.shape[-1]])
        of_x = paddle.matmul(gradient, weight, transpose_y=True) if wanted[0] else None
        of_weight = paddle.matmul(x.reshape([-1, x.shape[-1]]), rows, transpose_x=True) if wanted[1] else None
        # Paddle adds up one row at a time, but a product with ones is fast.
        of_bias = paddle.matmul(paddle.ones([1, rows.shape[0]]), rows).reshape(bias.shape) if wanted[2] else None
        return [of_x, of_weight, of_bias]


class _Gelu(Function):
    def __init__(self, kernels: onednn_layers.Gelu) -> None:
        self._kernels = kernels

    def output(self, *tensors: Tensor) -> tuple[Tensor, None]:
        (x,) = tensors
        y = empty(x.shape)
        self._kernels.output(x.data_ptr(), y.data_ptr())
        return y, None

    def gradients(
        self, tensors: Sequence[Tensor], kept: None, gradient: Tensor, wanted: Sequence[bool]
    ) -> list[Optional[Tensor]]:
        (x,) = tensors
        if paddle.is_grad_enabled():
            below = 0.5 + 0.5 * paddle.erf(x / math.sqrt(2))
            return [gradient * (below + x * paddle.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))]
        of_x = empty(x.shape)
        self._kernels.gradient(x.data_ptr(), gradient.data_ptr(), of_x.data_ptr())
        return [of_x]


class _LayerNorm(Function):
    def __init__(self, kernels: onednn_layers.LayerNorm, epsilon: float) -> None:
        self._kernels, self._epsilon = kernels, epsilon

    def output(self, *tensors: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, weight, _ = tensors
        y, statistics = empty(x.shape), [empty([x.size // weight.size]) for _ in range(2)]
        self._kernels.output(addresses(tensors), y.data_ptr(), addresses(statistics))
        return y, statistics

    def gradients(
        self, tensors: Sequence[Tensor], kept: list[Tensor], gradient: Tensor, wanted: Sequence[bool]
    ) -> Sequence[Optional[Tensor]]:
        if paddle.is_grad_enabled():
            x, weight, bias = tensors
            return self._differentiable_gradients(x, weight, bias, gradient)
        results = [empty(tensor.shape) for tensor in tensors]
        self._kernels.gradients(addresses(tensors), addresses(kept), gradient.data_ptr(), addresses(results))
        return results

    def _differentiable_gradients(self, x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor) -> list[Tensor]:
        shape, width = x.shape, weight.size
        x, gradient, weight = x.reshape([-1, width]), gradient.reshape([-1, width]), weight.reshape([width])
        centred = x - x.mean(1, keepdim=True)
        scale = paddle.rsqrt((centred * centred).mean(1, keepdim=True) + self._epsilon)
        normalised, weighted = centred * scale, gradient * weight
        parts = weighted.mean(1, keepdim=True) + normalised * (weighted * normalised).mean(1, keepdim=True)
        of_x = scale * (weighted - parts)
        return [
            of_x.reshape(shape),
            (gradient * normalised).sum(0).reshape(bias.shape),
            gradient.sum(0).reshape(bias.shape),
        ]
