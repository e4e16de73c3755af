"""What a run shows and records: header, progress, metrics.jsonl. Rank 0 speaks for all."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm

from plsc import parallel
from plsc.errors import ConfigError
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
    """`<model_save_dir>/metrics.jsonl`, one flushed object a line, written by rank 0; nothing without a folder."""

    def __init__(self, save_dir: Optional[Path]) -> None:
        self._stream = None
        if save_dir is not None and parallel.rank() == 0:
            try:
                save_dir.mkdir(parents=True, exist_ok=True)
                self._stream = open(save_dir / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
            except OSError as problem:
                raise ConfigError(
                    f"set_model_save_dir('{save_dir}'): cannot write there ({problem.strerror}); choose another folder"
                ) from None

    def write(self, event: str, **values: Any) -> None:
        """Appends one record; values that are None are left out."""
        if self._stream is not None:
            record = {"event": event, **{key: value for key, value in values.items() if value is not None}}
            self._stream.write(json.dumps(record) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._stream is not None:
            self._stream.close()


class ProgressLog:
    """Loss, speed, ETA and accuracy: a bar on a terminal, plain lines elsewhere, and `metrics.jsonl` always.

    Args:
        total_steps: of the whole run, for the ETA; None when a reader cannot tell.
        steps_per_epoch: the same for one pass.
        log_period: steps between two records.
    """

    def __init__(
        self, metrics: MetricsFile, total_steps: Optional[int], steps_per_epoch: Optional[int], log_period: int
    ) -> None:
        self._metrics = metrics
        self._total, self._steps_per_epoch, self._period = total_steps, steps_per_epoch, log_period
        self._bar: Optional[tqdm] = None
        if parallel.rank() == 0 and sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, unit="step", dynamic_ncols=True)
        self._reset_window()

    def _reset_window(self) -> None:
        self._began = time.perf_counter()
        self._steps, self._samples = 0, 0
        # Without the skipped ones:
        self._loss_sum, self._used_steps, self._used_samples, self._top1, self._top5 = 0.0, 0, 0, 0, 0

    def pause(self) -> None:
        """Leaves tests and saves, which are not training, out of images/s: call before; `resume` after."""
        self._paused_at = time.perf_counter()

    def resume(self) -> None:
        """Ends `pause`."""
        self._began += time.perf_counter() - self._paused_at

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
            self._loss_sum += output.loss
            self._used_steps += 1
            self._used_samples += output.samples
            if output.correct is not None:
                self._top1, self._top5 = self._top1 + output.correct[0], self._top5 + output.correct[1]
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
        loss = self._loss_sum / self._used_steps if self._used_steps else None
        with_accuracy = with_accuracy and self._used_samples > 0
        acc1 = self._top1 / self._used_samples if with_accuracy else None
        acc5 = self._top5 / self._used_samples if with_accuracy else None
        self._metrics.write(
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
