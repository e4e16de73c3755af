"""Margins: pure functions that change the cosines before the softmax, together with their derivatives.

Shapes: B samples of the global batch (or those of them whose class this rank holds), C classes of a chunk. theta is the
angle between an embedding and its class centre.

A custom margin only has to override `target`:

    >>> import paddle
    >>> from plsc.heads.margins import Margin, Target
    >>> class SquaredMargin(Margin):
    ...     \"\"\"cos(theta) - 0.2 (1 - cos(theta))^2\"\"\"
    ...     def target(self, cosine, norm, state):
    ...         gap = 1.0 - cosine
    ...         return Target(cosine - 0.2 * gap * gap, 1.0 + 0.4 * gap)

`Entry.set_loss_type(SquaredMargin())` trains with it, sharded and sampled like the built-in ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Optional

import paddle

from plsc.config import DEFAULT_MARGINS, kind_of


class Target(NamedTuple):
    """What replaces the cosine of the label.

    Attributes:
        value: [B] The new value.
        by_cosine: [B] The derivative of `value` with respect to the cosine.
        by_norm: [B] The derivative with respect to the embedding's norm; None if no gradient flows through the norm.
    """

    value: paddle.Tensor
    by_cosine: paddle.Tensor
    by_norm: Optional[paddle.Tensor] = None


class Margin:
    """A loss with a margin: the logits are scale * cosine, and `target` replaces the cosine of the label.

    Attributes:
        initial_state: The running statistics that the margin keeps between steps, as they are at first; they are saved
            with the head.
        changes_others: Whether `others` is overridden, which costs one more reduction of B numbers in each step.
    """

    initial_state: tuple[float, ...] = ()
    changes_others: bool = False

    def target(self, cosine: paddle.Tensor, norm: paddle.Tensor, state: paddle.Tensor) -> Target:
        """Returns what replaces the cosine of the label, and its derivatives.

        Args:
            cosine: [B] Cosines, floats in [-1, 1].
            norm: [B] Norms of the embeddings before they are normalised.
            state: [len(initial_state)] The statistics of this step, as `observe` returned them.
        """
        raise NotImplementedError(f"{type(self).__name__} must override target(self, cosine, norm, state)")

    def observe(self, state: paddle.Tensor, norm: paddle.Tensor, cosine: Optional[paddle.Tensor]) -> paddle.Tensor:
        """Returns the statistics of this step from those of the last step and the global batch.

        A skipped step leaves no trace in them.

        Args:
            state: [len(initial_state)] The statistics of the last step.
            norm: [B] Norms of the whole global batch, whatever the sharding.
            cosine: [B] Cosines of the labels; None unless `changes_others`.
        """
        return state

    def others(
        self, cosine: paddle.Tensor, target: paddle.Tensor, state: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Returns what replaces the cosines of the classes that are not the label, and its derivative.

        Args:
            cosine: [C, B] Cosines.
            target: [1, B] `Target.value` of each sample.
            state: The statistics of this step.
        """
        return cosine, paddle.ones_like(cosine)

    def of_classes(self, margin: Any) -> Margin:
        """Returns the same loss with another margin for each sample, which depends on its class.

        Args:
            margin: [B] In place of the margin of the loss: m2 of arcface, m3 of cosface, m of others.
        """
        raise NotImplementedError(f"{type(self).__name__} has no margins for each class")

    def penalty(self, norm: paddle.Tensor) -> Optional[tuple[paddle.Tensor, paddle.Tensor]]:
        """Returns a term that is added to each sample's loss, and its derivative by the norm: ([B], [B]), or None."""
        return None


@dataclass(frozen=True)
class AngularMargin(Margin):
    """cos(m1 theta + m2) - m3 (Deng et al., ArcFace, CVPR 2019, eq. 4).

    arcface is m2 alone (eq. 3), cosface m3 alone (Wang et al., CosFace, CVPR 2018, eq. 4), sphereface m1 alone (Liu et
    al., SphereFace, CVPR 2017, eq. 7, on normalised embeddings).
    Past m1 theta + m2 = pi, where the cosine would rise again, the target falls further: as cos(theta) - m2 sin(m2) for
    m1 = 1, else as SphereFace's psi, (-1)^k cos(m1 theta + m2) - 2k with k = floor((m1 theta + m2) / pi).

    Args:
        m1: The factor on the angle, above 0.
        m2: The radians added to the angle, in [0, pi).
        m3: What is subtracted from the cosine, at least 0.
    """

    m1: float = 1.0
    m2: float = 0.0
    m3: float = 0.0

    def target(self, cosine: paddle.Tensor, norm: paddle.Tensor, state: paddle.Tensor) -> Target:
        """Returns cos(m1 theta + m2) - m3."""
        if self.m1 != 1.0:
            return self._beyond_one_turn(cosine)
        if not isinstance(self.m2, paddle.Tensor) and self.m2 == 0.0:
            return Target(cosine - self.m3, paddle.ones_like(cosine))
        value, by_cosine, _ = _added_angle(cosine, _for_each(cosine, self.m2))
        return Target(value - self.m3, by_cosine)

    def of_classes(self, margin: Any) -> AngularMargin:
        """Returns the same loss with margins for each sample; see `Margin.of_classes`."""
        return replace(self, m2=margin) if self.m2 else replace(self, m3=margin)

    def _beyond_one_turn(self, cosine: paddle.Tensor) -> Target:
        angle = paddle.acos(cosine) * self.m1 + self.m2
        turns = paddle.floor(angle / math.pi)
        sign = 1.0 - 2.0 * (turns - 2.0 * paddle.floor(turns / 2.0))
        by_cosine = paddle.sin(angle).abs() * self.m1 / _sine(cosine)
        return Target(sign * paddle.cos(angle) - 2.0 * turns - self.m3, by_cosine)


