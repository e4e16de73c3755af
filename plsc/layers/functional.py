"""Functions without parameters: arithmetic, shapes, reductions, dropout.

The arguments `name` and `inplace` are accepted for scripts of Paddle 1.x, and have no effect.
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
    """Reshapes `y` so that its first dimension stands at dimension `axis` of x, and broadcasts over the later ones."""
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
    """Returns x + y. The dimensions of y match those of x from `axis` on, or the last ones if `axis` is -1."""
    return _elementwise(x, y, axis, act, paddle.add)


def elementwise_sub(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """Returns x - y; for `axis` see `elementwise_add`."""
    return _elementwise(x, y, axis, act, paddle.subtract)


def elementwise_mul(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """Returns x * y; for `axis` see `elementwise_add`."""
    return _elementwise(x, y, axis, act, paddle.multiply)


def elementwise_div(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """Returns x / y, rounded towards zero for integers; for `axis` see `elementwise_add`."""
    return _elementwise(x, y, axis, act, paddle.divide if x.is_floating_point() else _whole_quotient)


def elementwise_max(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """Returns the larger of x and y; for `axis` see `elementwise_add`."""
    return _elementwise(x, y, axis, act, paddle.maximum)


def elementwise_min(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """Returns the smaller of x and y; for `axis` see `elementwise_add`."""
    return _elementwise(x, y, axis, act, paddle.minimum)


def elementwise_pow(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """Returns x to the power of y; for `axis` see `elementwise_add`."""
    return _elementwise(x, y, axis, act, paddle.pow)


def elementwise_mod(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """Returns the remainder of x / y, with the sign of y; for `axis` see `elementwise_add`."""
    return _elementwise(x, y, axis, act, paddle.remainder)


def elementwise_floordiv(
    x: Tensor, y: Tensor, axis: int = -1, act: Optional[str] = None, name: Optional[str] = None
) -> Tensor:
    """Returns x / y rounded towards zero, as in Paddle 1.x; for `axis` see `elementwise_add`."""
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
    """Returns scale * x + bias, or scale * (x + bias) if `bias_after_scale` is False."""
    return activated(paddle.scale(x, scale, bias, bias_after_scale), act)


def clip(x: Tensor, min: float, max: float, name: Optional[str] = None) -> Tensor:
    """Returns x clipped to [min, max]."""
    return paddle.clip(x, min, max)


def matmul(
    x: Tensor,
    y: Tensor,
    transpose_x: bool = False,
    transpose_y: bool = False,
    alpha: float = 1.0,
    name: Optional[str] = None,
) -> Tensor:
    """Returns alpha times the matrix product of x and y, over their last two dimensions."""
    product = paddle.matmul(x, y, transpose_x, transpose_y)
    return product if alpha == 1.0 else product * alpha


def mul(x: Tensor, y: Tensor, x_num_col_dims: int = 1, y_num_col_dims: int = 1, name: Optional[str] = None) -> Tensor:
    """Returns the matrix product of x and y, flattened to matrices.

    Args:
        x: First factor.
        y: Second factor.
        x_num_col_dims: Number of leading dimensions of x that form the rows of its matrix.
        y_num_col_dims: Number of leading dimensions of y that form the rows of its matrix.
        name: Has no effect.

    Returns:
        A tensor of shape x.shape[:x_num_col_dims] + y.shape[y_num_col_dims:].
    """
    product = paddle.matmul(flatten(x, x_num_col_dims), flatten(y, y_num_col_dims))
    return product.reshape([*x.shape[:x_num_col_dims], *y.shape[y_num_col_dims:]])


def l2_normalize(x: Tensor, axis: Optional[int], epsilon: float = 1e-12, name: Optional[str] = None) -> Tensor:
    """Returns x / sqrt(sum(x * x) + epsilon) along `axis`; None means axis 1."""
    along = 0 if len(x.shape) == 1 else 1 if axis is None else axis
    return x * paddle.rsqrt(paddle.sum(x * x, along, keepdim=True) + epsilon)


def concat(input: Sequence[Tensor], axis: int = 0, name: Optional[str] = None) -> Tensor:
    """Concatenates tensors along `axis`."""
    return paddle.concat(list(input) if isinstance(input, (list, tuple)) else [input], axis)


def stack(x: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Stacks tensors along a new dimension."""
    return paddle.stack(list(x), axis)


def split(
    input: Tensor, num_or_sections: Union[int, Sequence[int]], dim: int = -1, name: Optional[str] = None
) -> list[Tensor]:
    """Splits `dim` into a number of equal parts, or into parts of the given sizes, one of which may be -1."""
    return paddle.split(input, num_or_sections, dim)


def reshape(
    x: Tensor,
    shape: Sequence[int],
    actual_shape: Any = None,
    act: Optional[str] = None,
    inplace: bool = False,
    name: Optional[str] = None,
) -> Tensor:
    """Reshapes x.

    Args:
        x: Input.
        shape: New shape. A 0 stands for the dimension of x at that place, and one -1 for what remains.
        actual_shape: Replaces `shape` if it is given.
        act: Activation to apply; None applies none.
        inplace: Has no effect.
        name: Has no effect.
    """
    return activated(paddle.reshape(x, shape if actual_shape is None else actual_shape), act)


