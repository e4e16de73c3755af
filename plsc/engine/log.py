"""What a run shows and records: its progress on the screen, and metrics.jsonl. Rank 0 speaks for all ranks."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm

from plsc import parallel
from plsc.engine.callbacks import Callback, Run, Step
from plsc.errors import ConfigError, TrainingError
from plsc.evaluation.log import log_test
from plsc.machine.streams import shows_bars
from plsc.metrics.records import finite

logger = logging.getLogger("plsc")

METRICS = "metrics.jsonl"
_SECONDS_TO_FIRST_LINE = 5.0  # with `set_log_period` alone, it would come after minutes on a slow machine


class MetricsFile:
    """The file `<model_save_dir>/metrics.jsonl`, to which rank 0 writes one JSON object a line.

    Every line is flushed at once. Without a folder nothing is written.

    Args:
        save_dir: Folder of the run, or None.
        resumed_size: `size` at the checkpoint that a resumed run starts from. What was written later is cut off,
            because the run will do it again. A last line that a full disk or a power cut has left half written is
            ended, so that the next record gets a line to itself.
    """

    def __init__(self, save_dir: Optional[Path], resumed_size: Optional[int] = None) -> None:
        self._stream = None
        if save_dir is None or parallel.rank() != 0:
            return
        self._path = save_dir / METRICS
        try:
            self._stream = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
            if resumed_size is not None and self.size > resumed_size:
                self._stream.truncate(resumed_size)
            if _is_torn(self._path):
                self._stream.write("\n")
                self._stream.flush()
        except OSError as problem:
            raise ConfigError(
                f"{self._path}: cannot write there ({problem.strerror}); choose another folder with set_model_save_dir"
            ) from None

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Appends one record."""
        if self._stream is None:
            return
        try:
            self._stream.write(json.dumps({"event": event, **finite(values)}, allow_nan=False) + "\n")
            self._stream.flush()
        except OSError as problem:
            raise TrainingError(
                f"{self._path}: cannot be written ({problem.strerror}); free some space and resume with "
                "set_resume(True)"
            ) from None

    @property
    def size(self) -> int:
        """Size of the file, in bytes; everything written so far is in it."""
        return 0 if self._stream is None else os.fstat(self._stream.fileno()).st_size

    def close(self) -> None:
        """Closes the file."""
        if self._stream is not None:
            with contextlib.suppress(OSError):  # `write` has already reported what could not be written
                self._stream.close()