@dataclass(frozen=True)
class AdaFace(Margin):
    """cos(theta + g_angle) - g_add, whose margins follow the embedding's norm as a measure of image quality.

    g_angle = -m z, g_add = m z + m, z = clip(h (norm - mean) / std, -1, 1), with mean and std exponential moving
    averages over the batches (Kim et al., AdaFace: Quality Adaptive Margin, CVPR 2022, section 3, the definitions of
    z-hat, g_angle and g_add). No gradient flows through the norm, and theta + g_angle is held in [0, pi], as the
    authors do.

    Args:
        m: The margin.
        h: The concentration of the norms.
        momentum: The weight of the past in the moving averages; a new batch has the weight 1 - momentum.
    """

    m: float = 0.4
    h: float = 0.333
    momentum: float = 0.99
    initial_state = (20.0, 100.0)

    def observe(self, state: paddle.Tensor, norm: paddle.Tensor, cosine: Optional[paddle.Tensor]) -> paddle.Tensor:
        """Adds the mean and the deviation of the batch's norms to the moving averages."""
        count = norm.shape[0]
        if count < 2:  # one sample has no standard deviation
            return state
        norm = paddle.clip(norm, 1e-3, 100.0)
        mean = norm.mean()
        # What `norm.std()` computes, which prints a remark about a promotion of types inside of it.
        std = paddle.sqrt(paddle.sum((norm - mean).pow(2)) / paddle.to_tensor(count - 1, norm.dtype))
        batch = paddle.stack([mean, std]).astype(state.dtype)
        return state * self.momentum + batch * (1.0 - self.momentum)

    def target(self, cosine: paddle.Tensor, norm: paddle.Tensor, state: paddle.Tensor) -> Target:
        """Returns cos(theta + g_angle) - g_add."""
        mean, std = state.astype(cosine.dtype).unbind(0)
        quality = paddle.clip((paddle.clip(norm, 1e-3, 100.0) - mean) / (std + 1e-3) * self.h, -1.0, 1.0)
        angle = paddle.acos(cosine) - self.m * quality
        inside = paddle.logical_and(angle >= 0.0, angle <= math.pi).astype(cosine.dtype)
        angle = paddle.clip(angle, 0.0, math.pi)
        value = paddle.cos(angle) - (self.m * quality + self.m)
        return Target(value, paddle.sin(angle) / _sine(cosine) * inside)

    def of_classes(self, margin: Any) -> AdaFace:
        """Returns the same loss with margins for each sample; see `Margin.of_classes`."""
        return replace(self, m=margin)


