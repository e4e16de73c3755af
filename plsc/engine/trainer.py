"""Training, top to bottom: set up, loop, test, save, finish."""

from __future__ import annotations

import contextlib
import math
import platform
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import paddle

from plsc import amp, checkpoint, optim, parallel
from plsc.config import Config
from plsc.engine.build import build_backbone, build_classifier, build_evaluator, build_loader
from plsc.engine.callbacks import Callback, CheckpointSaver, Clock, Step
from plsc.engine.download import fetch_checkpoint, fetch_newest, open_store
from plsc.engine.feed import Batch, steps_of
from plsc.engine.forecast import Forecast, backbone_size, forecast
from plsc.engine.log import MetricsFile, ProgressLog, logger
from plsc.engine.progress import Progress
from plsc.engine.resume import hold_save_dir, resume, warm_start
from plsc.engine.run_record import write_run_record
from plsc.engine.scalars import ScalarFiles
from plsc.engine.state import TrainingState
from plsc.engine.upload import Uploader
from plsc.errors import TrainingError
from plsc.heads import GatheredLabels, HeadOutput
from plsc.heads.workers import walking_threads
from plsc.inference.networks import TrainedNetwork
from plsc.machine import random_state
from plsc.machine.memory import resident_memory
from plsc.machine.signals import StopRequest
from plsc.models.base_model import inputs_of
from plsc.version import __version__

_SECONDS_TO_UPLOAD = 40.0  # after SIGTERM; clusters grant a minute or less
_WRITTEN, _SIGTERM, _STOP = 1, 2, 4  # what a rank tells the others with its labels


