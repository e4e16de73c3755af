"""`ParamAttr`, the settings of a parameter: name, initializer, learning_rate, regularizer, trainable, and more."""

from __future__ import annotations

from typing import Any

from paddle import ParamAttr

from plsc.layers.missing import not_here

__all__ = ["ParamAttr"]


def __getattr__(name: str) -> Any:
    raise not_here("fluid.param_attr", name, {}, "use ParamAttr, or paddle.nn.utils.weight_norm")
