"""What takes part in training besides the loop: the hooks, what they see, and the saving of checkpoints."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Protocol

import paddle

from plsc.config import Config
from plsc.engine.progress import Progress
from plsc.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Step:
    """The last step; the same on every rank.

    Attributes:
        loss: the mean over the global batch.
        lr: the learning rate it used.
        scale: the loss scale it used; None where the loss is not scaled.
        samples: size of the global batch.
        correct: (top-1, top-5) counts over the global batch, with `set_calc_acc`.
        problem: why nothing was updated by it; None when all is well.
    """

    loss: float
    lr: float
    scale: Optional[float]
    samples: int
    correct: Optional[tuple[int, int]]
    problem: Optional[str]


class Clock:
    """Seconds spent in training: tests and saves are left out."""

    def __init__(self) -> None:
        self._began, self._pauses = time.perf_counter(), 0

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self._began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what happens inside."""
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
        config: the settings; not to be changed.
        backbone: the model, as the user gave it.
        head: this rank's class centres.
        optimizer: of both; `optimizer.get_lr()` is the rate of the next step.
        progress: epochs and steps done, the last epoch's mean loss, the last test's result.
        last: the last step; None before the first.
        steps_per_epoch: None when a reader cannot tell.
        save_dir: None when nothing is saved.
        clock: seconds of training.
    """

    config: Config
    backbone: paddle.nn.Layer
    head: paddle.nn.Layer
    optimizer: paddle.optimizer.Optimizer
    last: Optional[Step]
    steps_per_epoch: Optional[int]
    save_dir: Optional[Path]
    clock: Clock

    @property
    def progress(self) -> Progress:
        """See above."""

    @property
    def checkpoints(self) -> Sequence[Path]:
        """The complete checkpoints of this run that are kept, oldest first."""

    def record(self, event: str, **values: Any) -> None:
        """Adds one line to metrics.jsonl and tells the callbacks; numbers, texts and dicts of them are allowed.

        Rank 0 writes the line. Values that are None are left out.
        """

    def save(self, name: str) -> None:
        """Saves to `<save_dir>/<name>`, if anything is saved; every rank must call it after the same step."""

    def stop(self, reason: str) -> None:
        """Ends training in order: after this epoch when called at its end, otherwise after the next step.

        One rank is enough: all stop.
        """


class Callback:
    """Takes part in training: override the hooks that are of use, and give an object to `Entry.add_callback`.

    Every rank calls every hook, in the order the callbacks were added. An exception ends the run on all ranks.
    """

    def on_train_begin(self, run: Run) -> None:
        """Before the first step, when the weights are there and a resumed run is where it was."""

    def on_epoch_begin(self, run: Run) -> None:
        """Before the first step of an epoch (in a resumed run, before the first that is left)."""

    def on_step_end(self, run: Run) -> None:
        """After a step: `run.last`, `run.progress`."""

    def on_test(self, run: Run, results: Mapping[str, Mapping[str, float]]) -> None:
        """After a test: what `Entry.test` returns."""

    def on_record(self, run: Run, event: str, values: Mapping[str, Any]) -> None:
        """After a record of `run.record`, such as 'train' every `log_period` steps; it must not record anything itself."""

    def on_epoch_end(self, run: Run) -> None:
        """After an epoch and its test, before it is saved; `run.progress.epoch` is the number of epochs done."""

    def on_save(self, run: Run, folder: Path) -> None:
        """A checkpoint is in its place, on every rank; it was begun some steps ago."""

    def on_train_end(self, run: Run) -> None:
        """When the last epoch is saved, or `run.stop` has ended training."""

    def close(self) -> None:
        """However training ends: frees what the callback holds."""

    def state(self) -> Any:
        """What a checkpoint keeps of it, as numbers, texts, lists and dicts; rank 0's counts."""
        return None

    def load_state(self, state: Any) -> None:
        """Takes back what `state` gave, before `on_train_begin` of a resumed run, on every rank."""


class CheckpointSaver(Callback):
    """Saves after each epoch, and every `save_period` steps."""

    def on_step_end(self, run: Run) -> None:
        """Saves `step_<n>`."""
        step, period = run.progress.step, run.config.save_period
        if period and step % period == 0:
            run.save(f"step_{step}")

    def on_epoch_end(self, run: Run) -> None:
        """Saves the epoch by its number, from 0."""
        run.save(str(run.progress.epoch - 1))


def states_of(callbacks: Sequence[Callback]) -> dict[str, Any]:
    """`state` of each that has one, by class name and, for the second of a class and on, its number.

    Raises:
        ConfigError: one is not made of what JSON knows.
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


def load_states(callbacks: Sequence[Callback], states: Mapping[str, Any]) -> None:
    """Gives each callback the state it had.

    Raises:
        CheckpointError: one does not take it.
    """
    for name, callback in _named(callbacks):
        if name not in states:
            continue
        try:
            callback.load_state(states[name])
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise CheckpointError(
                f"{name}.load_state: does not take what the checkpoint holds of it ({type(problem).__name__}: {problem}); "
                "it was saved by another version of the class"
            ) from None


def _named(callbacks: Sequence[Callback]) -> Iterator[tuple[str, Callback]]:
    seen: Counter[str] = Counter()
    for callback in callbacks:
        kind = type(callback).__name__
        seen[kind] += 1
        yield (kind if seen[kind] == 1 else f"{kind}_{seen[kind]}"), callback
