"""`plsc.layers`, and the learning rate schedules that Paddle 1.x kept in `fluid.layers`."""

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
    """Returns a schedule of the rate `rate(step)`, with steps counted from 0."""
    return LambdaDecay(1.0, rate)


def _periods(step: int, decay_steps: int, staircase: bool) -> float:
    return step // decay_steps if staircase else step / decay_steps


def piecewise_decay(boundaries: Sequence[int], values: Sequence[float]) -> LRScheduler:
    """Returns a schedule: values[0] before boundaries[0], values[1] before boundaries[1], ..., and last values[-1]."""
    if len(values) != len(boundaries) + 1:
        raise ValueError(
            f"piecewise_decay: {len(boundaries)} boundaries need {len(boundaries) + 1} values, not {len(values)}"
        )
    return _schedule(lambda step: float(values[sum(step >= boundary for boundary in boundaries)]))


def cosine_decay(learning_rate: float, step_each_epoch: int, epochs: int) -> LRScheduler:
    """Returns the schedule learning_rate * (cos(pi * epoch / epochs) + 1) / 2, with epochs counted from 0."""
    return _schedule(lambda step: learning_rate * 0.5 * (math.cos(step // step_each_epoch * math.pi / epochs) + 1))


def exponential_decay(
    learning_rate: float, decay_steps: int, decay_rate: float, staircase: bool = False
) -> LRScheduler:
    """Returns the schedule learning_rate * decay_rate ** (step / decay_steps); `staircase` rounds the exponent down."""
    return _schedule(lambda step: learning_rate * decay_rate ** _periods(step, decay_steps, staircase))


def natural_exp_decay(
    learning_rate: float, decay_steps: int, decay_rate: float, staircase: bool = False
) -> LRScheduler:
    """Returns the schedule learning_rate * exp(-decay_rate * step / decay_steps); see `exponential_decay`."""
    return _schedule(lambda step: learning_rate * math.exp(-decay_rate * _periods(step, decay_steps, staircase)))


def inverse_time_decay(
    learning_rate: float, decay_steps: int, decay_rate: float, staircase: bool = False
) -> LRScheduler:
    """Returns the schedule learning_rate / (1 + decay_rate * step / decay_steps); see `exponential_decay`."""
    return _schedule(lambda step: learning_rate / (1 + decay_rate * _periods(step, decay_steps, staircase)))


def polynomial_decay(
    learning_rate: float, decay_steps: int, end_learning_rate: float = 1e-4, power: float = 1.0, cycle: bool = False
) -> LRScheduler:
    """Returns a schedule from learning_rate to end_learning_rate that follows (1 - step / decay_steps) ** power.

    Args:
        learning_rate: Rate at step 0.
        decay_steps: Number of steps until the end.
        end_learning_rate: Rate at the end.
        power: Exponent.
        cycle: Whether to start again at the end, with twice, three times, ... as many steps, instead of keeping the
            rate.
    """

    def rate(step: int) -> float:
        steps = decay_steps * max(1, math.ceil(step / decay_steps)) if cycle else decay_steps
        return (learning_rate - end_learning_rate) * (1 - min(step, steps) / steps) ** power + end_learning_rate

    return _schedule(rate)


def noam_decay(d_model: int, warmup_steps: int, learning_rate: float = 1.0) -> LRScheduler:
    """Returns learning_rate * d_model ** -0.5 * min(n ** -0.5, n * warmup_steps ** -1.5), with n counted from 1."""
    return _schedule(
        lambda step: learning_rate * d_model**-0.5 * min((step + 1) ** -0.5, (step + 1) * warmup_steps**-1.5)
    )


def linear_lr_warmup(
    learning_rate: Union[float, LRScheduler], warmup_steps: int, start_lr: float, end_lr: float
) -> LRScheduler:
    """Returns a schedule that rises linearly from start_lr to end_lr, and then follows learning_rate.

    The steps of `learning_rate` are counted from the beginning of training.
    """

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
