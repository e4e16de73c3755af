"""Functions without parameters: arithmetic, shapes, reductions, dropout.

`name` and `inplace` are taken as scripts of Paddle 1.x give them, and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional, Union

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import functional

from plsc.errors import PlscError
from plsc.layers.activations import activated
from plsc.layers.scope import in_dry_run

Axes = Union[None, int, Sequence[int]]


def _aligned(x: Tensor, y: Any, axis: int) -> Any:
    """`y` with its first dimension at dimension `axis` of x, to be broadcast over the later ones."""
    if axis == -1 or not isinstance(y, paddle.Tensor) or len(y.shape) == len(x.shape):
        return y
    shape = list(y.shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape.pop()
    return y.reshape(shape + [1] * (len(x.shape) - axis - len(shape)))


def _elementwise(x: Tensor, y: Any, axis: int, act: Optional[str], compute: Callable[[Any, Any], Tensor]) -> Tensor:
    y = _aligned(x, y, axis)
    return activated(compute(x, y if isinstance(y, paddle.Tensor) else paddle.to_tensor(y, x.dtype)), act)


def elementwise_add(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """x + y; the dimensions of y stand at those of x from `axis` on, or at the last ones for -1."""
    return _elementwise(x, y, axis, act, paddle.add)


def elementwise_sub(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """x - y; `axis` as in `elementwise_add`."""
    return _elementwise(x, y, axis, act, paddle.subtract)


def elementwise_mul(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """x * y; `axis` as in `elementwise_add`."""
    return _elementwise(x, y, axis, act, paddle.multiply)


def elementwise_div(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """x / y, towards zero for whole numbers; `axis` as in `elementwise_add`."""
    return _elementwise(x, y, axis, act, paddle.divide if x.is_floating_point() else _whole_quotient)


def elementwise_max(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """The larger of x and y; `axis` as in `elementwise_add`."""
    return _elementwise(x, y, axis, act, paddle.maximum)


def elementwise_min(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """The smaller of x and y; `axis` as in `elementwise_add`."""
    return _elementwise(x, y, axis, act, paddle.minimum)


def elementwise_pow(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """x to the y; `axis` as in `elementwise_add`."""
    return _elementwise(x, y, axis, act, paddle.pow)


def elementwise_mod(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """Remainder of x / y with the sign of y; `axis` as in `elementwise_add`."""
    return _elementwise(x, y, axis, act, paddle.remainder)


def elementwise_floordiv(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """x / y without its fraction (towards zero, as Paddle 1.x had it); `axis` as in `elementwise_add`."""
    return _elementwise(x, y, axis, act, _whole_quotient)


def _whole_quotient(x: Tensor, y: Tensor) -> Tensor:
    return paddle.trunc(x.astype("float64") / y.astype("float64")).astype(x.dtype)


def scale(
    x: Tensor,
    scale: Any = 1.0,
    bias: float = 0.0,
    bias_after_scale: bool = True,
    act: Optional[str] = None,
    name: Optional[str] = None,
) -> Tensor:
    """scale * x + bias, or scale * (x + bias)."""
    return activated(paddle.scale(x, scale, bias, bias_after_scale), act)


def clip(x: Tensor, min: float, max: float, name: Optional[str] = None) -> Tensor:
    """x, no less than `min` and no more than `max`."""
    return paddle.clip(x, min, max)


def matmul(
    x: Tensor,
    y: Tensor,
    transpose_x: bool = False,
    transpose_y: bool = False,
    alpha: float = 1.0,
    name: Optional[str] = None,
) -> Tensor:
    """alpha * x y over the last two dimensions."""
    product = paddle.matmul(x, y, transpose_x, transpose_y)
    return product if alpha == 1.0 else product * alpha


def mul(x: Tensor, y: Tensor, x_num_col_dims: int = 1, y_num_col_dims: int = 1, name: Optional[str] = None) -> Tensor:
    """Matrix product of x and y as matrices: their first so many dimensions are the rows.

    Returns:
        Of shape x.shape[:x_num_col_dims] + y.shape[y_num_col_dims:].
    """
    product = paddle.matmul(flatten(x, x_num_col_dims), flatten(y, y_num_col_dims))
    return product.reshape([*x.shape[:x_num_col_dims], *y.shape[y_num_col_dims:]])


def l2_normalize(x: Tensor, axis: Optional[int], epsilon: float = 1e-12, name: Optional[str] = None) -> Tensor:
    """x / sqrt(sum(x * x) + epsilon) along `axis`; None means 1."""
    along = 0 if len(x.shape) == 1 else 1 if axis is None else axis
    return x * paddle.rsqrt(paddle.sum(x * x, along, keepdim=True) + epsilon)


def concat(input: Sequence[Tensor], axis: int = 0, name: Optional[str] = None) -> Tensor:
    """The tensors one after the other along `axis`."""
    return paddle.concat(list(input) if isinstance(input, (list, tuple)) else [input], axis)


def stack(x: Sequence[Tensor], axis: int = 0) -> Tensor:
    """The tensors along a new dimension."""
    return paddle.stack(list(x), axis)


def split(
    input: Tensor, num_or_sections: Union[int, Sequence[int]], dim: int = -1, name: Optional[str] = None
) -> list[Tensor]:
    """So many equal parts of `dim`, or parts of the given sizes, of which one may be -1."""
    return paddle.split(input, num_or_sections, dim)


def reshape(
    x: Tensor,
    shape: Sequence[int],
    actual_shape: Any = None,
    act: Optional[str] = None,
    inplace: bool = False,
    name: Optional[str] = None,
) -> Tensor:
    """x with another shape: 0 takes the dimension of x at that place, one -1 takes the rest.

    Args:
        actual_shape: used instead of `shape` where it is given.
    """
    return activated(paddle.reshape(x, shape if actual_shape is None else actual_shape), act)


def transpose(x: Tensor, perm: Sequence[int], name: Optional[str] = None) -> Tensor:
    """x with its dimensions in the order `perm`."""
    return paddle.transpose(x, perm)


def flatten(x: Tensor, axis: int = 1, name: Optional[str] = None) -> Tensor:
    """x as a matrix: the dimensions before `axis` are its rows."""
    if not 0 <= axis <= len(x.shape):
        raise PlscError(f"layers.flatten: axis={axis}: expected 0 to {len(x.shape)} for an input {list(x.shape)}")
    if axis == 0:
        return x.reshape([1, -1])
    if axis == len(x.shape):
        return x.reshape([-1, 1])
    return x.flatten(axis).flatten(0, axis - 1)


def squeeze(input: Tensor, axes: Axes, name: Optional[str] = None) -> Tensor:
    """Without those of the dimensions `axes` that are 1; [] means all that are."""
    return paddle.squeeze(input, axes or None if isinstance(axes, (list, tuple)) else axes)


def unsqueeze(input: Tensor, axes: Union[int, Sequence[int]], name: Optional[str] = None) -> Tensor:
    """With new dimensions of 1 at `axes`."""
    return paddle.unsqueeze(input, axes)


def cast(x: Tensor, dtype: str) -> Tensor:
    """x as another type."""
    return x.astype(dtype)


def _reduced(input: Tensor, dim: Axes, keep_dim: bool, reduce: Callable[..., Tensor]) -> Tensor:
    axes = [dim] if isinstance(dim, int) else list(dim or range(len(input.shape)))
    result = reduce(input, axes, keepdim=keep_dim)
    return result if len(result.shape) else result.reshape([1])


def reduce_sum(input: Tensor, dim: Axes = None, keep_dim: bool = False, name: Optional[str] = None) -> Tensor:
    """Sum along `dim`; of all elements, with shape [1], for None."""
    return _reduced(input, dim, keep_dim, paddle.sum)


def reduce_mean(input: Tensor, dim: Axes = None, keep_dim: bool = False, name: Optional[str] = None) -> Tensor:
    """Mean along `dim`, as `reduce_sum`."""
    return _reduced(input, dim, keep_dim, paddle.mean)


def reduce_max(input: Tensor, dim: Axes = None, keep_dim: bool = False, name: Optional[str] = None) -> Tensor:
    """Largest element along `dim`, as `reduce_sum`."""
    return _reduced(input, dim, keep_dim, paddle.max)


def reduce_min(input: Tensor, dim: Axes = None, keep_dim: bool = False, name: Optional[str] = None) -> Tensor:
    """Smallest element along `dim`, as `reduce_sum`."""
    return _reduced(input, dim, keep_dim, paddle.min)


def reduce_prod(input: Tensor, dim: Axes = None, keep_dim: bool = False, name: Optional[str] = None) -> Tensor:
    """Product along `dim`, as `reduce_sum`."""
    return _reduced(input, dim, keep_dim, paddle.prod)


def reduce_all(input: Tensor, dim: Axes = None, keep_dim: bool = False, name: Optional[str] = None) -> Tensor:
    """Whether all elements along `dim` are true, as `reduce_sum`."""
    return _reduced(input, dim, keep_dim, paddle.all)


def reduce_any(input: Tensor, dim: Axes = None, keep_dim: bool = False, name: Optional[str] = None) -> Tensor:
    """Whether one element along `dim` is true, as `reduce_sum`."""
    return _reduced(input, dim, keep_dim, paddle.any)


def mean(x: Tensor, name: Optional[str] = None) -> Tensor:
    """Mean of all elements, of shape [1]."""
    return paddle.mean(x).reshape([1])


def dropout(
    x: Tensor,
    dropout_prob: float,
    is_test: bool = False,
    seed: Optional[int] = None,
    name: Optional[str] = None,
    dropout_implementation: str = "downgrade_in_infer",
) -> Tensor:
    """Sets elements to 0 with probability `dropout_prob` in training.

    Args:
        seed: draws the same mask at every call; 0 and None draw new ones.
        dropout_implementation: 'downgrade_in_infer' multiplies by 1 - dropout_prob in tests, 'upscale_in_train' divides by it
            in training.
    """
    if dropout_implementation not in ("downgrade_in_infer", "upscale_in_train"):
        raise PlscError(
            f"layers.dropout: dropout_implementation={dropout_implementation!r}: expected 'downgrade_in_infer' or 'upscale_in_train'"
        )
    upscale = dropout_implementation == "upscale_in_train"
    if is_test or in_dry_run():
        return x if upscale else x * (1.0 - dropout_prob)
    if not seed:
        return functional.dropout(x, dropout_prob, mode="upscale_in_train" if upscale else "downscale_in_infer")
    kept = np.random.RandomState(seed).random_sample([int(side) for side in x.shape]) >= dropout_prob
    factor = 1.0 / (1.0 - dropout_prob) if upscale and dropout_prob < 1 else 1.0
    return x * paddle.to_tensor(kept * factor, x.dtype)
