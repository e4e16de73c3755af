"""What a run shows and records: progress on the screen, metrics.jsonl. Rank 0 speaks for all."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm

from plsc import parallel
from plsc.engine.callbacks import Callback, Run
from plsc.errors import ConfigError, TrainingError
from plsc.metrics.identification import FPIRS
from plsc.metrics.records import finite
from plsc.metrics.roc import LEAST_ACCEPTS, can_tell

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

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Appends one record."""
        if self._stream is not None:
            try:
                self._stream.write(json.dumps({"event": event, **finite(values)}, allow_nan=False) + "\n")
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


class ProgressLog(Callback):
    """Loss, speed, ETA, accuracy and tests: a bar on a terminal, plain lines elsewhere, and `metrics.jsonl` always."""

    def __init__(self) -> None:
        self._bar: Optional[tqdm] = None
        # Of the steps since the last record that were not skipped:
        self._sums: dict[str, float] = {"loss": 0.0, "steps": 0, "samples": 0, "top1": 0, "top5": 0}
        self._steps, self._samples, self._began = 0, 0, 0.0
        self._epoch, self._batch = 0, 0  # of the last step

    def state(self) -> dict[str, float]:
        """What is not recorded yet."""
        return self._sums

    def load_state(self, state: dict[str, float]) -> None:
        """Takes back what was not recorded."""
        self._sums = {name: state[name] for name in self._sums}

    def on_train_begin(self, run: Run) -> None:
        """Shows the bar."""
        if parallel.rank() == 0 and sys.stderr.isatty():
            total = _total_steps(run)
            self._bar = tqdm(total=total, initial=run.progress.step, unit="step", dynamic_ncols=True)
        self._began = run.clock.seconds

    def on_step_end(self, run: Run) -> None:
        """Takes in one step; shows and records every `log_period` steps."""
        assert run.last is not None
        self._epoch, self._batch = run.progress.epoch, run.progress.batch
        self._steps += 1
        self._samples += run.last.samples
        if run.last.problem is None:
            top1, top5 = run.last.correct or (0, 0)
            for name, value in zip(self._sums, (run.last.loss, 1, run.last.samples, top1, top5)):
                self._sums[name] += value
        if self._bar is not None:
            self._bar.update()
        if run.progress.step % run.config.log_period == 0:
            self._flush(run)

    def on_test(self, run: Run, results: Mapping[str, Mapping[str, float]]) -> None:
        """Shows and records a test."""
        if run.progress.epoch + 1 == run.config.train_epochs:
            self._flush(run)
        log_test(results)
        run.record("test", step=run.progress.step, epoch=run.progress.epoch, time=_now(), **results)

    def on_epoch_end(self, run: Run) -> None:
        """Shows and records the last steps of the run."""
        if run.progress.epoch == run.config.train_epochs:
            self._flush(run)

    def on_train_end(self, run: Run) -> None:
        """Shows and records the last steps of a run that was ended early."""
        self._flush(run)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _flush(self, run: Run) -> None:
        """Shows and records the steps since the last record, if there are any."""
        if self._steps == 0 or run.last is None:
            return
        progress, last, sums = run.progress, run.last, self._sums
        elapsed = max(run.clock.seconds - self._began, 1e-9)
        speed = self._samples / elapsed
        loss = sums["loss"] / sums["steps"] if sums["steps"] else None
        with_accuracy = last.correct is not None and sums["samples"] > 0
        acc1 = sums["top1"] / sums["samples"] if with_accuracy else None
        acc5 = sums["top5"] / sums["samples"] if with_accuracy else None
        run.record(
            "train",
            step=progress.step,
            epoch=self._epoch,
            time=_now(),
            lr=last.lr,
            loss=loss,
            images_per_second=speed,
            loss_scaling=last.scale,
            skipped_steps=progress.skipped,
            acc1=acc1,
            acc5=acc5,
        )
        shown = "loss -" if loss is None else f"loss {loss:.4f}"
        shown += f", acc1 {acc1:.4f}, acc5 {acc5:.4f}" if with_accuracy else ""
        shown += f", scale {last.scale:g}" if last.scale is not None else ""
        shown += f", {progress.skipped} skipped" if progress.skipped else ""
        shown += f", {speed:.1f} images/s"
        if self._bar is not None:
            self._bar.set_description_str(f"pass {self._epoch}")
            self._bar.set_postfix_str(f"lr {last.lr:.4g}, {shown}")
        else:
            of_pass = f"/{run.steps_per_epoch}" if run.steps_per_epoch else ""
            line = f"pass {self._epoch}, batch {self._batch}{of_pass}, lr {last.lr:.6g}, {shown}"
            total = _total_steps(run)
            if total is not None:
                seconds = max(0, total - progress.step) * elapsed / self._steps
                line += f", ETA {timedelta(seconds=round(seconds))}"
            logger.info(line)
        self._sums = dict.fromkeys(self._sums, 0)
        self._steps, self._samples, self._began = 0, 0, run.clock.seconds


def _now() -> float:
    """Seconds since 1970."""
    return round(time.time(), 3)


def _total_steps(run: Run) -> Optional[int]:
    return run.steps_per_epoch * run.config.train_epochs if run.steps_per_epoch else None


def log_test(results: Mapping[str, Mapping[str, Any]], fars: Sequence[float] = ()) -> None:
    """One line for each set; with the rates that were asked for also what is accepted at each."""
    for name, values in results.items():
        if "accuracy" not in values:
            _log_identification(name, values, bool(fars))
            continue
        logger.info(
            "test %s: accuracy %.4f +- %.4f, TAR@FAR=1e-3 %.4f, XNorm %.3f",
            name,
            values["accuracy"],
            values["std"],
            values["tar@1e-3"],
            values["xnorm"],
        )
        if not fars:
            continue
        logger.info("test %s: AUC %.5f, EER %.4f at %.3f", name, values["auc"], values["eer"], values["eer_threshold"])
        _log_rates(name, "TAR@FAR", values["at_far"])
        if not can_tell(values["different_pairs"], min(fars)):
            logger.info(
                "test %s: %s different pairs; a FAR takes %d / FAR of them to be told",
                name,
                f"{values['different_pairs']:,}",
                LEAST_ACCEPTS,
            )


def _log_identification(name: str, values: Mapping[str, Any], with_rates: bool) -> None:
    ranks = ", ".join(f"{key} {share:.4f}" for key, share in values.items() if key.startswith("rank@"))
    counts = tuple(f"{values[key]:,}" for key in ("mated", "probes", "gallery"))
    logger.info("test %s: %s over the %s of %s probes that are in the gallery of %s", name, ranks, *counts)
    if not with_rates:
        return
    _log_rates(name, "TPIR@FPIR", values["at_fpir"])
    strangers = values["probes"] - values["mated"]
    if not can_tell(strangers, min(FPIRS)):
        text = "test %s: %s strangers among the probes; an FPIR takes %d / FPIR of them to be told"
        logger.info(text, name, f"{strangers:,}", LEAST_ACCEPTS)


def _log_rates(name: str, what: str, rates: Mapping[str, Mapping[str, float]]) -> None:
    for rate, found in rates.items():
        bounds = f"[{found['low']:.4f}, {found['high']:.4f}]"
        logger.info("test %s: %s=%s %.4f %s from %.3f on", name, what, rate, found["tar"], bounds, found["threshold"])