def _is_torn(path: Path) -> bool:
    """Returns whether the last line of a file lacks its end."""
    with open(path, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        return stream.read(1) not in (b"", b"\n")


class ProgressLog(Callback):
    """The log of a training: loss, speed, remaining time, accuracy and tests.

    It shows a progress bar on a terminal and plain lines elsewhere, and always writes to `metrics.jsonl`. The first
    line comes after the first step that ends more than 5 s after the beginning, if that is before `log_period` steps.
    An epoch of fewer than `log_period` steps that would show nothing shows its loss at its end.
    """

    def __init__(self) -> None:
        self._bar: Optional[tqdm] = None
        # Sums over the steps since the last record that were not skipped.
        self._sums: dict[str, float] = {"loss": 0.0, "steps": 0, "samples": 0, "top1": 0, "top5": 0}
        self._of_heads: dict[str, tuple[float, float]] = {}  # the same of each part of the loss: losses, samples
        self._steps, self._samples, self._began = 0, 0, 0.0
        self._epoch, self._step_of_epoch = 0, 0  # of the last step
        self._has_shown = False

    def state(self) -> dict[str, Any]:
        """Returns the sums that are not recorded yet."""
        return {**self._sums, "of_heads": self._of_heads} if self._of_heads else self._sums

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back the sums that were not recorded yet."""
        self._sums = {name: state[name] for name in self._sums}
        self._of_heads = {title: (loss, samples) for title, (loss, samples) in state.get("of_heads", {}).items()}

    def on_train_begin(self, run: Run) -> None:
        """Shows the progress bar on a terminal."""
        if parallel.rank() == 0 and shows_bars():
            total = _total_steps(run)
            self._bar = tqdm(total=total, initial=run.progress.step, unit="step", dynamic_ncols=True)
        self._began = run.clock.seconds

    def on_step_end(self, run: Run) -> None:
        """Adds one step; shows and records the sums every `log_period` steps."""
        assert run.last is not None
        self._epoch, self._step_of_epoch = run.progress.epoch, run.progress.batch
        self._steps += 1
        self._samples += run.last.samples
        if run.last.problem is None:
            top1, top5 = run.last.correct or (0, 0)
            for name, value in zip(self._sums, (run.last.loss, 1, run.last.samples, top1, top5)):
                self._sums[name] += value
            for title, (loss, samples) in run.last.of_heads.items():
                before = self._of_heads.get(title, (0.0, 0))
                self._of_heads[title] = before[0] + loss, before[1] + samples
        if self._bar is not None:
            self._bar.update()
        if run.progress.step % run.config.log_period == 0:
            self._flush(run)
        elif not self._has_shown and run.clock.seconds - self._began >= _SECONDS_TO_FIRST_LINE:
            self._show(run, run.last)

    def on_test(self, run: Run, results: Mapping[str, Mapping[str, float]]) -> None:
        """Shows and records the results of a test."""
        if run.progress.epoch + 1 == run.config.train_epochs or self._is_short(run, run.progress.batch):
            self._flush(run)
        log_test(results)
        run.record("test", step=run.progress.step, epoch=run.progress.epoch, time=_now(), **results)

    def on_epoch_end(self, run: Run) -> None:
        """Shows and records the last steps of the run, and those of an epoch that has shown nothing."""
        if run.progress.epoch == run.config.train_epochs or self._is_short(run, self._step_of_epoch):
            self._flush(run)

    def on_train_end(self, run: Run) -> None:
        """Shows and records the last steps of a run that ends early."""
        self._flush(run)

    def close(self) -> None:
        """Closes the progress bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _is_short(self, run: Run, steps: int) -> bool:
        """Returns whether none of the steps of the epoch that has just ended was a multiple of `log_period`."""
        period, step = run.config.log_period, run.progress.step
        return step // period == (step - steps) // period

    def _flush(self, run: Run) -> None:
        """Shows and records the steps since the last record, if there are any."""
        if self._steps == 0 or run.last is None:
            return
        means, last = self._means(run.last), run.last
        elapsed = self._elapsed(run)
        run.record(
            "train",
            step=run.progress.step,
            epoch=self._epoch,
            time=_now(),
            lr=last.lr,
            loss=means.get("loss"),
            losses=self._losses() or None,
            images_per_second=self._samples / elapsed,
            loss_scaling=last.scale,
            skipped_steps=run.progress.skipped,
            acc1=means.get("acc1"),
            acc5=means.get("acc5"),
        )
        self._show(run, last)
        self._sums, self._of_heads = dict.fromkeys(self._sums, 0), {}
        self._steps, self._samples, self._began = 0, 0, run.clock.seconds

    def _show(self, run: Run, last: Step) -> None:
        """Shows the steps since the last record."""
        self._has_shown = True
        elapsed, means = self._elapsed(run), self._means(last)
        text = _text_of(means, self._losses(), last, run.progress.skipped) + f", {self._samples / elapsed:.1f} images/s"
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {self._epoch}")
            self._bar.set_postfix_str(f"lr {last.lr:.4g}, {text}")
            return
        of_epoch = f"/{run.steps_per_epoch}" if run.steps_per_epoch else ""
        line = f"epoch {self._epoch}, step {self._step_of_epoch}{of_epoch}, lr {last.lr:.6g}, {text}"
        total = _total_steps(run)
        if total is not None:
            seconds = max(0, total - run.progress.step) * elapsed / self._steps
            line += f", ETA {timedelta(seconds=round(seconds))}"
        logger.info(line)

    def _elapsed(self, run: Run) -> float:
        return max(run.clock.seconds - self._began, 1e-9)

    def _means(self, last: Step) -> dict[str, float]:
        """Returns the mean loss and the accuracies of the steps since the last record that were not skipped."""
        sums = self._sums
        means = {"loss": sums["loss"] / sums["steps"]} if sums["steps"] else {}
        if last.correct is not None and sums["samples"] > 0:
            means.update(acc1=sums["top1"] / sums["samples"], acc5=sums["top5"] / sums["samples"])
        return means

    def _losses(self) -> dict[str, float]:
        """Returns the mean of each part of the loss over its samples since the last record, if it had any."""
        return {title: loss / samples for title, (loss, samples) in self._of_heads.items() if samples}


def _text_of(means: Mapping[str, float], losses: Mapping[str, float], last: Step, skipped: int) -> str:
    """Returns the loss and its parts, the accuracies, the scale and the skipped steps, for a log line."""
    text = f"loss {means['loss']:.4f}" if "loss" in means else "loss -"
    text += f" ({', '.join(f'{title} {loss:.4f}' for title, loss in losses.items())})" if losses else ""
    text += "".join(f", {name} {value:.4f}" for name, value in means.items() if name != "loss")
    text += "" if last.scale is None else f", scale {last.scale:g}"
    return text + (f", {skipped} skipped" if skipped else "")


def _now() -> float:
    """Returns the seconds since 1970."""
    return round(time.time(), 3)


def _total_steps(run: Run) -> Optional[int]:
    return run.steps_per_epoch * run.config.train_epochs if run.steps_per_epoch else None
