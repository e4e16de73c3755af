"""The learning rates of an optimizer: how they move with steps and epochs, and what a checkpoint keeps of them."""

from __future__ import annotations

import inspect
import json
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional, Union

import paddle
from paddle.optimizer.lr import LambdaDecay, LinearWarmup, LRScheduler, ReduceOnPlateau

from plsc.errors import ConfigError
from plsc.optim.changes import Snapshot, apply, changes, has_hidden_state, snapshot, undo
from plsc.optim.wrapped import chain_of, innermost

logger = logging.getLogger("plsc")

_CONVERTED = {"Rprop": ("_sign", "_learning_rate_range", "_etas"), "ASGD": ("_n_tensor",)}
# How each schedule was before its first training. A function given to `set_optimizer` may use one object again.
_as_made: weakref.WeakKeyDictionary[LRScheduler, Snapshot] = weakref.WeakKeyDictionary()


def rate_of(optimizer: paddle.optimizer.Optimizer) -> float:
    """Returns the learning rate of the next step; LookAhead itself would return its alpha.

    Raises:
        ConfigError: The schedule returns something else than a number.
    """
    rate = innermost(optimizer).get_lr()
    try:
        return float(rate)
    except (TypeError, ValueError) as problem:
        kind = type(innermost(optimizer)._learning_rate).__name__
        raise ConfigError(
            f"set_optimizer: the learning rate of {kind} is {rate!r}, expected a number ({problem})"
        ) from None


class PlateauDecay(LambdaDecay):
    """The rate of each step, multiplied with a factor that falls once a metric no longer improves.

    Args:
        rate_at: The function that returns the rate of a step.
        plateau: The schedule of the factor; it follows the metric.
        warmup_steps: The number of steps after which it begins to do so.
    """

    def __init__(self, rate_at: Callable[[int], float], plateau: ReduceOnPlateau, warmup_steps: int) -> None:
        self.plateau, self.warmup_steps = plateau, warmup_steps
        super().__init__(1.0, rate_at)

    def get_lr(self) -> float:
        """Returns the rate of the current step."""
        return super().get_lr() * self.plateau.last_lr


class Schedules:
    """The learning rates of an optimizer and of those it wraps, and their other counters.

    A schedule takes a step with each training step. One whose `step` asks for a metric (ReduceOnPlateau) takes one with
    each epoch: with mode 'min' it gets the epoch's mean loss, with 'max' the mean score of its test.

    Args:
        optimizer: The optimizer before its first step. A schedule that an earlier training has moved begins again.
        with_test: Whether there is a test after each epoch.

    Raises:
        ConfigError: A schedule asks for the score of a test, and there are no tests.
    """

    def __init__(self, optimizer: paddle.optimizer.Optimizer, with_test: bool = True) -> None:
        self._optimizers = chain_of(optimizer)
        self._steps = 0
        for schedule in self._schedules():
            if schedule in _as_made:
                undo(schedule, _as_made[schedule])
            _as_made[schedule] = snapshot(schedule)
            for metric in _metric_schedules(schedule):
                if not with_test and _follows_score(metric):
                    raise ConfigError(
                        f"set_optimizer: {type(metric).__name__}(mode='max') follows the score of the tests, but "
                        "set_with_test(False) leaves them out; use mode='min', which follows the loss"
                    )
        self._made = [(one._learning_rate, _own(one)) for one in self._optimizers]

    def step(self) -> None:
        """Moves the schedules to the next training step.

        Raises:
            ConfigError: A schedule cannot be moved further.
        """
        self._steps += 1
        for schedule in self._schedules():
            _advance(schedule)

    def end_epoch(self, loss: Optional[float], score: Optional[float]) -> None:
        """Moves the schedules that follow a metric; one whose metric is not known stays where it is.

        Args:
            loss: Mean loss of the epoch's steps; None when all were skipped.
            score: Mean accuracy or rank-1 rate of the epoch's test; None without a test.
        """
        for schedule in self._schedules():
            for metric in _metric_schedules(schedule):
                value = score if _follows_score(metric) else loss
                if metric is not schedule and schedule.last_epoch < schedule.warmup_steps:
                    continue  # it warms up
                if value is not None:
                    before = schedule.last_lr
                    metric.step(value)
                    schedule.last_lr = schedule.get_lr() if isinstance(schedule, PlateauDecay) else metric()
                    if schedule.last_lr != before:
                        what = "score of the tests" if _follows_score(metric) else "loss"
                        logger.info(
                            "learning rate %.4g instead of %.4g: the %s improves no more",
                            schedule.last_lr,
                            before,
                            what,
                        )

    def state(self) -> list[dict[str, Any]]:
        """Returns what a checkpoint keeps, for JSON: of each optimizer, what has changed since it was made.

        Raises:
            ConfigError: The state of a schedule cannot be written as JSON.
        """
        return [
            {**_rate_state(one._learning_rate, rate), "steps": self._steps, "optimizer": changes(_own(one), own)}
            for one, (rate, own) in zip(self._optimizers, self._made)
        ]

    def load(self, saved: Union[Mapping[str, Any], Sequence[Mapping[str, Any]]]) -> None:
        """Takes over the state in a checkpoint; that of an earlier version is the `state_dict` of the one schedule."""
        if isinstance(saved, Mapping):
            if saved:
                self._optimizers[0]._learning_rate.set_state_dict(dict(saved))
            return
        for one, state in zip(self._optimizers, saved):
            converted = _converted(one)
            apply(one, {name: value for name, value in state["optimizer"].items() if name not in converted})
            self._steps = int(state["steps"])
            schedule = one._learning_rate
            if "rate" in state:
                one._learning_rate = float(state["rate"])
            elif isinstance(schedule, LRScheduler):
                _load_schedule(schedule, state)

    def _schedules(self) -> list[LRScheduler]:
        """Returns the schedules in use, each once."""
        rates = [one._learning_rate for one in self._optimizers]
        return list({id(rate): rate for rate in rates if isinstance(rate, LRScheduler)}.values())


