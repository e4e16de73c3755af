"""Gradient clipping, under its names of Paddle 1.x; given to an optimizer as `grad_clip`."""

from __future__ import annotations

from typing import Any, Optional

import paddle

from plsc.layers.missing import not_here

__all__ = ["GradientClipByGlobalNorm", "GradientClipByNorm", "GradientClipByValue"]


def GradientClipByGlobalNorm(clip_norm: float, group_name: str = "default_group") -> paddle.nn.ClipGradByGlobalNorm:
    """Shrinks all gradients alike when their norm is larger."""
    return paddle.nn.ClipGradByGlobalNorm(clip_norm, group_name)


def GradientClipByNorm(clip_norm: float) -> paddle.nn.ClipGradByNorm:
    """Shrinks each gradient whose norm is larger."""
    return paddle.nn.ClipGradByNorm(clip_norm)


def GradientClipByValue(max: float, min: Optional[float] = None) -> paddle.nn.ClipGradByValue:
    """Cuts each number off at `max` and at `min`, -max by default."""
    return paddle.nn.ClipGradByValue(max, min)


def __getattr__(name: str) -> Any:
    raise not_here(
        "fluid.clip", name, {"set_gradient_clip": "use set_gradient_clip of Entry"}, "give grad_clip= to the optimizer"
    )
