"""Optimizers: the default one and its schedule, those of users, and what training does with their gradients."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Optional, Union

import paddle
from paddle.base.layer_helper import LayerHelper

from plsc import parallel
from plsc.config import Config
from plsc.errors import ConfigError

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
REFERENCE_BATCH = 1024  # the setting `lr` is the learning rate for a global batch of this size

OptimizerOrFactory = Union["paddle.optimizer.Optimizer", Callable[[Sequence[Any]], "paddle.optimizer.Optimizer"]]


def deferred() -> list[paddle.Tensor]:
    """Returns a placeholder for parameters that do not exist yet: `Adam(1e-3, parameters=plsc.optim.deferred())`.

    Paddle refuses to build an optimizer without parameters; `Entry.train` replaces them with those it trains.
    """
    return [paddle.create_parameter([1], "float32")]


def learning_rate_at(config: Config, step: int, steps_per_epoch: int) -> float:
    """Returns the learning rate of step `step`, from 0.

    It grows linearly to lr * global batch / 1024 during warm-up, and is multiplied with lr_decay_factor at each
    boundary.
    """
    rate = config.lr * config.batch_per_rank * parallel.world_size() / REFERENCE_BATCH
    rate *= config.lr_decay_factor ** sum(step >= boundary for boundary in config.lr_steps)
    warmup_steps = config.warmup_epochs * steps_per_epoch
    return rate * (step + 1) / warmup_steps if step < warmup_steps else rate


def build_optimizer(config: Config, parameters: Sequence[Any], steps_per_epoch: int) -> paddle.optimizer.Optimizer:
    """Returns the user's optimizer over `parameters`, or Momentum 0.9 with L2 decay 5e-4 and the default schedule.

    Raises:
        ConfigError: The function given to `set_optimizer` returns something else.
    """
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


class RowUpdate:
    """SGD or Momentum on one matrix of the head, applied to a chunk of rows as soon as its gradient is known.

    The numbers are those of Paddle's optimizer of that name, with its learning rate, L2 decay and Nesterov momentum,
    but the gradient of the whole matrix is never made. Rows that are not handed over keep their values and their
    momentum.

    Attributes:
        momentum: Factor on the momentum; 0 for SGD.
        decay: L2 coefficient.
        buffer: The momentum (Paddle's `velocity`), in the shape of the matrix; None for SGD.
        in_place: Whether the gradient of a chunk may be added to `momentum * buffer` directly.
    """

    moves_rows = True

    def __init__(
        self,
        optimizer: paddle.optimizer.Optimizer,
        parameter: paddle.Tensor,
        momentum: float,
        nesterov: bool,
        decay: float,
    ) -> None:
        self._optimizer, self._nesterov = optimizer, nesterov
        self._rate_factor = float(parameter.optimize_attr["learning_rate"])
        self.momentum, self.decay = momentum, decay
        self.buffer = paddle.zeros_like(parameter) if momentum else None
        self.in_place = momentum != 0.0 and not nesterov

    def apply(
        self, rows: paddle.Tensor, gradient: paddle.Tensor, buffer: Optional[paddle.Tensor], scratch: paddle.Tensor
    ) -> None:
        """Moves rows in place.

        Args:
            rows: The rows, [C, D].
            gradient: Their gradient including decay, [C, D]; may be overwritten.
            buffer: Their momentum, [C, D]; where it is `gradient` itself, it has been updated already.
            scratch: Memory of at least C rows; is overwritten.
        """
        if buffer is not None and gradient is not buffer:
            buffer.scale_(self.momentum).add_(gradient)
            gradient = gradient.add_(buffer * self.momentum) if self._nesterov else buffer
        step = scratch[: rows.shape[0]]
        paddle.assign(gradient, step)
        rows.add_(step.scale_(-self._optimizer.get_lr() * self._rate_factor))


def row_update(optimizer: paddle.optimizer.Optimizer, parameter: paddle.Tensor) -> Optional[RowUpdate]:
    """Returns what moves the rows of `parameter` as `optimizer` would; None where only the optimizer itself can.

    Only the optimizer can with every kind but Momentum and SGD, with a decay other than L2, and with clipping by value
    or by the norm of single gradients.
    """
    if optimizer._grad_clip is not None:
        return None
    if parameter.dtype not in (paddle.float32, paddle.float64) or isinstance(optimizer._parameter_list[0], dict):
        return None
    own = getattr(parameter, "regularizer", None)
    if type(optimizer) is paddle.optimizer.Momentum:
        common: Any = optimizer.regularization
        if common is None and optimizer._regularization_method == "l2_decay":
            common = paddle.regularizer.L2Decay(optimizer._regularization_coeff)
        momentum, nesterov = float(optimizer._momentum), bool(optimizer._use_nesterov)
        if optimizer._rescale_grad != 1.0:
            return None
    elif type(optimizer) is paddle.optimizer.SGD:
        common, momentum, nesterov = optimizer.regularization, 0.0, False
    else:
        return None
    decay = own if own is not None else common
    if decay is not None and not isinstance(decay, paddle.regularizer.L2Decay):
        return None
    return RowUpdate(optimizer, parameter, momentum, nesterov, 0.0 if decay is None else float(decay._coeff))


def take_rows(optimizer: paddle.optimizer.Optimizer, head: dict[str, paddle.Tensor]) -> dict[str, RowUpdate]:
    """Takes the parameters of the head away from `optimizer` if a `RowUpdate` can move each of them.

    Args:
        optimizer: The optimizer of the backbone and the head.
        head: The parameters of the head, by name.

    Returns:
        {name: update}; empty when the optimizer needs their whole gradients.
    """
    updates = {name: row_update(optimizer, parameter) for name, parameter in head.items()}
    if not all(updates.values()):
        return {}
    taken = {id(parameter) for parameter in head.values()}  # by identity: Paddle compares tensors by value
    optimizer._parameter_list = [kept for kept in optimizer._parameter_list if id(kept) not in taken]
    optimizer._param_groups = optimizer._parameter_list
    return {name: update for name, update in updates.items() if update is not None}


def step(optimizer: paddle.optimizer.Optimizer) -> None:
    """Moves the parameters that the optimizer still has; Paddle itself fails when it has none."""
    if optimizer._parameter_list:
        optimizer.step()


def clear_grad(optimizer: paddle.optimizer.Optimizer) -> None:
    """Clears the gradients of the parameters that the optimizer still has."""
    if optimizer._parameter_list:
        optimizer.clear_grad()


def first_not_finite(parameters: Iterable[tuple[str, Any]]) -> Optional[str]:
    """Returns the name of the first parameter whose gradient is not finite, or None; it reads the device once."""
    gradients = [(name, p.grad) for name, p in parameters if p.grad is not None]
    if not gradients:
        return None
    finite = paddle.stack([paddle.isfinite(gradient).all() for _, gradient in gradients]).numpy()
    return None if finite.all() else gradients[int(finite.argmin())][0]


def step_schedule(optimizer: paddle.optimizer.Optimizer) -> None:
    """Moves the schedule of the optimizer, if it has one, to the next training step."""
    if isinstance(optimizer._learning_rate, paddle.optimizer.lr.LRScheduler):
        optimizer._learning_rate.step()


def clip_norm_of(config: Config, optimizer: paddle.optimizer.Optimizer) -> Optional[float]:
    """Returns the global norm to which gradients are clipped, or None.

    It is that of `set_gradient_clip`, or that of the optimizer's ClipGradByGlobalNorm, which is taken off the
    optimizer.

    Raises:
        ConfigError: Both are set.
    """
    clip = optimizer._grad_clip
    if config.gradient_clip and clip is not None:
        raise ConfigError(
            f"set_gradient_clip({config.gradient_clip}), but set_optimizer's optimizer has a grad_clip too; leave one "
            "out"
        )
    if isinstance(clip, paddle.nn.ClipGradByGlobalNorm):
        # Paddle's own clipping sees the shard of one rank only, and would scale each rank differently.
        optimizer._grad_clip = None
        return float(clip.clip_norm)
    return config.gradient_clip or None


def clip_factor(norm: float, square_sum: float) -> float:
    """Returns the factor that clips gradients with this sum of squares to a norm of at most `norm`."""
    return norm / max(norm, math.sqrt(square_sum))


def square_sum(parameters: Sequence[Any]) -> float:
    """Returns the sum of the squares of the gradients."""
    parts = [(p.grad.astype("float32") ** 2).sum() for p in parameters if p.grad is not None]
    return math.fsum(paddle.stack(parts).tolist()) if parts else 0.0


def scale_gradients(parameters: Iterable[Any], factor: float) -> None:
    """Multiplies the gradients by `factor`, in place."""
    if factor == 1.0:
        return
    with paddle.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.scale_(factor)


def create_state(optimizer: paddle.optimizer.Optimizer, parameters: Iterable[Any]) -> None:
    """Creates the accumulators of `parameters`, which an optimizer otherwise creates at its first step."""
    wanted = {id(parameter) for parameter in parameters}
    # This is what the first step of an optimizer does (2.6 and 3.3 alike); there is no public way.
    optimizer.helper = LayerHelper(type(optimizer).__name__)
    block = paddle.static.default_main_program().global_block()
    for group in optimizer._param_groups:
        if isinstance(group, dict):
            own = {**group, "params": [p for p in group["params"] if id(p) in wanted]}
            optimizer._create_accumulators(block, own)
        elif id(group) in wanted:
            optimizer._create_accumulators(block, [group])


def schedule_state(optimizer: paddle.optimizer.Optimizer) -> dict[str, Any]:
    """Returns the state of the optimizer's schedule, for JSON; it is empty without a schedule.

    Raises:
        ConfigError: The schedule keeps something that JSON cannot hold.
    """
    schedule = optimizer._learning_rate
    if not isinstance(schedule, paddle.optimizer.lr.LRScheduler):
        return {}
    state = schedule.state_dict()
    try:
        return json.loads(json.dumps(state, default=float))
    except (TypeError, ValueError) as problem:
        raise ConfigError(
            f"set_optimizer: the state of {type(schedule).__name__} cannot be saved ({problem}); keep numbers in its "
            "state_dict"
        ) from None


def optimizer_state(
    optimizer: paddle.optimizer.Optimizer, names: dict[str, str]
) -> dict[str, dict[str, paddle.Tensor]]:
    """Returns the accumulators of an optimizer: {structured parameter name: {accumulator name: tensor}}.

    Args:
        optimizer: The optimizer.
        names: Structured names of the parameters, by Paddle's names; others are left out.
    """
    state: dict[str, dict[str, paddle.Tensor]] = {}
    for accumulator, tensors in optimizer._accumulators.items():
        for name, tensor in tensors.items():
            if name in names:
                state.setdefault(names[name], {})[accumulator] = tensor
    return state
