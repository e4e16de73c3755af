"""Functions on feature maps: pooling, padding, resizing.

The arguments `name` and `use_cudnn` are accepted for scripts of Paddle 1.x, and have no effect.
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
    """Returns the maximum or mean of each window of a feature map, or of the whole map.

    Args:
        input: Feature map, [B, C, H, W].
        pool_size: Size of a window; required unless `global_pooling` is True.
        pool_type: 'max' or 'avg'.
        pool_stride: Step between windows.
        pool_padding: Padding; see `conv2d`.
        global_pooling: Whether the whole map is one window.
        use_cudnn: Has no effect.
        ceil_mode: Whether to keep an incomplete last window.
        name: Has no effect.
        exclusive: Whether a mean leaves the padding out.
        data_format: 'NCHW', or 'NHWC' for [B, H, W, C].
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
        input,
        pool_size,
        pool_stride,
        pool_padding,
        ceil_mode=ceil_mode,
        exclusive=exclusive,
        data_format=data_format,
    )


def adaptive_pool2d(
    input: Tensor, pool_size: Size, pool_type: str = "max", require_index: bool = False, name: Optional[str] = None
) -> Any:
    """Returns the maximum or mean of windows that are chosen such that the result has the size `pool_size`.

    Args:
        input: Feature map, [B, C, H, W].
        pool_size: Size of the result, (H', W') or one number for both.
        pool_type: 'max' or 'avg'.
        require_index: Whether to return also the place of each maximum in the flat map.
        name: Has no effect.
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
    """Adds rows and columns to a feature map.

    Args:
        input: Feature map, [B, C, H, W].
        paddings: Rows and columns to add, [top, bottom, left, right].
        mode: 'constant' adds `pad_value`, 'reflect' mirrors the map at its edge, 'edge' repeats the edge.
        pad_value: Value for 'constant'.
        data_format: 'NCHW', or 'NHWC' for [B, H, W, C].
        name: Has no effect.
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
    """Resizes a feature map.

    Args:
        input: Feature map, [B, C, H, W].
        out_shape: New size, (H', W').
        scale: Factor on both sides, if `out_shape` is not given; fractions of a pixel are cut off.
        name: Has no effect.
        resample: 'BILINEAR' or 'NEAREST'.
        actual_shape: Replaces `out_shape` if it is given.
        align_corners: Whether the centres of the corner pixels stay in place.
        align_mode: If `align_corners` is False, 0 measures from the centres of pixels, and 1 from their edges.
        data_format: 'NCHW', or 'NHWC' for [B, H, W, C].
    """
    if resample not in ("BILINEAR", "NEAREST"):
        raise PlscError(f"layers.image_resize: resample={resample!r}: expected 'BILINEAR' or 'NEAREST'")
    axes = (1, 2) if data_format == "NHWC" else (2, 3)
    sides = [int(input.shape[axis]) for axis in axes]
    wanted = out_shape if actual_shape is None else actual_shape
    if wanted is None:
        if scale is None:
            raise PlscError("layers.image_resize: give out_shape or scale")
        wanted = [int(side * scale) for side in sides]
    size = [int(side) for side in wanted]
    if resample == "BILINEAR":
        return functional.interpolate(
            input, size, mode="bilinear", align_corners=align_corners, align_mode=align_mode, data_format=data_format
        )
    if not align_corners:
        return functional.interpolate(input, size, mode="nearest", data_format=data_format)
    # Today's Paddle lacks this combination, which is the default of Paddle 1.x.
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
    """Resizes a feature map by bilinear interpolation; see `image_resize`."""
    return image_resize(
        input,
        out_shape,
        scale,
        resample="BILINEAR",
        actual_shape=actual_shape,
        align_corners=align_corners,
        align_mode=align_mode,
        data_format=data_format,
    )


def resize_nearest(
    input: Tensor,
    out_shape: Optional[Sequence[int]] = None,
    scale: Optional[float] = None,
    name: Optional[str] = None,
    actual_shape: Optional[Sequence[int]] = None,
    align_corners: bool = True,
    data_format: str = "NCHW",
) -> Tensor:
    """Resizes a feature map to the nearest pixels; see `image_resize`."""
    return image_resize(
        input,
        out_shape,
        scale,
        resample="NEAREST",
        actual_shape=actual_shape,
        align_corners=align_corners,
        data_format=data_format,
    )
