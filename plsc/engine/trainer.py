"""Training, top to bottom: set up, loop, test, save, finish."""

from __future__ import annotations

import contextlib
import itertools
import math
import platform
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import paddle

from plsc import amp, checkpoint, optim, parallel
from plsc.config import Config
from plsc.data.loader import ImageLoader, ReaderLoader
from plsc.data.sources import read_label_file
from plsc.engine.callbacks import MetricsFile, ProgressLog, log_test, logger
from plsc.engine.evaluator import Evaluator
from plsc.errors import ConfigError, DataError, TrainingError
from plsc.heads import GatheredLabels, HeadOutput, build_head
from plsc.models import build_model
from plsc.models.base_model import BaseModel
from plsc.version import __version__

Batch = tuple[np.ndarray, np.ndarray]


class Trainer:
    """One run of training for a checked `Config`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.save_dir = Path(config.model_save_dir) if config.model_save_dir else None
        self.saved: list[Path] = []  # this run's checkpoints, oldest first
        self.skipped, self.skipped_in_a_row = 0, 0
        parallel.initialise()
        self.loader = build_loader(config)
        # The test data is read before training, so that a mistake in it is not found after an epoch.
        self.evaluator = build_evaluator(config) if config.with_test else None

        seed_everything(config.seed)
        self.backbone = build_backbone(config)
        self.head = build_head(
            config.loss_type,
            config.num_classes,
            config.emb_dim,
            config.margin_object or config.margin_of_loss(),
            scale=config.scale,
            sample_ratio=config.sample_ratio,
            seed=config.seed,
            param_attr=config.param_attr,
            bias_attr=config.bias_attr,
            chunk=config.head_chunk,
            compute_dtype=config.mixed_precision.dtype if config.mixed_precision.use_fp16 else "float32",
            simulate=config.mixed_precision.simulate,
        )
        if config.checkpoint_dir:
            checkpoint.load_backbone(Path(config.checkpoint_dir), self.backbone)
            checkpoint.load_head(Path(config.checkpoint_dir), self.head)
        # Users' models may hold layers they do not use; Paddle must be told, or the other ranks would wait for them.
        self.model = parallel.distributed_model(self.backbone, find_unused_parameters=config.model is not None)
        seed_everything(config.seed + parallel.rank())  # dropout differs between ranks

        self.backbone_parameters = [p for p in self.backbone.parameters() if not p.stop_gradient]
        self.head_parameters = [p for p in self.head.parameters() if not p.stop_gradient]
        batches = self.loader.steps_per_epoch
        self.steps_per_epoch = -(-batches // config.gradient_accumulation) if batches else None
        self.optimizer = optim.build_optimizer(
            config, self.backbone_parameters + self.head_parameters, self.steps_per_epoch or 0
        )
        self.clip_norm = optim.clip_norm_of(config, self.optimizer)
        self.scaler = amp.DynamicLossScaler(config.mixed_precision)
        # Momentum and SGD move the head's rows while their gradient is in cache; no other optimizer sees them then.
        trained = {name: p for name, p in self.head.named_parameters() if not p.stop_gradient}
        self.row_updates = optim.take_rows(self.optimizer, trained)
        self.statistics = [t for t in self.backbone.state_dict().values() if t.stop_gradient and t.is_floating_point()]

    def run(self) -> dict[str, Any]:
        """Trains all epochs; returns what `Entry.train` documents."""
        self.log_header()
        steps_per_epoch = self.steps_per_epoch
        total = steps_per_epoch * self.config.train_epochs if steps_per_epoch else None
        metrics = MetricsFile(self.save_dir)
        progress = ProgressLog(metrics, total, steps_per_epoch, self.config.log_period)
        result: dict[str, Any] = {"steps": 0, "epochs": 0, "skipped_steps": 0, "checkpoint": None, "test": None}
        samples, seconds, scaled = 0, 0.0, self.config.mixed_precision.scales_loss
        try:
            for epoch in range(self.config.train_epochs):
                began, losses = time.perf_counter(), []
                self.model.train()
                for number, micro_batches in enumerate(self.micro_batches(epoch), 1):
                    rate = self.optimizer.get_lr()
                    scale, may_shrink = self.scaler.scale, self.scaler.can_shrink
                    output = self.step(micro_batches)
                    self.scaler.update(output.problem is None)
                    result["steps"] += 1
                    samples += output.samples
                    if output.problem is None:
                        losses.append(output.loss)
                    result["skipped_steps"] = self.count_skipped(
                        result["steps"], output.problem, may_shrink and math.isfinite(output.loss)
                    )
                    progress.step(
                        epoch, result["steps"], number, rate, output, result["skipped_steps"], scale if scaled else None
                    )
                    if self.config.save_period and result["steps"] % self.config.save_period == 0:
                        progress.pause()
                        result["checkpoint"] = self.save(f"step_{result['steps']}", epoch, result["steps"])
                        progress.resume()
                seconds += time.perf_counter() - began
                result.update(epochs=epoch + 1, loss=float(np.mean(losses)) if losses else math.nan)
                if epoch + 1 == self.config.train_epochs:
                    progress.flush()
                progress.pause()
                if self.evaluator is not None:
                    result["test"] = self.evaluator(self.backbone)
                    log_test(result["test"])
                    metrics.write("test", step=result["steps"], epoch=epoch, **result["test"])
                if self.save_dir is not None:
                    result["checkpoint"] = self.save(str(epoch), epoch, result["steps"])
                progress.resume()
        finally:
            progress.close()
            metrics.close()
        result["images_per_second"] = samples / seconds
        return result

    def step(self, micro_batches: Sequence[Batch]) -> HeadOutput:
        """One step: embed, head, backward, verdict, clip, update, schedule.

        When the loss, an embedding or a gradient is not finite, on any rank, every rank leaves everything as it was but the
        schedule and the loss scaling.
        """
        gathered = self.head.gather_labels(*(labels for _, labels in micro_batches))
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
            embedding = self.model(paddle.to_tensor(images), paddle.to_tensor(labels))
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

    def count_skipped(self, step: int, problem: Optional[str], may_shrink: bool) -> int:
        """Skipped steps so far, with this one.

        Raises:
            TrainingError: too many in a row; the same on every rank.
        """
        if problem is None:
            self.skipped_in_a_row = 0
            return self.skipped
        self.skipped += 1
        # A scale that is too large is expected to cost steps until it has shrunk.
        self.skipped_in_a_row = 0 if may_shrink else self.skipped_in_a_row + 1
        logger.warning("step %d skipped, nothing was updated by it: %s", step, problem)
        if self.skipped_in_a_row >= self.config.max_skipped_steps:
            raise TrainingError(
                f"step {step}: {self.skipped_in_a_row} steps in a row could not be used: {problem}. Lower set_lr, add "
                "set_warmup_epochs, or check the images; set_max_skipped_steps allows more"
            )
        return self.skipped

    def micro_batches(self, epoch: int) -> Iterator[list[Batch]]:
        """The batches of each step; the last step of an epoch may have fewer."""
        batches = self.batches(epoch)
        while group := list(itertools.islice(batches, self.config.gradient_accumulation)):
            yield group

    def batches(self, epoch: int) -> Iterator[Batch]:
        """This rank's batches, the same number on every rank: a rank that runs out repeats its first batch."""
        source = self.loader.epoch(epoch)
        if isinstance(self.loader, ImageLoader) or parallel.world_size() == 1:
            yield from source
            return
        first: Optional[Batch] = None
        while True:
            batch = next(source, None)
            if not parallel.any_rank(batch is not None):
                return
            first = first or batch
            if parallel.any_rank(first is None):
                raise DataError("train_reader gives no batch on some rank in this pass; give every rank at least one")
            yield batch or first  # type: ignore[misc]

    def save(self, name: str, epoch: int, step: int) -> str:
        """Writes the checkpoint `name`, and removes this run's oldest beyond `keep_checkpoints`; returns its folder."""
        assert self.save_dir is not None
        parallel.broadcast_statistics(self.backbone)
        names = {p.name: name for name, p in self.backbone.named_parameters()}
        names.update({p.name: f"head.{name}" for name, p in self.head.named_parameters()})
        state = optim.optimizer_state(self.optimizer, names)
        for parameter, update in self.row_updates.items():
            if update.buffer is not None:
                state[f"head.{parameter}"] = {"velocity": update.buffer}
        folder = self.save_dir / name
        checkpoint.save(
            folder,
            self.backbone,
            self.head,
            state,
            {
                "epoch": epoch,
                "step": step,
                "ranks": parallel.world_size(),
                "loss_type": self.config.loss_type,
                "image_shape": list(self.config.image_shape),
                "model": self.config.model_name if self.config.model is None else type(self.config.model).__name__,
                "learning_rate": float(self.optimizer.get_lr()),
                "seed": self.config.seed,
                "loss_scaling": self.scaler.state(),
                "skipped_steps": self.skipped,
                "plsc": __version__,
                "paddle": paddle.__version__,
            },
        )
        logger.info("saved %s", folder)
        self.saved = [*(kept for kept in self.saved if kept != folder), folder]
        keep = self.config.keep_checkpoints
        while keep and len(self.saved) > keep:
            checkpoint.remove(self.saved.pop(0))
        return str(folder)

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


