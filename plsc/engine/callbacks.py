"""Callbacks: their hooks, what the hooks see of a run, and the callback that saves checkpoints."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Protocol

import paddle

from plsc.config import Config
from plsc.engine.progress import Progress
from plsc.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Step:
    """What is known of the last step, the same on every rank.

    Attributes:
        loss: Mean over the global batch.
        lr: Learning rate of the step.
        scale: Loss scale of the step; None where the loss is not scaled.
        samples: Size of the global batch.
        correct: (top-1, top-5) counts over the global batch, with `set_calc_acc`; None without.
        problem: Why the step was skipped and updated nothing; None when all is well.
        of_heads: The sum of the losses of each of several heads, before its weight, and the number of its samples, by
            the title of its data set; empty for a single head. With a teacher, the same of `head` and `teacher`.
    """

    loss: float
    lr: float
    scale: Optional[float]
    samples: int
    correct: Optional[tuple[int, int]]
    problem: Optional[str]
    of_heads: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class Clock:
    """A clock that measures the time spent on training, without tests and saves."""

    def __init__(self) -> None:
        self._began, self._pauses = time.perf_counter(), 0

    @property
    def seconds(self) -> float:
        """Seconds since the clock was made, without its pauses."""
        return time.perf_counter() - self._began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock while the block runs; pauses may be nested."""
        began = time.perf_counter()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            if self._pauses == 0:
                self._began += time.perf_counter() - began


class Run(Protocol):
    """What a hook sees of the training it takes part in.

    Attributes:
        config: The settings; a hook must not change them.
        backbone: The model, as the user gave it.
        head: This rank's class centres.
        optimizer: The optimizer of both; `optimizer.get_lr()` is the learning rate of the next step.
        last: The last step; None before the first.
        save_dir: Folder of the run; None when nothing is saved.
        clock: Seconds spent on training.
    """

    config: Config
    backbone: paddle.nn.Layer
    head: paddle.nn.Layer
    optimizer: paddle.optimizer.Optimizer
    last: Optional[Step]
    save_dir: Optional[Path]
    clock: Clock

    @property
    def steps_per_epoch(self) -> Optional[int]:
        """Steps in an epoch; None when a reader cannot tell, until they are counted in the first epoch."""

    @property
    def progress(self) -> Progress:
        """Epochs and steps done, the mean loss of the last epoch, and the results of the last test."""

    @property
    def checkpoints(self) -> Sequence[Path]:
        """The complete checkpoints of this run that are kept, oldest first."""

    def record(self, event: str, **values: Any) -> None:
        """Adds a line to metrics.jsonl, which rank 0 writes, and tells the callbacks.

        Args:
            event: What the line is about, such as 'train'.
            **values: Numbers, texts, and dicts of them; values that are None are left out.
        """

    def save(self, name: str) -> None:
        """Saves a checkpoint to `<save_dir>/<name>`; does nothing without a save folder.

        Every rank must call it after the same step.
        """

    def stop(self, reason: str) -> None:
        """Ends training in an orderly way on all ranks, even when only one of them calls it.

        Training ends after this epoch when it is called at the end of the epoch, and after the next step otherwise.
        """


class Callback:
    """An object that takes part in training.

    Override the hooks you need, and give an instance to `Entry.add_callback`. Every rank calls every hook, in the order
    in which the callbacks were added. An exception ends the run on all ranks.
    """

    def on_train_begin(self, run: Run) -> None:
        """Is called before the first step, when all weights are loaded and a resumed run is where it stopped."""

    def on_epoch_begin(self, run: Run) -> None:
        """Is called before the first step of an epoch; in a resumed run, before its first remaining step."""

    def on_step_end(self, run: Run) -> None:
        """Is called after each step; `run.last` and `run.progress` describe it."""

    def on_test(self, run: Run, results: Mapping[str, Mapping[str, float]]) -> None:
        """Is called after a test; `results` is what `Entry.test` returns."""

    def on_record(self, run: Run, event: str, values: Mapping[str, Any]) -> None:
        """Is called after each `run.record`, such as 'train' every `log_period` steps; it must not record anything."""

    def on_epoch_end(self, run: Run) -> None:
        """Is called after an epoch and its test, before it is saved; `run.progress.epoch` counts finished epochs."""

    def on_save(self, run: Run, folder: Path) -> None:
        """Is called when a checkpoint is complete on every rank; writing it began some steps ago."""

    def on_train_end(self, run: Run) -> None:
        """Is called when the last epoch is saved, or when `run.stop` has ended training."""

    def close(self) -> None:
        """Releases what the callback holds; is called however training ends."""

    def state(self) -> Any:
        """Returns what a checkpoint keeps of the callback on rank 0, as numbers, texts, lists and dicts."""
        return None

    def load_state(self, state: Any) -> None:
        """Takes back what `state` returned; is called on every rank of a resumed run, before `on_train_begin`."""


class CheckpointSaver(Callback):
    """The callback that saves a checkpoint after each epoch and every `save_period` steps."""

    def on_step_end(self, run: Run) -> None:
        """Saves the checkpoint `step_<n>`."""
        step, period = run.progress.step, run.config.save_period
        if period and step % period == 0:
            run.save(f"step_{step}")

    def on_epoch_end(self, run: Run) -> None:
        """Saves the checkpoint of the epoch, whose name is its number, from 0."""
        run.save(str(run.progress.epoch - 1))


def states_of(callbacks: Sequence[Callback]) -> dict[str, Any]:
    """Returns the states of the callbacks that have one, by class name; a second one of a class is `<name>_2`.

    Raises:
        ConfigError: A state cannot be written as JSON.
    """
    states = {}
    for name, callback in _named(callbacks):
        state = callback.state()
        if state is None:
            continue
        try:
            states[name] = json.loads(json.dumps(state))
        except (TypeError, ValueError) as problem:
            raise ConfigError(
                f"{name}.state(): cannot be saved ({problem}); give numbers, texts, lists and dicts"
            ) from None
    return states


_FIRST_STATE = "_state_before_the_first_training"  # an attribute, because not every callback can be a key of a dict


def begin_again(callbacks: Sequence[Callback]) -> None:
    """Gives each callback the state it had before its first training, so that the next one begins like the first.

    A callback that has no state before a training is left as it is.
    """
    for callback in callbacks:
        if hasattr(callback, _FIRST_STATE):
            callback.load_state(json.loads(getattr(callback, _FIRST_STATE)))
            continue
        with contextlib.suppress(AttributeError, TypeError, ValueError):  # `state` may work only during a training
            state = callback.state()
            if state is not None:
                setattr(callback, _FIRST_STATE, json.dumps(state))


def load_states(callbacks: Sequence[Callback], states: Mapping[str, Any]) -> None:
    """Gives each callback the state it had.

    Raises:
        CheckpointError: A callback does not accept its state.
    """
    for name, callback in _named(callbacks):
        if name not in states:
            continue
        try:
            callback.load_state(states[name])
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise CheckpointError(
                f"{name}.load_state: does not accept the state in the checkpoint ({type(problem).__name__}: "
                f"{problem}); another version of the class has saved it"
            ) from None


def _named(callbacks: Sequence[Callback]) -> Iterator[tuple[str, Callback]]:
    """Yields the callbacks with their names in a checkpoint."""
    seen: Counter[str] = Counter()
    for callback in callbacks:
        kind = type(callback).__name__
        seen[kind] += 1
        yield (kind if seen[kind] == 1 else f"{kind}_{seen[kind]}"), callback
