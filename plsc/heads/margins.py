"""Margins: what is done to the cosine of the labelled class, with its derivative beside it. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import paddle


@dataclass(frozen=True)
class AngularMargin:
    """cos(theta + m2) - m3 for the labelled class (Deng et al., ArcFace, CVPR 2019, eq. 4 with m1 = 1).

    arcface is m2 alone (eq. 3), cosface m3 alone (Wang et al., CosFace, CVPR 2018, eq. 4).
    Past theta + m2 = pi, where the cosine would rise again, the target goes on falling as cos(theta) - m2 sin(m2) - m3.

    Args:
        m2: additive angle, radians, in [0, pi).
        m3: subtracted from the cosine, at least 0.
    """

    m2: float = 0.0
    m3: float = 0.0

    def target(self, cosine: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Target and its derivative with respect to the cosine.

        Args:
            cosine: [B] float, in [-1, 1].

        Returns:
            (target [B], derivative [B]). The derivative is finite everywhere: at |cos| = 1, where the exact one has a
            pole that the derivative of the cosine itself cancels, sin(theta) is held above sqrt(machine epsilon).
        """
        if self.m2 == 0.0:
            return cosine - self.m3, paddle.ones_like(cosine)
        smallest_sine = math.sqrt(1.2e-7 if cosine.dtype == paddle.float32 else 2.3e-16)
        sine = paddle.sqrt(paddle.clip(1.0 - cosine * cosine, min=0.0))
        cos_m, sin_m = math.cos(self.m2), math.sin(self.m2)
        inside = cosine > -cos_m  # theta + m2 < pi
        target = paddle.where(inside, cosine * cos_m - sine * sin_m, cosine - self.m2 * sin_m)
        slope = cos_m + cosine * sin_m / paddle.clip(sine, min=smallest_sine)
        return target - self.m3, paddle.where(inside, slope, paddle.ones_like(slope))