def build_loader(config: Config) -> Union[ImageLoader, ReaderLoader]:
    """The user's reader, or the images and label.txt of the data set."""
    if config.train_reader is not None:
        return ReaderLoader(
            config.train_reader,
            config.image_shape,
            config.num_classes,
            config.train_image_num,
            config.train_batch_size,
            parallel.world_size(),
        )
    return ImageLoader(
        read_label_file(config.dataset_dir, config.num_classes),
        config.image_shape,
        config.train_batch_size,
        config.augmentation,
        config.seed,
        config.num_workers,
        parallel.rank(),
        parallel.world_size(),
    )


def build_evaluator(config: Config) -> Evaluator:
    """The verification sets named by `val_targets`."""
    return Evaluator(
        config.dataset_dir,
        config.val_targets,
        config.image_shape,
        config.test_batch_size,
        flip=config.augmentation.mirror,
        pairs_dir=Path(config.model_save_dir) if config.model_save_dir else None,
    )


def build_backbone(config: Config) -> BaseModel:
    """The user's model or the named one, with all its layers made and its embedding size checked."""
    model = config.model or build_model(config.model_name, config.emb_dim, config.image_shape)
    emb_dim = model.build(config.image_shape)
    if emb_dim != config.emb_dim:
        raise ConfigError(
            f"set_emb_size({config.emb_dim}), but {type(model).__name__}.build_network returns embeddings of {emb_dim}; make them agree"
        )
    return model


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and Paddle's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    paddle.seed(seed)
