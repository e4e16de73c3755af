"""Functions on feature maps: pooling, padding, resizing.

`name` and `use_cudnn` are taken as scripts of Paddle 1.x give them, and change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import functional

from plsc.errors import PlscError
from plsc.layers.parametric import Padding, Size


def pool2d(
    input: Tensor,
    pool_size: Size = -1,
    pool_type: str = "max",
    pool_stride: Size = 1,
    pool_padding: Padding = 0,
    global_pooling: bool = False,
    use_cudnn: bool = True,
    ceil_mode: bool = False,
    name: Optional[str] = None,
    exclusive: bool = True,
    data_format: str = "NCHW",
) -> Tensor:
    """Maximum ('max') or mean ('avg') of each window, or of the whole map with `global_pooling`.

    Args:
        pool_size: needed without `global_pooling`.
        pool_padding: as `padding` of `conv2d`.
        ceil_mode: keep a last window that is not whole.
        exclusive: a mean leaves the padding out.
    """
    _check_pool_type("pool2d", pool_type)
    if global_pooling:
        if data_format == "NHWC":
            return pool2d(input.transpose([0, 3, 1, 2]), -1, pool_type, global_pooling=True).transpose([0, 2, 3, 1])
        return adaptive_pool2d(input, 1, pool_type)
    if pool_size == -1:
        raise PlscError("layers.pool2d: give pool_size, or global_pooling=True")
    if pool_type == "max":
        return functional.max_pool2d(
            input, pool_size, pool_stride, pool_padding, ceil_mode=ceil_mode, data_format=data_format
        )
    return functional.avg_pool2d(
        *(input, pool_size, pool_stride, pool_padding, ceil_mode, exclusive), data_format=data_format
    )


def adaptive_pool2d(
    input: Tensor, pool_size: Size, pool_type: str = "max", require_index: bool = False, name: Optional[str] = None
) -> Any:
    """Maximum or mean of windows chosen so that the map has the size `pool_size`.

    Args:
        require_index: also returns where each maximum was, in the flat map.
    """
    _check_pool_type("adaptive_pool2d", pool_type)
    if pool_type == "max":
        return functional.adaptive_max_pool2d(input, pool_size, return_mask=require_index)
    if require_index:
        raise PlscError("layers.adaptive_pool2d: require_index=True needs pool_type='max'")
    return functional.adaptive_avg_pool2d(input, pool_size)


def _check_pool_type(kind: str, pool_type: str) -> None:
    if pool_type not in ("max", "avg"):
        raise PlscError(f"layers.{kind}: pool_type={pool_type!r}: expected 'max' or 'avg'")


def pad2d(
    input: Tensor,
    paddings: Sequence[int] = (0, 0, 0, 0),
    mode: str = "constant",
    pad_value: float = 0.0,
    data_format: str = "NCHW",
    name: Optional[str] = None,
) -> Tensor:
    """With rows and columns added at [top, bottom, left, right].

    Args:
        mode: 'constant' adds `pad_value`, 'reflect' mirrors at the edge, 'edge' repeats it.
    """
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    if mode not in modes:
        raise PlscError(f"layers.pad2d: mode={mode!r}: expected 'constant', 'reflect' or 'edge'")
    top, bottom, left, right = (int(side) for side in paddings)
    return functional.pad(input, [left, right, top, bottom], modes[mode], pad_value, data_format=data_format)


def image_resize(
    input: Tensor,
    out_shape: Optional[Sequence[int]] = None,
    scale: Optional[float] = None,
    name: Optional[str] = None,
    resample: str = "BILINEAR",
    actual_shape: Optional[Sequence[int]] = None,
    align_corners: bool = True,
    align_mode: int = 1,
    data_format: str = "NCHW",
) -> Tensor:
    """[B, C, H, W] with other sides.

    Args:
        out_shape: (H', W').
        scale: instead of it, a factor on both sides; fractions of a pixel are cut off.
        resample: 'BILINEAR' or 'NEAREST'.
        actual_shape: used instead of `out_shape` where it is given.
        align_corners: the middles of the corner pixels stay in place.
        align_mode: without it, 0 measures from the middles of pixels and 1 from their edges.
    """
    if resample not in ("BILINEAR", "NEAREST"):
        raise PlscError(f"layers.image_resize: resample={resample!r}: expected 'BILINEAR' or 'NEAREST'")
    axes = (1, 2) if data_format == "NHWC" else (2, 3)
    sides = [int(input.shape[axis]) for axis in axes]
    wanted = out_shape if actual_shape is None else actual_shape
    if wanted is None and scale is None:
        raise PlscError("layers.image_resize: give out_shape or scale")
    size = [int(side) for side in ([side * scale for side in sides] if wanted is None else wanted)]  # type: ignore[operator]
    if resample == "BILINEAR":
        return functional.interpolate(
            input, size, mode="bilinear", align_corners=align_corners, align_mode=align_mode, data_format=data_format
        )
    if not align_corners:
        return functional.interpolate(input, size, mode="nearest", data_format=data_format)
    # Paddle dropped this combination, which is the default of Paddle 1.x.
    for axis, side, new in zip(axes, sides, size):
        step = (side - 1) / (new - 1) if new > 1 else 0.0
        nearest = np.floor(np.arange(new) * step + 0.5).astype("int64")
        input = paddle.index_select(input, paddle.to_tensor(nearest), axis)
    return input


def resize_bilinear(
    input: Tensor,
    out_shape: Optional[Sequence[int]] = None,
    scale: Optional[float] = None,
    name: Optional[str] = None,
    actual_shape: Optional[Sequence[int]] = None,
    align_corners: bool = True,
    align_mode: int = 1,
    data_format: str = "NCHW",
) -> Tensor:
    """`image_resize` with 'BILINEAR'."""
    return image_resize(input, out_shape, scale, name, "BILINEAR", actual_shape, align_corners, align_mode, data_format)


def resize_nearest(
    input: Tensor,
    out_shape: Optional[Sequence[int]] = None,
    scale: Optional[float] = None,
    name: Optional[str] = None,
    actual_shape: Optional[Sequence[int]] = None,
    align_corners: bool = True,
    data_format: str = "NCHW",
) -> Tensor:
    """`image_resize` with 'NEAREST'."""
    return image_resize(input, out_shape, scale, name, "NEAREST", actual_shape, align_corners, 1, data_format)
