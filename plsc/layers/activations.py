"""Activation functions, and the argument `act` of the other layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import paddle
from paddle import Tensor, nn
from paddle.nn import functional

from plsc.errors import PlscError
from plsc.layers.scope import as_attr, find_layer
from plsc.layers.slopes import PReLU


def relu(x: Tensor, name: Optional[str] = None) -> Tensor:
    """Returns max(x, 0)."""
    return functional.relu(x)


def relu6(x: Tensor, threshold: float = 6.0, name: Optional[str] = None) -> Tensor:
    """Returns min(max(x, 0), threshold)."""
    return paddle.clip(x, 0.0, threshold)


def leaky_relu(x: Tensor, alpha: float = 0.02, name: Optional[str] = None) -> Tensor:
    """Returns x where it is positive, and alpha * x elsewhere."""
    return functional.leaky_relu(x, alpha)


def elu(x: Tensor, alpha: float = 1.0, name: Optional[str] = None) -> Tensor:
    """Returns x where it is positive, and alpha * (exp(x) - 1) elsewhere."""
    return functional.elu(x, alpha)


def sigmoid(x: Tensor, name: Optional[str] = None) -> Tensor:
    """Returns 1 / (1 + exp(-x))."""
    return functional.sigmoid(x)


def hard_sigmoid(x: Tensor, slope: float = 0.2, offset: float = 0.5, name: Optional[str] = None) -> Tensor:
    """Returns slope * x + offset, clipped to [0, 1]."""
    return functional.hardsigmoid(x, slope, offset)


def tanh(x: Tensor, name: Optional[str] = None) -> Tensor:
    """Returns the hyperbolic tangent of x."""
    return paddle.tanh(x)


def swish(x: Tensor, beta: float = 1.0, name: Optional[str] = None) -> Tensor:
    """Returns x * sigmoid(beta * x)."""
    return x * functional.sigmoid(beta * x)


def hard_swish(
    x: Tensor, threshold: float = 6.0, scale: float = 6.0, offset: float = 3.0, name: Optional[str] = None
) -> Tensor:
    """Returns x * min(max(x + offset, 0), threshold) / scale."""
    return x * paddle.clip(x + offset, 0.0, threshold) / scale


def softmax(input: Tensor, use_cudnn: bool = False, name: Optional[str] = None, axis: int = -1) -> Tensor:
    """Returns exp(x) / sum(exp(x)) along `axis`. `use_cudnn` has no effect."""
    return functional.softmax(input, axis)


def exp(x: Tensor, name: Optional[str] = None) -> Tensor:
    """Returns e to the power of x."""
    return paddle.exp(x)


def sqrt(x: Tensor, name: Optional[str] = None) -> Tensor:
    """Returns the square root of x."""
    return paddle.sqrt(x)


def square(x: Tensor, name: Optional[str] = None) -> Tensor:
    """Returns x * x."""
    return paddle.square(x)


def abs(x: Tensor, name: Optional[str] = None) -> Tensor:
    """Returns the absolute value of x."""
    return paddle.abs(x)


def softplus(x: Tensor, name: Optional[str] = None) -> Tensor:
    """Returns log(1 + exp(x))."""
    return functional.softplus(x)


def prelu(x: Tensor, mode: str = "channel", param_attr: Any = None, name: Optional[str] = None) -> Tensor:
    """Returns x where it is positive, and slope * x elsewhere. The slopes are trained, starting from 0.25.

    Args:
        x: Input, [B, C, ...].
        mode: 'all' for one slope, 'channel' for one per channel, 'element' for one per element of a sample.
        param_attr: Attributes of the slopes; see `conv2d`.
        name: Name of the layer; see `conv2d`.
    """
    shapes = {"all": [1], "channel": [int(n) for n in x.shape[1:2]], "element": [1, *(int(n) for n in x.shape[1:])]}
    if mode not in shapes:
        raise PlscError(f"layers.prelu: mode={mode!r}: expected 'all', 'channel' or 'element'")
    shape = shapes[mode]
    attr, shared = as_attr(param_attr)

    def make() -> nn.Layer:
        if mode != "element":
            return PReLU(shape[0], init=0.25, weight_attr=attr)
        return Parameter(shape, attr, default_initializer=nn.initializer.Constant(0.25), attribute="_weight")

    layer = find_layer("prelu", name, (mode, *shape), make, {"_weight": shared})
    if mode != "element":
        return layer(x)
    return paddle.clip(x, min=0.0) + layer._weight * paddle.clip(x, max=0.0)


class Parameter(nn.Layer):
    """A layer that holds one parameter and cannot be called."""

    def __init__(
        self,
        shape: list[int],
        attr: Any,
        dtype: str = "float32",
        is_bias: bool = False,
        default_initializer: Any = None,
        attribute: str = "weight",
    ) -> None:
        super().__init__()
        setattr(self, attribute, self.create_parameter(shape, attr, dtype, is_bias, default_initializer))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    one.__name__: one
    for one in (
        *(relu, relu6, leaky_relu, elu, sigmoid, hard_sigmoid, tanh, swish, hard_swish),
        *(softmax, exp, sqrt, square, abs, softplus, prelu),
    )
}


def activated(x: Tensor, act: Optional[str]) -> Tensor:
    """Applies the activation of the given name with its defaults; 'prelu' has one slope per channel."""
    if act is None:
        return x
    if act not in ACTIVATIONS:
        raise PlscError(f"act={act!r}: expected None or one of {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[act](x)
