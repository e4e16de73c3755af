"""Initial values of parameters, under their short and long names of Paddle 1.x."""

from __future__ import annotations

import inspect
import math
from typing import Any, Optional

from paddle.nn import initializer
from paddle.nn.initializer import (
    Bilinear,
    ConstantInitializer,
    Initializer,
    MSRAInitializer,
    NormalInitializer,
    NumpyArrayInitializer,
    UniformInitializer,
)

from plsc.layers.missing import not_here

# fmt: off
__all__ = [
    "Bilinear", "BilinearInitializer", "Constant", "ConstantInitializer", "MSRA", "MSRAInitializer", "Normal",
    "NormalInitializer", "NumpyArrayInitializer", "TruncatedNormal", "TruncatedNormalInitializer", "Uniform",
    "UniformInitializer", "Xavier", "XavierInitializer",
]
# fmt: on


class XavierInitializer(Initializer):
    """An initializer with random numbers of variance 2 / (fan_in + fan_out) (Glorot and Bengio, AISTATS 2010, eq. 16).

    A `fan_in` of 0, as in the custom model of the documentation, counts as 0, so the variance is 2 / fan_out. Paddle
    3's own Xavier would set all weights to 0.

    Args:
        uniform: Whether to draw uniform numbers rather than normal ones.
        fan_in: Replaces the number of inputs of the weight.
        fan_out: Replaces the number of outputs of the weight.
        seed: Seed that draws the same numbers every time; 0 draws new ones.
    """

    def __init__(
        self, uniform: bool = True, fan_in: Optional[float] = None, fan_out: Optional[float] = None, seed: int = 0
    ) -> None:
        super().__init__()
        self._uniform, self._fan_in, self._fan_out, self._seed = uniform, fan_in, fan_out, seed

    def forward(self, var: Any, block: Any = None) -> Any:
        """Fills the parameter `var`, and returns it."""
        own_in, own_out = self._compute_fans(var)
        fans = float(own_in if self._fan_in is None else self._fan_in)
        fans += float(own_out if self._fan_out is None else self._fan_out)
        if fans <= 0:
            raise ValueError(f"Xavier(fan_in={self._fan_in}, fan_out={self._fan_out}): their sum must be above 0")
        deviation = math.sqrt(2.0 / fans)
        if self._uniform:
            limit = math.sqrt(3.0) * deviation
            return UniformInitializer(-limit, limit, self._seed)(var, block)
        return NormalInitializer(0.0, deviation, self._seed)(var, block)


def TruncatedNormalInitializer(loc: float = 0.0, scale: float = 1.0, seed: int = 0) -> Initializer:
    """Returns an initializer with normal numbers within two standard deviations of `loc`."""
    own = initializer.TruncatedNormalInitializer
    if "a" in inspect.signature(own.__init__).parameters:  # By default Paddle 3 cuts at -2 and 2 for every deviation.
        return own(loc, scale, seed, loc - 2 * scale, loc + 2 * scale)
    return own(loc, scale, seed)


BilinearInitializer = Bilinear
Constant = ConstantInitializer
MSRA = MSRAInitializer
Normal = NormalInitializer
TruncatedNormal = TruncatedNormalInitializer
Uniform = UniformInitializer
Xavier = XavierInitializer


def __getattr__(name: str) -> Any:
    raise not_here("fluid.initializer", name, {}, "use one of paddle.nn.initializer")
