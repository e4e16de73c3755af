"""The default optimizer and schedule, and how a user's optimizer receives its parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Union

import paddle

from plsc import parallel
from plsc.config import Config
from plsc.errors import ConfigError

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
REFERENCE_BATCH = 1024  # global batch the setting `lr` is meant for

OptimizerOrFactory = Union["paddle.optimizer.Optimizer", Callable[[Sequence[Any]], "paddle.optimizer.Optimizer"]]


def deferred() -> list[paddle.Tensor]:
    """Stands for the parameters the engine will hand over: `Adam(1e-3, parameters=plsc.optim.deferred())`.

    Paddle refuses to build an optimizer without parameters; `Entry.set_optimizer` replaces this one.
    """
    return [paddle.create_parameter([1], "float32")]


def learning_rate_at(config: Config, step: int, steps_per_epoch: int) -> float:
    """Rate of step `step` (from 0): linear warm-up to lr * global batch / 1024, then times lr_decay_factor per boundary."""
    rate = config.lr * config.train_batch_size * parallel.world_size() / REFERENCE_BATCH
    rate *= config.lr_decay_factor ** sum(step >= boundary for boundary in config.lr_steps)
    warmup_steps = config.warmup_epochs * steps_per_epoch
    return rate * (step + 1) / warmup_steps if step < warmup_steps else rate


def build_optimizer(config: Config, parameters: Sequence[Any], steps_per_epoch: int) -> paddle.optimizer.Optimizer:
    """The user's optimizer over `parameters`, or Momentum 0.9 with L2 decay 5e-4 and the default schedule."""
    chosen = config.optimizer
    if chosen is None:
        schedule = paddle.optimizer.lr.LambdaDecay(1.0, lambda step: learning_rate_at(config, step, steps_per_epoch))
        return paddle.optimizer.Momentum(
            schedule, MOMENTUM, parameters=list(parameters), weight_decay=paddle.regularizer.L2Decay(WEIGHT_DECAY)
        )
    if not isinstance(chosen, paddle.optimizer.Optimizer):
        built = chosen(list(parameters))
        if not isinstance(built, paddle.optimizer.Optimizer):
            raise ConfigError(
                f"set_optimizer: the function returned {type(built).__name__}, expected a paddle.optimizer.Optimizer"
            )
        return built
    # A copy, so that a second train() starts with fresh moments and a fresh schedule.
    optimizer = copy.deepcopy(chosen)
    # Paddle has no public way to give an optimizer its parameters later (2.6 and 3.3 alike).
    optimizer._parameter_list = list(parameters)
    optimizer._param_groups = optimizer._parameter_list
    return optimizer


def step_schedule(optimizer: paddle.optimizer.Optimizer) -> None:
    """Moves the optimizer's schedule, where it has one, to the next training step."""
    if isinstance(optimizer._learning_rate, paddle.optimizer.lr.LRScheduler):
        optimizer._learning_rate.step()


def clip_by_global_norm(
    optimizer: paddle.optimizer.Optimizer, backbone: Sequence[Any], head: Sequence[Any], head_is_sharded: bool
) -> None:
    """Clips the gradients by their norm over all ranks, where the optimizer asks for ClipGradByGlobalNorm.

    Paddle's own clipping sees one rank's shard only and would scale each rank differently.
    """
    clip = optimizer._grad_clip
    if not isinstance(clip, paddle.nn.ClipGradByGlobalNorm):
        return
    head_square = _square_sum(head)
    total = _square_sum(backbone) + (parallel.all_reduce_sum(head_square) if head_is_sharded else head_square)
    factor = clip.clip_norm / paddle.clip(paddle.sqrt(total), min=clip.clip_norm)
    for parameter in [*backbone, *head]:
        if parameter.grad is not None:
            parameter.grad = parameter.grad * factor.astype(parameter.grad.dtype)


def _square_sum(parameters: Sequence[Any]) -> paddle.Tensor:
    total = paddle.zeros([], "float32")
    for parameter in parameters:
        if parameter.grad is not None:
            total = total + (parameter.grad.astype("float32") ** 2).sum()
    return total


def optimizer_state(
    optimizer: paddle.optimizer.Optimizer, names: dict[str, str]
) -> dict[str, dict[str, paddle.Tensor]]:
    """{structured parameter name: {accumulator name: tensor}}; `names` maps Paddle's names to structured ones."""
    state: dict[str, dict[str, paddle.Tensor]] = {}
    for accumulator, tensors in optimizer._accumulators.items():
        for name, tensor in tensors.items():
            if name in names:
                state.setdefault(names[name], {})[accumulator] = tensor
    return state