def transpose(x: Tensor, perm: Sequence[int], name: Optional[str] = None) -> Tensor:
    """Returns x with its dimensions in the order `perm`."""
    return paddle.transpose(x, perm)


def flatten(x: Tensor, axis: int = 1, name: Optional[str] = None) -> Tensor:
    """Flattens x to a matrix, whose rows are the dimensions before `axis`."""
    if not 0 <= axis <= len(x.shape):
        raise PlscError(f"layers.flatten: axis={axis}: expected 0 to {len(x.shape)} for an input {list(x.shape)}")
    if axis == 0:
        return x.reshape([1, -1])
    if axis == len(x.shape):
        return x.reshape([-1, 1])
    return x.flatten(axis).flatten(0, axis - 1)


def squeeze(input: Tensor, axes: Axes, name: Optional[str] = None) -> Tensor:
    """Removes those of the dimensions `axes` that are 1; [] removes all that are 1."""
    return paddle.squeeze(input, axes or None if isinstance(axes, (list, tuple)) else axes)


def unsqueeze(input: Tensor, axes: Union[int, Sequence[int]], name: Optional[str] = None) -> Tensor:
    """Inserts new dimensions of 1 at `axes`."""
    return paddle.unsqueeze(input, axes)


def cast(x: Tensor, dtype: str) -> Tensor:
    """Converts x to another type."""
    return x.astype(dtype)


def _reduced(input: Tensor, dim: Axes, keep_dim: bool, reduce: Callable[..., Tensor]) -> Tensor:
    axes = [dim] if isinstance(dim, int) else list(dim or range(len(input.shape)))
    result = reduce(input, axes, keepdim=keep_dim)
    return result if len(result.shape) else result.reshape([1])


def reduce_sum(input: Tensor, dim: Axes = None, keep_dim: bool = False, name: Optional[str] = None) -> Tensor:
    """Returns the sum along `dim`; None sums all elements, and gives shape [1]."""
    return _reduced(input, dim, keep_dim, paddle.sum)


def reduce_mean(input: Tensor, dim: Axes = None, keep_dim: bool = False, name: Optional[str] = None) -> Tensor:
    """Returns the mean along `dim`; see `reduce_sum`."""
    return _reduced(input, dim, keep_dim, paddle.mean)


def reduce_max(input: Tensor, dim: Axes = None, keep_dim: bool = False, name: Optional[str] = None) -> Tensor:
    """Returns the largest element along `dim`; see `reduce_sum`."""
    return _reduced(input, dim, keep_dim, paddle.max)


def reduce_min(input: Tensor, dim: Axes = None, keep_dim: bool = False, name: Optional[str] = None) -> Tensor:
    """Returns the smallest element along `dim`; see `reduce_sum`."""
    return _reduced(input, dim, keep_dim, paddle.min)


def reduce_prod(input: Tensor, dim: Axes = None, keep_dim: bool = False, name: Optional[str] = None) -> Tensor:
    """Returns the product along `dim`; see `reduce_sum`."""
    return _reduced(input, dim, keep_dim, paddle.prod)


def reduce_all(input: Tensor, dim: Axes = None, keep_dim: bool = False, name: Optional[str] = None) -> Tensor:
    """Returns whether all elements along `dim` are true; see `reduce_sum`."""
    return _reduced(input, dim, keep_dim, paddle.all)


def reduce_any(input: Tensor, dim: Axes = None, keep_dim: bool = False, name: Optional[str] = None) -> Tensor:
    """Returns whether any element along `dim` is true; see `reduce_sum`."""
    return _reduced(input, dim, keep_dim, paddle.any)


def mean(x: Tensor, name: Optional[str] = None) -> Tensor:
    """Returns the mean of all elements, with shape [1]."""
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
        x: Input.
        dropout_prob: Probability that an element becomes 0.
        is_test: Whether to keep all elements, as in tests.
        seed: Seed that draws the same mask at every call; 0 and None draw new masks.
        name: Has no effect.
        dropout_implementation: 'downgrade_in_infer' multiplies by 1 - dropout_prob in tests; 'upscale_in_train' divides
            by it in training.
    """
    if dropout_implementation not in ("downgrade_in_infer", "upscale_in_train"):
        raise PlscError(
            f"layers.dropout: dropout_implementation={dropout_implementation!r}: expected 'downgrade_in_infer' or "
            "'upscale_in_train'"
        )
    upscale = dropout_implementation == "upscale_in_train"
    if is_test or in_dry_run():
        return x if upscale else x * (1.0 - dropout_prob)
    if not seed:
        return functional.dropout(x, dropout_prob, mode="upscale_in_train" if upscale else "downscale_in_infer")
    kept = np.random.RandomState(seed).random_sample([int(side) for side in x.shape]) >= dropout_prob
    factor = 1.0 / (1.0 - dropout_prob) if upscale and dropout_prob < 1 else 1.0
    return x * paddle.to_tensor(kept * factor, x.dtype)