@dataclass(frozen=True)
class MagFace(Margin):
    """cos(theta + m(a)) with a margin that grows with the embedding's norm a, and a penalty g(a) that makes a grow.

    m(a) = l_m + (u_m - l_m) (a - l_a) / (u_a - l_a), g(a) = 1 / a + a / u_a^2, a held in [l_a, u_a]; the loss gains
    lambda_g g(a) (Meng et al., MagFace, CVPR 2021, eq. 2). Gradients flow through the norm. Past theta + m = pi the
    target falls further as that of arcface does.

    Args:
        l_a: The smallest norm.
        u_a: The largest norm.
        l_m: The margin at the smallest norm, radians, in [0, pi).
        u_m: The margin at the largest norm.
        lambda_g: The weight of the penalty.
    """

    l_a: float = 10.0
    u_a: float = 110.0
    l_m: float = 0.45
    u_m: float = 0.8
    lambda_g: float = 35.0

    def target(self, cosine: paddle.Tensor, norm: paddle.Tensor, state: paddle.Tensor) -> Target:
        """Returns cos(theta + m(a))."""
        held, inside = self._held(norm)
        slope = (self.u_m - self.l_m) / (self.u_a - self.l_a)
        value, by_cosine, by_margin = _added_angle(cosine, self.l_m + slope * (held - self.l_a))
        return Target(value, by_cosine, by_margin * slope * inside)

    def penalty(self, norm: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Returns lambda_g g(a)."""
        held, inside = self._held(norm)
        value = 1.0 / held + held / self.u_a**2
        by_norm = (1.0 / self.u_a**2 - 1.0 / (held * held)) * inside
        return value * self.lambda_g, by_norm * self.lambda_g

    def _held(self, norm: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        inside = paddle.logical_and(norm >= self.l_a, norm <= self.u_a).astype(norm.dtype)
        return paddle.clip(norm, self.l_a, self.u_a), inside


@dataclass(frozen=True)
class CurricularFace(Margin):
    """cos(theta + m) for the label, and cos(theta_j) (t + cos(theta_j)) for a class j that beats it.

    A class is hard when cos(theta_j) > T = cos(theta + m); t is the exponential moving average of the labelled cosines,
    from 0, so that hard classes weigh more as training proceeds (Huang et al., CurricularFace, CVPR 2020, section 3,
    the definitions of T, N(t, cos theta_j) and t^(k)). Past theta + m = pi the target falls further as that of arcface
    does.

    Args:
        m: The margin, radians, in [0, pi).
        momentum: The weight of the past in t; a new batch has the weight 1 - momentum.
    """

    m: float = 0.5
    momentum: float = 0.99
    initial_state = (0.0,)
    changes_others = True

    def observe(self, state: paddle.Tensor, norm: paddle.Tensor, cosine: Optional[paddle.Tensor]) -> paddle.Tensor:
        """Adds the mean of the batch's cosines to t."""
        assert cosine is not None
        return state * self.momentum + cosine.mean().astype(state.dtype) * (1.0 - self.momentum)

    def target(self, cosine: paddle.Tensor, norm: paddle.Tensor, state: paddle.Tensor) -> Target:
        """Returns T = cos(theta + m)."""
        value, by_cosine, _ = _added_angle(cosine, _for_each(cosine, self.m))
        return Target(value, by_cosine)

    def of_classes(self, margin: Any) -> CurricularFace:
        """Returns the same loss with margins for each sample; see `Margin.of_classes`."""
        return replace(self, m=margin)

    def others(
        self, cosine: paddle.Tensor, target: paddle.Tensor, state: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Returns N(t, cos(theta_j)): cos(theta_j) (t + cos(theta_j)) for hard classes."""
        hard = (cosine > target).astype(cosine.dtype)
        excess = hard * (cosine + (state.astype(cosine.dtype) - 1.0))
        return cosine * (excess + 1.0), hard * cosine + excess + 1.0


def build_margin(loss_type: str, margin: Any = None) -> Optional[Margin]:
    """Builds the margin of a loss type; None for softmax, which has none.

    Args:
        loss_type: One of `plsc.config.LOSS_TYPES`.
        margin: What `Entry.set_margin` takes; None for the default of the loss.
    """
    kind = kind_of(loss_type)
    margin = DEFAULT_MARGINS[kind] if margin is None else margin
    makers: dict[str, Callable[[], Optional[Margin]]] = {
        "softmax": lambda: None,
        "arcface": lambda: AngularMargin(m2=margin),
        "cosface": lambda: AngularMargin(m3=margin),
        "sphereface": lambda: AngularMargin(m1=margin),
        "combined": lambda: AngularMargin(*margin),
        "adaface": lambda: AdaFace(m=margin),
        "magface": MagFace,
        "curricularface": lambda: CurricularFace(m=margin),
    }
    return makers[kind]()


def _for_each(cosine: paddle.Tensor, margin: Any) -> paddle.Tensor:
    """Returns the margin of each sample [B], from one for all or one for each."""
    return margin if isinstance(margin, paddle.Tensor) else paddle.full_like(cosine, margin)


def _added_angle(cosine: paddle.Tensor, margin: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """Returns cos(theta + margin), or cos(theta) - margin sin(margin) past pi, and the derivatives by both."""
    sine, cos_m, sin_m = (
        paddle.sqrt(paddle.clip(1.0 - cosine * cosine, min=0.0)),
        paddle.cos(margin),
        paddle.sin(margin),
    )
    inside = cosine > -cos_m  # theta + margin < pi
    value = paddle.where(inside, cosine * cos_m - sine * sin_m, cosine - margin * sin_m)
    by_cosine = paddle.where(inside, cos_m + cosine * sin_m / _sine(cosine), paddle.ones_like(cosine))
    by_margin = paddle.where(inside, -(sine * cos_m + cosine * sin_m), -(sin_m + margin * cos_m))
    return value, by_cosine, by_margin


def _sine(cosine: paddle.Tensor) -> paddle.Tensor:
    """Returns sin(theta), held above the square root of the machine epsilon.

    At |cos| = 1 the derivatives by the cosine have a pole, which the derivative of the cosine itself, 0 there, cancels.
    """
    epsilon = 1.2e-7 if cosine.dtype == paddle.float32 else 2.3e-16
    return paddle.sqrt(paddle.clip(1.0 - cosine * cosine, min=epsilon))
