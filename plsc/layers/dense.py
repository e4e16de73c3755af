"""A linear layer whose gradients are fast on a CPU, where Paddle adds up the gradient of the bias one row at a time."""

from __future__ import annotations

import paddle
from paddle import Tensor, nn
from paddle.nn import functional

_MATMUL, _LINEAR = paddle._C_ops.matmul, getattr(paddle._C_ops, "linear", None)


class Linear(nn.Linear):
    """Paddle's linear layer, with the same parameters, and outputs and gradients that are equal but for rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x weight + bias, [..., in_features] -> [..., out_features]."""
        if not self._is_for_us(x):
            return functional.linear(x, self.weight, self.bias)
        product = paddle.matmul(x, self.weight)
        # The bias in every row is a product with ones, so its gradient is one too.
        ones = paddle.ones([product.size // product.shape[-1], 1])
        return product + paddle.matmul(ones, self.bias.unsqueeze(0)).reshape(product.shape)

    def _is_for_us(self, x: Tensor) -> bool:
        """Returns whether the bias gets a gradient on a CPU in float32, without a simulated precision."""
        return (
            paddle.in_dynamic_mode()
            and paddle.is_grad_enabled()
            and x.place.is_cpu_place()
            and 0 not in x.shape
            and self.bias is not None
            and not self.bias.stop_gradient
            and x.dtype == self.weight.dtype == self.bias.dtype == paddle.float32
            # plsc.amp replaces those whose numbers are to be rounded.
            and (paddle._C_ops.matmul, getattr(paddle._C_ops, "linear", None)) == (_MATMUL, _LINEAR)
        )
