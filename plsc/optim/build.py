"""The optimizer of a training, over the parameters that are trained: the default one, or the user's."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional, Union

import paddle
from paddle.incubate import ModelAverage
from paddle.incubate.optimizer import DistributedFusedLamb, LarsMomentumOptimizer

from plsc import parallel
from plsc.config import Config
from plsc.errors import ConfigError, PlscError, reason_of
from plsc.optim.schedule import PlateauDecay
from plsc.optim.wrapped import CREATED, chain_of, groups_of, innermost, parameters_of, set_list

logger = logging.getLogger("plsc")

_BY_NORM = (paddle.optimizer.Lamb, DistributedFusedLamb, LarsMomentumOptimizer)
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
REFERENCE_BATCH = 1024  # the setting `lr` is the learning rate for a global batch of this size

OptimizerOrFactory = Union["paddle.optimizer.Optimizer", Callable[[Sequence[Any]], "paddle.optimizer.Optimizer"]]


def deferred() -> list[paddle.Tensor]:
    """Returns a placeholder for parameters that do not exist yet: `Adam(1e-3, parameters=plsc.optim.deferred())`.

    Paddle refuses to build an optimizer without parameters; `Entry.train` replaces them with those it trains. In a
    parameter group, the placeholder stands for all parameters that no other group lists.
    """
    placeholder = paddle.create_parameter([1], "float32")
    placeholder.is_deferred = True
    return [placeholder]


def learning_rate_at(config: Config, step: int, steps_per_epoch: int, world_size: Optional[int] = None) -> float:
    """Returns the learning rate of step `step`, from 0, on `world_size` ranks, by default those of this run.

    It grows linearly to lr * global batch / 1024 during warm-up. Then the schedule 'step' multiplies it with
    lr_decay_factor at each boundary. The schedule 'plateau' does so when a metric no longer improves, which this
    function does not know. With t growing from 0 at the end of the warm-up to 1 at the end of the training,
    'cosine' multiplies it with (1 + cos(pi t)) / 2 (Loshchilov and Hutter, SGDR, equation 5, without restarts), and
    'poly' with (1 - t) ** power. The two end at `floor` times the full rate instead of at 0, and 'step' falls no lower.
    """
    schedule = config.schedule
    rate = config.lr * config.batch_per_rank * (world_size or parallel.world_size()) / REFERENCE_BATCH
    if schedule.name == "step":
        rate *= max(schedule.floor, config.lr_decay_factor ** sum(step >= boundary for boundary in config.lr_steps))
    warmup_steps = _warmup_steps(config, steps_per_epoch)
    if step < warmup_steps:
        return rate * (step + 1) / warmup_steps
    if schedule.name in ("step", "plateau"):
        return rate
    t = min(1.0, (step - warmup_steps) / max(1, config.train_epochs * steps_per_epoch - warmup_steps))
    factor = (1 + math.cos(math.pi * t)) / 2 if schedule.name == "cosine" else (1 - t) ** schedule.power
    return rate * (schedule.floor + (1 - schedule.floor) * factor)


def _warmup_steps(config: Config, steps_per_epoch: int) -> int:
    return config.schedule.warmup_steps or config.warmup_epochs * steps_per_epoch


def _build_schedule(config: Config, steps_per_epoch: int) -> paddle.optimizer.lr.LRScheduler:
    """Returns the schedule of the settings."""

    def rate_at(step: int) -> float:
        return learning_rate_at(config, step, steps_per_epoch)

    schedule = config.schedule
    if schedule.name != "plateau":
        return paddle.optimizer.lr.LambdaDecay(1.0, rate_at)
    plateau = paddle.optimizer.lr.ReduceOnPlateau(
        1.0,
        mode="max" if schedule.metric == "test" else "min",
        factor=config.lr_decay_factor,
        patience=schedule.patience,
        min_lr=schedule.floor,
    )
    return PlateauDecay(rate_at, plateau, _warmup_steps(config, steps_per_epoch))


def build_optimizer(config: Config, parameters: Sequence[Any], steps_per_epoch: int) -> paddle.optimizer.Optimizer:
    """Returns the user's optimizer over `parameters`, or Momentum 0.9 with L2 decay 5e-4 and the default schedule.

    An optimizer that a function makes has the parameters that the function gave it. One that was handed over as an
    object is copied, so that a second training starts with fresh moments; it keeps its parameter groups, and those of
    `parameters` that it does not list join the group of the placeholder, or a group with the optimizer's own settings.

    Raises:
        ConfigError: The function given to `set_optimizer` fails or returns something else, or the optimizer cannot
            train.
    """
    chosen = config.optimizer
    if chosen is None:
        return paddle.optimizer.Momentum(
            _build_schedule(config, steps_per_epoch),
            MOMENTUM,
            parameters=list(parameters),
            weight_decay=paddle.regularizer.L2Decay(WEIGHT_DECAY),
        )
    is_object = isinstance(chosen, paddle.optimizer.Optimizer)
    if is_object:
        _check_object(chosen, parameters)
    optimizer = _made(chosen, parameters)
    for one in chain_of(optimizer):
        _check_step(one)
    _check_lists(optimizer)
    if is_object or any(_is_deferred(parameter) for parameter in parameters_of(optimizer)):
        for one in chain_of(optimizer):
            _adopt(one, parameters)
    return optimizer


def check_parameters(
    optimizer: paddle.optimizer.Optimizer, backbone: Mapping[str, Any], head: Mapping[str, Any], is_split: bool
) -> None:
    """Checks that the optimizer moves what is trained, and that it moves shards as it would move the whole head.

    Args:
        optimizer: The optimizer of all of them.
        backbone: The trained parameters of the backbone, by name.
        head: Those of this rank's part of the head.
        is_split: Whether other ranks hold other parts of the head.

    Raises:
        ConfigError: It leaves out the head, or needs the norm of whole tensors.
    """
    listed = {id(parameter) for parameter in parameters_of(optimizer)}
    missing = [name for name, parameter in head.items() if id(parameter) not in listed]
    if missing:
        raise ConfigError(
            f"set_optimizer: the function's optimizer leaves out the {' and the '.join(missing)} of the head, so the "
            "class centres would stay where they are; give it all parameters that the function receives, or freeze "
            "the head with set_distfc_attr(param_attr=paddle.ParamAttr(trainable=False))"
        )
    missing = [name for name, parameter in backbone.items() if id(parameter) not in listed]
    if missing and parallel.rank() == 0:
        logger.warning(
            "set_optimizer: the function's optimizer leaves out %d of %d parameters of the backbone, which stay as "
            "they are: %s%s",
            len(missing),
            len(backbone),
            ", ".join(missing[:5]),
            ", ..." if len(missing) > 5 else "",
        )
    by_norm = [one for one in chain_of(optimizer) if isinstance(one, _BY_NORM)]
    if by_norm and is_split and head:
        raise ConfigError(
            f"set_optimizer: {type(by_norm[0]).__name__} scales a step by the norm of the whole matrix of class "
            "centres, of which each rank holds a part; use AdamW or Momentum, or keep the whole matrix on every rank "
            "with set_loss_type('arcface') or another loss whose name does not begin with dist_"
        )


def _made(chosen: OptimizerOrFactory, parameters: Sequence[Any]) -> paddle.optimizer.Optimizer:
    """Returns a copy of the user's optimizer, or what the user's function makes.

    Raises:
        ConfigError: That fails, or the function returns something else. The error keeps its cause where the user's own
            code failed, and not Paddle.
    """
    try:
        if isinstance(chosen, paddle.optimizer.Optimizer):
            return copy.deepcopy(chosen, _shared_by_a_copy(chosen))
        optimizer = chosen(list(parameters))
    except PlscError:
        raise
    except Exception as problem:  # noqa: BLE001 - whatever the user's function or Paddle raises is reported in one line
        last = traceback.extract_tb(problem.__traceback__)[-1]
        is_paddles = last.filename.startswith(paddle.__path__[0])
        reason = reason_of(problem) if str(problem) else last.line
        raise ConfigError(f"set_optimizer: {_what_failed(chosen)} ({type(problem).__name__}: {reason})") from (
            None if is_paddles or isinstance(chosen, (type, paddle.optimizer.Optimizer)) else problem
        )
    if not isinstance(optimizer, paddle.optimizer.Optimizer):
        raise ConfigError(
            f"set_optimizer: the function returned {type(optimizer).__name__}, expected a paddle.optimizer.Optimizer"
        )
    return optimizer


def _what_failed(chosen: OptimizerOrFactory) -> str:
    """Returns what failed when `chosen` was to give an optimizer, and what to do."""
    if isinstance(chosen, type):
        return (
            f"{chosen.__name__} is a class, which cannot be made from the parameters alone; give a function of the "
            f"parameters, such as lambda parameters: {chosen.__name__}(..., parameters=parameters), or an object made "
            "with parameters=plsc.optim.deferred()"
        )
    if isinstance(chosen, paddle.optimizer.Optimizer):
        return f"{type(chosen).__name__} cannot be copied; give a function of the parameters that makes it"
    return "the function of the parameters failed"


def _check_object(chosen: paddle.optimizer.Optimizer, parameters: Sequence[Any]) -> None:
    """Raises a ConfigError for an optimizer object that was made for another model."""
    listed, trained = parameters_of(chosen), {id(parameter) for parameter in parameters}
    if not any(id(p) in trained or _is_deferred(p) for p in listed) and any(not p.stop_gradient for p in listed):
        raise ConfigError(
            f"set_optimizer: {type(chosen).__name__} lists {len(listed)} parameters, none of which is trained; make "
            "it with parameters=plsc.optim.deferred(), or with those of the model given to set_model"
        )


def _check_lists(optimizer: paddle.optimizer.Optimizer) -> None:
    """Raises a ConfigError for an optimizer that lists a parameter twice, or has the placeholder in two groups."""
    counts = Counter(id(parameter) for parameter in parameters_of(optimizer))
    twice = [parameter.name for parameter in parameters_of(optimizer) if counts[id(parameter)] > 1]
    if twice:
        raise ConfigError(
            f"set_optimizer: the optimizer lists the parameter {twice[0]} more than once and would move it as often in "
            "a step; list each parameter once"
        )
    groups = [group for group in groups_of(optimizer) if any(_is_deferred(p) for p in group["params"])]
    if len(groups) > 1:
        raise ConfigError(
            f"set_optimizer: {len(groups)} parameter groups have the placeholder plsc.optim.deferred(), which stands "
            "for all parameters that no other group lists; leave it in one group"
        )


def _shared_by_a_copy(chosen: paddle.optimizer.Optimizer) -> dict[int, Any]:
    """Returns what a deep copy of an optimizer does not copy, by id: weights stay, and what its steps left is new."""
    kept: dict[int, Any] = {id(parameter): parameter for parameter in parameters_of(chosen)}
    for one in chain_of(chosen):
        kept[id(one._accumulators)] = defaultdict(dict)
        kept[id(one._learning_rate_map)] = {}  # its keys are programs, which cannot be copied
        kept.update({id(value): set() for name, value in vars(one).items() if name.startswith(CREATED)})
    return kept


def _check_step(optimizer: paddle.optimizer.Optimizer) -> None:
    """Raises a ConfigError for an optimizer that no step of a training can use."""
    kind = type(optimizer).__name__
    arguments = inspect.signature(optimizer.step).parameters.values()
    needed = [one.name for one in arguments if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if needed:
        raise ConfigError(
            f"set_optimizer: {kind}.step needs {needed[0]!r}, and computes the loss again several times in a step; "
            "use an optimizer that needs the gradients alone, such as Momentum or AdamW"
        )
    if isinstance(optimizer, ModelAverage):
        raise ConfigError(
            f"set_optimizer: {kind} moves no weights, it only averages them; give set_optimizer the optimizer that "
            f"moves them, and call the step of {kind} in a callback"
        )
    if groups_of(innermost(optimizer)) and innermost(optimizer) is not optimizer:
        raise ConfigError(
            f"set_optimizer: {kind} cannot wrap an optimizer with parameter groups in Paddle; give the inner "
            "optimizer one list"
        )


def _is_deferred(parameter: paddle.Tensor) -> bool:
    return getattr(parameter, "is_deferred", False)


def _adopt(optimizer: paddle.optimizer.Optimizer, parameters: Sequence[Any]) -> None:
    """Gives an optimizer these parameters, in its groups if it has some."""
    groups = groups_of(optimizer)
    if not groups:
        set_list(optimizer, parameters)
        return
    trained, listed = {id(p) for p in parameters}, {id(p) for group in groups for p in group["params"]}
    rest = [parameter for parameter in parameters if id(parameter) not in listed]
    own = [(parameter.regularizer, parameter.optimize_attr["learning_rate"]) for parameter in rest]
    place = [number for number, group in enumerate(groups) if any(_is_deferred(p) for p in group["params"])]
    if not place:
        common = {"weight_decay": optimizer.regularization, "grad_clip": optimizer._grad_clip}
        groups, place = [*groups, {"params": [], **common, **optimizer._default_dict}], [len(groups)]
    optimizer._param_groups = []
    for number, group in enumerate(groups):
        members = [p for p in group["params"] if id(p) in trained] + (rest if number == place[0] else [])
        if members:  # Paddle has no empty groups
            optimizer._add_param_group({**group, "params": members})
    optimizer._parameter_list = list(optimizer._param_groups)
    for parameter, (regularizer, rate) in zip(rest, own):  # as in a plain list, what a ParamAttr says wins
        if regularizer is not None:
            parameter.regularizer = regularizer
        if rate != 1.0:
            parameter.optimize_attr["learning_rate"] = rate
