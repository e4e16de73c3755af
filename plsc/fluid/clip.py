"""Gradient clipping under its names of Paddle 1.x, for the argument `grad_clip` of an optimizer."""

from __future__ import annotations

from typing import Any, Optional

import paddle

from plsc.layers.missing import not_here

__all__ = ["GradientClipByGlobalNorm", "GradientClipByNorm", "GradientClipByValue"]


def GradientClipByGlobalNorm(clip_norm: float, group_name: str = "default_group") -> paddle.nn.ClipGradByGlobalNorm:
    """Returns a clip that scales all gradients by one factor if their joint norm exceeds `clip_norm`."""
    return paddle.nn.ClipGradByGlobalNorm(clip_norm, group_name)


def GradientClipByNorm(clip_norm: float) -> paddle.nn.ClipGradByNorm:
    """Returns a clip that scales down each gradient whose norm exceeds `clip_norm`."""
    return paddle.nn.ClipGradByNorm(clip_norm)


def GradientClipByValue(max: float, min: Optional[float] = None) -> paddle.nn.ClipGradByValue:
    """Returns a clip that limits each element to [min, max]; `min` is -max by default."""
    return paddle.nn.ClipGradByValue(max, min)


def __getattr__(name: str) -> Any:
    raise not_here(
        "fluid.clip", name, {"set_gradient_clip": "use set_gradient_clip of Entry"}, "give grad_clip= to the optimizer"
    )
