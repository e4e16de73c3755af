"""What a run shows and records: header, progress, metrics.jsonl. Rank 0 speaks for all."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm

from plsc import parallel
from plsc.errors import ConfigError, TrainingError
from plsc.heads import HeadOutput

logger = logging.getLogger("plsc")


def set_up_logging() -> None:
    """Gives the `plsc` logger a plain handler, unless the program gave it one."""
    if logger.handlers:
        return
    handler = _AboveTheBar()
    handler.setFormatter(logging.Formatter(f"%(asctime)s [rank {parallel.rank()}] %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if parallel.rank() == 0 else logging.WARNING)
    logger.propagate = False


class _AboveTheBar(logging.StreamHandler):
    """Writes log lines to stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class MetricsFile:
    """`<model_save_dir>/metrics.jsonl`, one flushed object a line, written by rank 0; nothing without a folder.

    Args:
        resumed_size: `size` when the checkpoint was made a resumed run goes on from: what came later will be done again.
    """

    def __init__(self, save_dir: Optional[Path], resumed_size: Optional[int] = None) -> None:
        self._stream = None
        if save_dir is None or parallel.rank() != 0:
            return
        self._path = save_dir / "metrics.jsonl"
        try:
            self._stream = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
            if resumed_size is not None and self.size > resumed_size:
                self._stream.truncate(resumed_size)
        except OSError as problem:
            raise ConfigError(
                f"{self._path}: cannot write there ({problem.strerror}); choose another folder with set_model_save_dir"
            ) from None

    def write(self, event: str, **values: Any) -> None:
        """Appends one record; values that are None are left out."""
        if self._stream is not None:
            record = {"event": event, **{key: value for key, value in values.items() if value is not None}}
            try:
                self._stream.write(json.dumps(record) + "\n")
                self._stream.flush()
            except OSError as problem:
                raise TrainingError(
                    f"{self._path}: cannot be written ({problem.strerror}); free space and go on with set_resume(True)"
                ) from None

    @property
    def size(self) -> int:
        """Bytes, all of them written."""
        return 0 if self._stream is None else os.fstat(self._stream.fileno()).st_size

    def close(self) -> None:
        """Closes the file."""
        if self._stream is not None:
            with contextlib.suppress(OSError):  # what could not be written has been said
                self._stream.close()


class ProgressLog:
    """Loss, speed, ETA and accuracy: a bar on a terminal, plain lines elsewhere, and `metrics.jsonl` always.

    Args:
        total_steps: of the whole run, for the ETA; None when a reader cannot tell.
        steps_per_epoch: the same for one pass.
        log_period: steps between two records.
        done: steps of the run before this process.
        window: `window` of the process before, whose record is not written yet.
    """

    def __init__(
        self,
        metrics: MetricsFile,
        total_steps: Optional[int],
        steps_per_epoch: Optional[int],
        log_period: int,
        done: int = 0,
        window: Optional[dict[str, float]] = None,
    ) -> None:
        self.metrics = metrics
        self._total, self._steps_per_epoch, self._period = total_steps, steps_per_epoch, log_period
        self._bar: Optional[tqdm] = None
        if parallel.rank() == 0 and sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=done, unit="step", dynamic_ncols=True)
        self._reset_window()
        self._sums.update(window or {})

    def _reset_window(self) -> None:
        self._began = time.perf_counter()
        self._steps, self._samples = 0, 0
        # Of the steps that were not skipped:
        self._sums: dict[str, float] = {"loss": 0.0, "steps": 0, "samples": 0, "top1": 0, "top5": 0}

    @property
    def window(self) -> dict[str, float]:
        """Sums since the last record, for a checkpoint."""
        return dict(self._sums)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves tests and saves, which are not training, out of images/s."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def step(
        self, epoch: int, step: int, batch: int, lr: float, output: HeadOutput, skipped: int, scale: Optional[float]
    ) -> None:
        """Takes in one finished step.

        Args:
            step, batch: of the run and of the pass, from 1.
            lr, scale: the learning rate and the loss scale the step used; None where the loss is not scaled.
            skipped: skipped steps of the run so far.
        """
        self._steps += 1
        self._samples += output.samples
        if output.problem is None:
            top1, top5 = output.correct or (0, 0)
            for name, value in zip(self._sums, (output.loss, 1, output.samples, top1, top5)):
                self._sums[name] += value
        self._latest = (epoch, step, batch, lr, output.correct is not None, skipped, scale)
        if self._bar is not None:
            self._bar.update()
        if step % self._period == 0:
            self.flush()

    def flush(self) -> None:
        """Writes the record of the steps since the last one, if there are any."""
        if self._steps == 0:
            return
        epoch, step, batch, lr, with_accuracy, skipped, scale = self._latest
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        speed = self._samples / elapsed
        sums = self._sums
        loss = sums["loss"] / sums["steps"] if sums["steps"] else None
        with_accuracy = with_accuracy and sums["samples"] > 0
        acc1 = sums["top1"] / sums["samples"] if with_accuracy else None
        acc5 = sums["top5"] / sums["samples"] if with_accuracy else None
        self.metrics.write(
            "train",
            step=step,
            epoch=epoch,
            lr=lr,
            loss=loss,
            images_per_second=speed,
            loss_scaling=scale,
            skipped_steps=skipped,
            acc1=acc1,
            acc5=acc5,
        )
        shown = "loss -" if loss is None else f"loss {loss:.4f}"
        shown += f", acc1 {acc1:.4f}, acc5 {acc5:.4f}" if with_accuracy else ""
        shown += f", scale {scale:g}" if scale is not None else ""
        shown += f", {skipped} skipped" if skipped else ""
        shown += f", {speed:.1f} images/s"
        if self._bar is not None:
            self._bar.set_description_str(f"pass {epoch}")
            self._bar.set_postfix_str(f"lr {lr:.4g}, {shown}")
        else:
            of_pass = f"/{self._steps_per_epoch}" if self._steps_per_epoch else ""
            line = f"pass {epoch}, batch {batch}{of_pass}, lr {lr:.6g}, {shown}"
            if self._total is not None:
                seconds = max(0, self._total - step) * elapsed / self._steps
                line += f", ETA {timedelta(seconds=round(seconds))}"
            logger.info(line)
        self._reset_window()

    def close(self) -> None:
        """Writes what is left and ends the bar."""
        self.flush()
        if self._bar is not None:
            self._bar.close()


def log_test(results: dict[str, dict[str, float]]) -> None:
    """One line for each verification set."""
    for name, values in results.items():
        logger.info(
            "test %s: accuracy %.4f +- %.4f, TAR@FAR=1e-3 %.4f, XNorm %.3f",
            name,
            values["accuracy"],
            values["std"],
            values["tar@1e-3"],
            values["xnorm"],
        )
