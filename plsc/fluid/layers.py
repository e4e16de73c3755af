"""`plsc.layers`, whose names and defaults are those of Paddle 1.x, and the learning rates that stood among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Union

from paddle.optimizer.lr import LambdaDecay, LRScheduler

from plsc.layers import *  # noqa: F403
from plsc.layers import __all__ as _layers
from plsc.layers.missing import not_here

# fmt: off
__all__ = [
    *_layers, "cosine_decay", "exponential_decay", "inverse_time_decay", "linear_lr_warmup", "natural_exp_decay",
    "noam_decay", "piecewise_decay", "polynomial_decay",
]
# fmt: on


def _schedule(rate: Callable[[int], float]) -> LRScheduler:
    """`rate(step)`, steps from 0."""
    return LambdaDecay(1.0, rate)


def _periods(step: int, decay_steps: int, staircase: bool) -> float:
    return step // decay_steps if staircase else step / decay_steps


def piecewise_decay(boundaries: Sequence[int], values: Sequence[float]) -> LRScheduler:
    """values[0] before step boundaries[0], values[1] before boundaries[1], ..., values[-1] at last."""
    if len(values) != len(boundaries) + 1:
        raise ValueError(
            f"piecewise_decay: {len(boundaries)} boundaries need {len(boundaries) + 1} values, not {len(values)}"
        )
    return _schedule(lambda step: float(values[sum(step >= boundary for boundary in boundaries)]))


def cosine_decay(learning_rate: float, step_each_epoch: int, epochs: int) -> LRScheduler:
    """learning_rate * (cos(pi * epoch / epochs) + 1) / 2, epochs counted from 0."""
    return _schedule(lambda step: learning_rate * 0.5 * (math.cos(step // step_each_epoch * math.pi / epochs) + 1))


def exponential_decay(
    learning_rate: float, decay_steps: int, decay_rate: float, staircase: bool = False
) -> LRScheduler:
    """learning_rate * decay_rate ** (step / decay_steps); `staircase` takes whole numbers of decay_steps."""
    return _schedule(lambda step: learning_rate * decay_rate ** _periods(step, decay_steps, staircase))


def natural_exp_decay(
    learning_rate: float, decay_steps: int, decay_rate: float, staircase: bool = False
) -> LRScheduler:
    """learning_rate * exp(-decay_rate * step / decay_steps), as `exponential_decay`."""
    return _schedule(lambda step: learning_rate * math.exp(-decay_rate * _periods(step, decay_steps, staircase)))


def inverse_time_decay(
    learning_rate: float, decay_steps: int, decay_rate: float, staircase: bool = False
) -> LRScheduler:
    """learning_rate / (1 + decay_rate * step / decay_steps), as `exponential_decay`."""
    return _schedule(lambda step: learning_rate / (1 + decay_rate * _periods(step, decay_steps, staircase)))


def polynomial_decay(
    learning_rate: float, decay_steps: int, end_learning_rate: float = 1e-4, power: float = 1.0, cycle: bool = False
) -> LRScheduler:
    """From learning_rate to end_learning_rate as (1 - step / decay_steps) ** power.

    Args:
        cycle: afterwards begin again with twice, three times, ... as many steps, instead of staying there.
    """

    def rate(step: int) -> float:
        steps = decay_steps * max(1, math.ceil(step / decay_steps)) if cycle else decay_steps
        return (learning_rate - end_learning_rate) * (1 - min(step, steps) / steps) ** power + end_learning_rate

    return _schedule(rate)


def noam_decay(d_model: int, warmup_steps: int, learning_rate: float = 1.0) -> LRScheduler:
    """learning_rate * d_model ** -0.5 * min(n ** -0.5, n * warmup_steps ** -1.5), n counted from 1."""
    return _schedule(
        lambda step: learning_rate * d_model**-0.5 * min((step + 1) ** -0.5, (step + 1) * warmup_steps**-1.5)
    )


def linear_lr_warmup(
    learning_rate: Union[float, LRScheduler], warmup_steps: int, start_lr: float, end_lr: float
) -> LRScheduler:
    """From start_lr to end_lr in a line; then learning_rate, whose steps were counted from the beginning."""

    def rate(step: int) -> float:
        if step < warmup_steps:
            return start_lr + (end_lr - start_lr) * step / warmup_steps
        if not isinstance(learning_rate, LRScheduler):
            return float(learning_rate)
        learning_rate.step(step)
        return float(learning_rate())

    return _schedule(rate)


def __getattr__(name: str) -> Any:
    raise not_here("fluid.layers", name)
