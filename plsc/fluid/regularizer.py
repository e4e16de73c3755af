"""Weight decay under its names of Paddle 1.x."""

from __future__ import annotations

from typing import Any

import paddle

from plsc.layers.missing import not_here

__all__ = ["L1Decay", "L1DecayRegularizer", "L2Decay", "L2DecayRegularizer"]


def L1Decay(regularization_coeff: float = 0.0) -> paddle.regularizer.L1Decay:
    """Returns a decay that adds regularization_coeff * sign(weight) to the gradient."""
    return paddle.regularizer.L1Decay(regularization_coeff)


def L2Decay(regularization_coeff: float = 0.0) -> paddle.regularizer.L2Decay:
    """Returns a decay that adds regularization_coeff * weight to the gradient."""
    return paddle.regularizer.L2Decay(regularization_coeff)


L1DecayRegularizer = L1Decay
L2DecayRegularizer = L2Decay


def __getattr__(name: str) -> Any:
    raise not_here("fluid.regularizer", name, {}, "use paddle.regularizer")