def _rate_state(rate: Any, first: Any) -> dict[str, Any]:
    """Returns the state of a learning rate, a schedule or a number, which was `first` when training began."""
    if not isinstance(rate, LRScheduler):  # a number that is not the script's was set by hand
        return {} if rate == first else {"rate": float(rate)}
    state: dict[str, Any] = {"schedule": type(rate).__name__}
    if _has_own_state_dict(rate):
        try:
            state["state_dict"] = json.loads(json.dumps(rate.state_dict(), default=float))
        except (TypeError, ValueError) as problem:
            raise ConfigError(
                f"set_optimizer: the state of {type(rate).__name__} cannot be saved ({problem}); keep numbers in its "
                "state_dict"
            ) from None
    return {**state, "changes": changes(snapshot(rate), _as_made.get(rate, {}))}


def _load_schedule(schedule: LRScheduler, state: Mapping[str, Any]) -> None:
    """Brings a fresh schedule to where that of the checkpoint was."""
    is_same = state.get("schedule") == type(schedule).__name__
    if not is_same:
        logger.warning(
            "set_optimizer: the learning rate followed %s when the checkpoint was saved and follows %s now, which "
            "begins after %d steps",
            state.get("schedule", "no schedule"),
            type(schedule).__name__,
            state["steps"],
        )
    if not is_same or (has_hidden_state(schedule) and "state_dict" not in state):
        for _ in range(int(state["steps"])):
            _advance(schedule)
    if is_same:
        apply(schedule, state["changes"])
        if "state_dict" in state:
            schedule.set_state_dict(state["state_dict"])
        if isinstance(schedule, LambdaDecay):  # the next step already has the rate of today's settings and ranks
            schedule.last_lr = schedule.get_lr()


def _advance(schedule: LRScheduler) -> None:
    """Moves a schedule by one training step, unless it follows a metric."""
    inner = [one for one in _metric_schedules(schedule) if one is not schedule]
    if inner and isinstance(schedule, LinearWarmup):  # it would take the number of the step for the metric
        schedule.last_epoch += 1
        warms_up = schedule.last_epoch < schedule.warmup_steps
        schedule.last_lr = schedule.get_lr() if warms_up else inner[0]()
    elif not _follows_metric(schedule):
        try:
            schedule.step()
        except ValueError as problem:
            raise ConfigError(f"set_optimizer: {type(schedule).__name__} cannot go further: {problem}") from None


def _metric_schedules(rate: Any) -> list[LRScheduler]:
    """Returns the schedule itself, or the one inside it, if it follows a metric."""
    last = rate.learning_rate if isinstance(rate, LinearWarmup) else getattr(rate, "plateau", rate)
    return [last] if isinstance(last, LRScheduler) and _follows_metric(last) else []


def _follows_metric(schedule: LRScheduler) -> bool:
    needed = inspect.signature(schedule.step).parameters.values()
    return any(one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD for one in needed)


def _follows_score(schedule: LRScheduler) -> bool:
    """Returns whether a schedule that follows a metric follows the score of the tests, not the loss."""
    return getattr(schedule, "mode", "min") == "max"


def _has_own_state_dict(schedule: LRScheduler) -> bool:
    schedules = [schedule, schedule.learning_rate] if isinstance(schedule, LinearWarmup) else [schedule]
    methods = [type(one).state_dict for one in schedules if isinstance(one, LRScheduler)]
    return any(not method.__module__.startswith("paddle.") for method in methods)


def _own(optimizer: paddle.optimizer.Optimizer) -> Snapshot:
    """Returns the plain attributes that only this kind of optimizer has, such as LookAhead's count of steps."""
    left_out = {*vars(paddle.optimizer.Optimizer(0.0, parameters=[])), *_converted(optimizer)}
    return {name: value for name, value in snapshot(optimizer).items() if name not in left_out}


def _converted(optimizer: paddle.optimizer.Optimizer) -> tuple[str, ...]:
    """Returns the attributes in which the first step of an optimizer puts its settings as tensors.

    Each run converts the settings of its script, so a checkpoint does not keep these attributes, and `load` skips them
    in one that an earlier version wrote.
    """
    return next((_CONVERTED[base.__name__] for base in type(optimizer).__mro__ if base.__name__ in _CONVERTED), ())