class Trainer:
    """One run of training for a checked `Config`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.save_dir = Path(config.model_save_dir) if config.model_save_dir else None
        self.writer: Optional[checkpoint.Writer] = None
        self.metrics: Optional[MetricsFile] = None
        self.callbacks: list[Callback] = [ProgressLog(), *config.callbacks, CheckpointSaver()]
        if config.scalars is not None:
            kind, directory = config.scalars.kind, config.scalars.directory
            self.callbacks.append(ScalarFiles(kind, Path(directory or Path(config.model_save_dir, "scalars"))))
        self.uploader: Optional[Uploader] = None
        self.clock = Clock()
        self.last: Optional[Step] = None
        self.sigterm = StopRequest()
        self.stop_reason: Optional[str] = None
        self.process_bytes = resident_memory()
        stop_transfers = threading.Event()
        self.store = open_store(config, stop_transfers)
        if self.store is not None and config.hdfs is not None and config.hdfs.fs_dir_for_save is not None:
            place, when = config.hdfs.fs_dir_for_save, config.hdfs_upload.when
            self.uploader = Uploader(self.store, place, when, stop_transfers)
            self.callbacks.append(self.uploader)
        fetch_checkpoint(config, self.store)
        self.loader = build_loader(config)
        # The test data is read before training, so that a mistake in it is not found after an epoch.
        self.evaluator = build_evaluator(config) if config.with_test else None

        random_state.seed_everything(config.seed)
        self.backbone = build_backbone(config)
        self.head = build_classifier(config)
        warm_start(config, self.backbone, self.head)
        # Users' models may hold layers they do not use; Paddle must be told, or the other ranks would wait for them.
        self.model = parallel.distributed_model(self.backbone, find_unused_parameters=config.model is not None)
        random_state.seed_everything(config.seed + parallel.rank())

        self.backbone_parameters = [p for p in self.backbone.parameters() if not p.stop_gradient]
        self.head_parameters = [p for p in self.head.parameters() if not p.stop_gradient]
        batches = max(parallel.all_gather_object(self.loader.steps_per_epoch or 0))
        self.steps_per_epoch = -(-batches // config.gradient_accumulation) if batches else None
        self.optimizer = optim.build_optimizer(
            config, self.backbone_parameters + self.head_parameters, self.steps_per_epoch or 0
        )
        self.clip_norm = optim.clip_norm_of(config, self.optimizer)
        self.scaler = amp.DynamicLossScaler(config.mixed_precision)
        # Momentum and SGD move the head's rows while their gradient is in cache; no other optimizer sees them then.
        trained = {name: p for name, p in self.head.named_parameters() if not p.stop_gradient}
        self.row_updates = optim.take_rows(self.optimizer, trained)
        self.state = TrainingState(
            config,
            self.backbone,
            self.head,
            self.optimizer,
            self.row_updates,
            self.scaler,
            self.steps_per_epoch,
            self.callbacks,
        )
        self.statistics = [t for t in self.backbone.state_dict().values() if t.stop_gradient and t.is_floating_point()]

    @property
    def progress(self) -> Progress:
        """Epochs and steps done."""
        return self.state.progress

    @property
    def checkpoints(self) -> list[Path]:
        """The complete checkpoints of this run that are kept, oldest first."""
        return [one.folder for one in self.writer.saved] if self.writer else []

    def record(self, event: str, **values: Any) -> None:
        """Adds one line to metrics.jsonl, and tells the callbacks; values that are None are left out."""
        values = {name: value for name, value in values.items() if value is not None}
        if self.metrics is not None:
            self.metrics.write(event, values)
        self.call("on_record", event, values)

    def stop(self, reason: str) -> None:
        """Ends training in order, on every rank, at the end of this epoch or after the next step."""
        self.stop_reason = self.stop_reason or reason

    def run(self) -> dict[str, Any]:
        """Trains all epochs; returns what `Entry.train` documents."""
        with contextlib.ExitStack() as stack:
            self.log_header()
            resumed = False
            if self.save_dir is not None:
                leads = hold_save_dir(stack, self.save_dir)
                fetch_newest(self.config, self.store, self.save_dir)
                self.writer, resumed = resume(self.state, self.save_dir, leads)
                self.writer.on_saved = self.saved
                stack.callback(self.writer.close)
            stack.enter_context(self.sigterm)
            self.metrics = MetricsFile(self.save_dir, self.progress.metrics_size if resumed else None)
            stack.callback(self.metrics.close)
            write_run_record(self.save_dir, self.config, self.state.run, resumed, self.steps_per_epoch)
            for callback in self.callbacks:
                stack.callback(callback.close)
            return self.train()

    def train(self) -> dict[str, Any]:
        """The loop over the epochs."""
        config, progress, samples, stopped = self.config, self.progress, 0, None
        if progress.epoch >= config.train_epochs:
            logger.info("all %d epochs are done; raise set_train_epochs to train on", config.train_epochs)
        self.clock = Clock()
        self.call("on_train_begin")
        while progress.epoch < config.train_epochs and stopped is None:
            trained, stopped = self.train_epoch()
            samples += trained
        with self.clock.paused():
            if self.writer is not None:
                self.writer.finish()
            self.call("on_train_end")
        return {
            "steps": progress.step,
            "epochs": progress.epoch,
            "loss": math.nan if progress.loss is None else progress.loss,
            "images_per_second": samples / self.clock.seconds,
            "skipped_steps": progress.skipped,
            "checkpoint": str(self.checkpoints[-1]) if self.checkpoints else None,
            "test": progress.test,
            "stopped": stopped,
        }

    def train_epoch(self) -> tuple[int, Optional[str]]:
        """What is left of the current epoch, its test and its end; returns the samples, and why training is to stop now."""
        progress, samples = self.progress, 0
        self.model.train()
        self.state.begin_epoch()
        self.call("on_epoch_begin")
        for micro_batches in steps_of(self.loader, progress.epoch, progress.batch, self.config.gradient_accumulation):
            notes = self.train_step(micro_batches)
            samples += self.last.samples if self.last else 0
            if any(note & _STOP for note in notes):
                self.save(f"step_{progress.step}")
                return samples, self.agreed_reason()
        if parallel.any_rank(self.sigterm.requested):
            self.end_early()
        with self.clock.paused():
            if self.evaluator is not None:
                progress.test = self.evaluator(TrainedNetwork(self.backbone, self.config))
                self.call("on_test", progress.test)
            progress.end_epoch()
            self.call("on_epoch_end")
            return samples, self.agreed_reason()

    def train_step(self, micro_batches: Sequence[Batch]) -> Sequence[int]:
        """One step, and what is known of it in `last`; returns what the ranks noted before it."""
        progress, scaler = self.progress, self.scaler
        rate, scale, may_shrink = self.optimizer.get_lr(), scaler.scale, scaler.can_shrink
        random_state.seed_step(self.config.seed, progress.step, parallel.rank())
        note = _WRITTEN * bool(self.writer and self.writer.written)
        note += _SIGTERM * self.sigterm.requested + _STOP * bool(self.stop_reason)
        gathered = self.head.gather_labels(*(labels for _, labels in micro_batches), note=note)
        output = self.step(micro_batches, gathered)
        scaler.update(output.problem is None)
        progress.step, progress.batch = progress.step + 1, progress.batch + 1
        if output.problem is None:
            progress.loss_sum, progress.used_steps = progress.loss_sum + output.loss, progress.used_steps + 1
        self.count_skipped(output.problem, may_shrink and math.isfinite(output.loss))
        shown_scale = scale if self.config.mixed_precision.scales_loss else None
        self.last = Step(output.loss, rate, shown_scale, output.samples, output.correct, output.problem)
        self.call("on_step_end")
        # All ranks have all notes of this step, so they agree.
        if self.writer is not None and all(note & _WRITTEN for note in gathered.notes):
            with self.clock.paused():
                self.writer.finish()
        if any(note & _SIGTERM for note in gathered.notes):
            self.end_early()
        return gathered.notes

    def call(self, hook: str, *values: Any) -> None:
        """Calls one hook of every callback."""
        for callback in self.callbacks:
            getattr(callback, hook)(self, *values)

    def saved(self, folder: Path) -> None:
        """Tells the callbacks that a checkpoint is in its place."""
        self.call("on_save", folder)

    def agreed_reason(self) -> Optional[str]:
        """Why training is to stop, the same on every rank; None when it is not."""
        return next(filter(None, parallel.all_gather_object(self.stop_reason)), None)

    def end_early(self) -> None:
        """Saves and ends the program, as SIGTERM asked on some rank.

        Raises:
            SystemExit: with the status of a process that SIGTERM ended.
        """
        step = self.progress.step
        saved = "nothing was saved, as set_model_save_dir is empty"
        if self.writer is not None:
            name = f"step_{step}"
            self.save(name)
            self.writer.finish()
            saved = f"saved {self.writer.save_dir / name}; set_resume(True) goes on from there"
            if self.uploader is not None:
                self.uploader.hurry(self, _SECONDS_TO_UPLOAD)
        logger.warning("stopped by SIGTERM after step %d: %s", step, saved)
        raise SystemExit(128 + signal.SIGTERM)

    def step(self, micro_batches: Sequence[Batch], gathered: GatheredLabels) -> HeadOutput:
        """One step: embed, head, backward, verdict, clip, update, schedule.

        When the loss, an embedding or a gradient is not finite, on any rank, every rank leaves everything as it was but the
        schedule and the loss scaling.
        """
        statistics = [tensor.clone() for tensor in self.statistics]
        outputs = []
        for part, (images, labels) in enumerate(micro_batches):
            is_last = part + 1 == len(micro_batches)
            with contextlib.nullcontext() if is_last else parallel.without_gradient_sync(self.model):
                outputs.append(self.micro_step(part, images, labels, gathered))
            if outputs[-1].problem is not None:
                break
        output = total_output(outputs)
        if output.problem is None:
            optim.scale_gradients(self.backbone_parameters, 1.0 / self.scaler.scale)
            output.problem = self.bad_gradient([images for images, _ in micro_batches])
        if output.problem is None:
            self.update()
        else:
            for tensor, kept in zip(self.statistics, statistics):
                paddle.assign(kept, tensor)
        optim.clear_grad(self.optimizer)
        optim.step_schedule(self.optimizer)
        return output

    def micro_step(self, part: int, images: np.ndarray, labels: np.ndarray, gathered: GatheredLabels) -> HeadOutput:
        """Adds the gradients of one micro-batch to the backbone's."""
        with amp.autocast(self.config.mixed_precision):
            embedding = self.model(*inputs_of(self.backbone, paddle.to_tensor(images), paddle.to_tensor(labels)))
        embedding = embedding.astype("float32")
        output = self.head(embedding.detach(), gathered, self.config.calc_acc, part)
        if output.problem is None and not embedding.stop_gradient:
            # The ranks' gradients are averaged; the head's are of the global mean, so they must add up.
            embedding.backward(output.embedding_grad * (parallel.world_size() * self.scaler.scale))
        return output

    def update(self) -> None:
        """Moves the head and the backbone by gradients that are known to be good."""
        factor = 1.0
        if self.clip_norm is not None and self.row_updates:
            square_sum = self.head.gradient_square_sum() + optim.square_sum(self.backbone_parameters)
            factor = optim.clip_factor(self.clip_norm, square_sum)
        self.head.backward(self.row_updates.get("weight"), self.row_updates.get("bias"), factor)
        if self.clip_norm is not None and not self.row_updates:
            own = optim.square_sum(self.head_parameters)
            head_sum = parallel.sum_number(own) if self.head.sharded else own
            factor = optim.clip_factor(self.clip_norm, head_sum + optim.square_sum(self.backbone_parameters))
            optim.scale_gradients(self.head_parameters, factor)
        optim.scale_gradients(self.backbone_parameters, factor)
        optim.step(self.optimizer)

    def bad_gradient(self, images: Sequence[np.ndarray]) -> Optional[str]:
        """What is wrong with the backbone's gradients, which are the same on every rank; None when nothing is."""
        bad = optim.first_not_finite(self.backbone.named_parameters())
        if bad is None:
            return None
        own = "" if all(np.isfinite(one).all() for one in images) else "its images are not finite"
        found = [f"rank {rank}: {text}" for rank, text in enumerate(parallel.all_gather_object(own)) if text]
        return "; ".join([*found, f"the gradient of the backbone's {bad} is not finite"])

    def count_skipped(self, problem: Optional[str], may_shrink: bool) -> None:
        """Counts the last step, if it was skipped.

        Raises:
            TrainingError: too many in a row; the same on every rank.
        """
        progress = self.progress
        if problem is None:
            progress.skipped_in_a_row = 0
            return
        progress.skipped += 1
        # A scale that is too large is expected to cost steps until it has shrunk.
        progress.skipped_in_a_row = 0 if may_shrink else progress.skipped_in_a_row + 1
        logger.warning("step %d skipped, nothing was updated by it: %s", progress.step, problem)
        if progress.skipped_in_a_row >= self.config.max_skipped_steps:
            raise TrainingError(
                f"step {progress.step}: {progress.skipped_in_a_row} steps in a row could not be used: {problem}. Lower "
                "set_lr, add set_warmup_epochs, or check the images; set_max_skipped_steps allows more"
            )

    def save(self, name: str) -> None:
        """Begins the checkpoint `name`, which is written while training goes on; nothing when none are saved."""
        if self.writer is None:
            return
        with self.clock.paused():
            parallel.broadcast_statistics(self.backbone)
            self.progress.metrics_size = self.metrics.size if self.metrics else 0
            self.writer.start(name, self.state.files(self.writer.leads), self.state.meta(), self.state.rank_rng())

    def log_header(self) -> None:
        """What is about to be trained, on what."""
        config, ranks = self.config, parallel.world_size()
        parameters = sum(int(np.prod(p.shape)) for p in self.backbone_parameters)
        model = config.model_name if config.model is None else type(config.model).__name__
        rows = self.head.upper - self.head.lower
        logger.info("plsc %s, paddle %s, python %s", __version__, paddle.__version__, platform.python_version())
        logger.info("device %s, %d rank%s", paddle.get_device(), ranks, "" if ranks == 1 else "s")
        logger.info("model %s, %s parameters, embedding %d", model, f"{parameters:,}", config.emb_dim)
        sampled = "" if config.sample_ratio >= 1 else f", {config.sample_ratio:g} of them in a step"
        logger.info(
            "head %s, %s classes, %s on this rank%s; %s by %s",
            config.loss_type,
            f"{config.num_classes:,}",
            f"{rows:,}",
            sampled,
            "rows moved in chunks" if self.row_updates else "whole gradient, moved",
            type(self.optimizer).__name__,
        )
        logger.info("precision %s", amp.describe(config.mixed_precision))
        logger.info(
            "data %s, %s images, batch %d per rank%s (%d in all), %s steps per epoch, %d epochs",
            config.dataset_dir if config.train_reader is None else "train_reader",
            f"{self.loader.num_images:,}" if self.loader.num_images else "unknown number of",
            config.train_batch_size,
            f" x {config.gradient_accumulation} accumulated" if config.gradient_accumulation > 1 else "",
            config.batch_per_rank * ranks,
            self.steps_per_epoch or "unknown",
            config.train_epochs,
        )
        if parallel.rank() == 0:  # the only one that shows it; it takes two forward passes
            for line in self.forecast().lines():
                logger.info(line)

    def forecast(self) -> Forecast:
        """What this rank will need."""
        config = self.config
        return forecast(
            config.num_classes,
            config.emb_dim,
            parallel.world_size(),
            config.train_batch_size,
            backbone_size(self.backbone, config.image_shape),
            config.image_shape,
            self.head.sharded,
            self.head.bias is not None,
            config.sample_ratio,
            type(self.optimizer).__name__,
            config.gradient_accumulation,
            config.num_workers,
            walking_threads(),
            config.head_chunk,
            config.background_save and self.save_dir is not None,
            self.process_bytes,
            parallel.on_cpu(),
        )


def total_output(outputs: Sequence[HeadOutput]) -> HeadOutput:
    """What a step gave, from its micro-batches."""
    last = outputs[-1]
    correct = None if last.correct is None else tuple(map(sum, zip(*(one.correct for one in outputs if one.correct))))
    return HeadOutput(
        loss=sum(one.loss for one in outputs),
        embedding_grad=last.embedding_grad,
        correct=correct,  # type: ignore[arg-type]
        samples=sum(one.samples for one in outputs),
        problem=last.problem,
    )
