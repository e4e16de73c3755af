"""The header of a training log: versions, device, model, head, data, and a forecast of the memory."""

from __future__ import annotations

import logging
import platform
from typing import Optional

import numpy as np
import paddle

from plsc import amp, optim, parallel
from plsc.config import Config, Trainable
from plsc.engine.forecast import OptimizerSize, backbone_size, forecast, workload_of
from plsc.engine.state import TrainingState
from plsc.errors import counted
from plsc.version import __version__

logger = logging.getLogger("plsc")


def log_header(state: TrainingState, num_images: Optional[int], process_bytes: int) -> None:
    """Logs what is about to be trained, and on what.

    Args:
        state: The training, before its first step.
        num_images: Images of an epoch, over all ranks; None when a reader cannot tell.
        process_bytes: Memory of the process before the training was set up.
    """
    config, ranks = state.config, parallel.world_size()
    logger.info("plsc %s, paddle %s, python %s", __version__, paddle.__version__, platform.python_version())
    logger.info("device %s, %s", paddle.get_device(), counted(ranks, "rank"))
    logger.info("%s", _model_line(state))
    logger.info("%s", _head_line(state))
    logger.info("precision %s", amp.describe(config.mixed_precision))
    logger.info("%s", _data_line(state, num_images))
    if config.optimizer is None and num_images and num_images < config.batch_per_rank * ranks:
        logger.warning(
            "a step asks for %d images and the data set has %d, so each step has fewer; the learning rate is scaled by "
            "%d / 1024 all the same: lower set_train_batch_size, or set_lr",
            config.batch_per_rank * ranks,
            num_images,
            config.batch_per_rank * ranks,
        )
    last = config.trainable.stages[-1][0]
    if last >= config.train_epochs:
        logger.warning(
            "set_trainable: epoch %d, which unfreezes something, never comes: epochs count from 0, and "
            "set_train_epochs asks for %d",
            last,
            config.train_epochs,
        )
    has_weights = config.checkpoint_dir or config.pretrained is not None or config.model is not None
    if not has_weights and not config.resume and not any(parts for _, parts in config.trainable.stages):
        logger.warning(
            "set_trainable('head') leaves the network at its random weights; name a trained one with "
            "set_checkpoint_dir or set_pretrained"
        )
    if config.optimizer is not None and config.schedule != Config().schedule:
        logger.warning(
            "set_schedule(%r) changes nothing, because the optimizer of set_optimizer has its own learning rate and "
            "schedule; give the optimizer a schedule of Paddle, or leave one of the calls out",
            config.schedule.name,
        )
    if parallel.rank() == 0:  # only rank 0 shows it, and it costs two forward passes
        for line in _forecast_lines(state, process_bytes):
            logger.info("%s", line)


def _forecast_lines(state: TrainingState, process_bytes: int) -> list[str]:
    """Returns the forecast; whatever keeps it from being made does not keep the training from running."""
    name, copies = type(state.optimizer).__name__, optim.copies_of_state(state.optimizer)
    try:
        size = backbone_size(state.backbone, state.config.image_shape, state.config.recompute)
    except Exception as problem:  # noqa: BLE001 - the model is the user's, and may raise anything
        return [f"memory per rank unknown: a forward pass in evaluation mode raised {type(problem).__name__}"]
    workload = workload_of(
        state.config,
        size,
        optimizer=OptimizerSize(name, copies, bool(state.row_updates)),
        ranks=parallel.world_size(),
        process=process_bytes,
        on_cpu=parallel.on_cpu(),
    )
    return forecast(workload).lines()


def _model_line(state: TrainingState) -> str:
    config = state.config
    model = config.model_name if config.model is None else type(config.model).__name__
    parameters = sum(int(np.prod(p.shape)) for p in state.backbone.parameters() if not p.stop_gradient)
    trained = counted(parameters, "trained parameter")
    chosen = "" if config.trainable == Trainable() else f" (set_trainable: {config.trainable.text})"
    average = f", average of its weights with decay {config.ema:g}" if config.ema else ""
    return f"model {model}, {trained}{chosen}, embedding size {config.emb_dim}{average}"


def _head_line(state: TrainingState) -> str:
    config, heads = state.config, [part.head for part in state.head.parts]
    rows = sum(head.upper - head.lower for head in heads)
    separate = f" in {len(heads)} heads" if len(heads) > 1 else ""
    sampled = "" if config.sample_ratio >= 1 else f", {config.sample_ratio:g} of them in each step"
    moved = "updates its rows in chunks" if state.row_updates else "updates it from its whole gradient"
    sampled += "" if config.head_dtype == "float32" else f", kept in {config.head_dtype}"
    return (
        f"head {config.loss_type}, {counted(config.num_classes, 'class')}{separate}, {rows:,} on this rank{sampled}; "
        f"{type(state.optimizer).__name__} {moved}"
    )


def _data_line(state: TrainingState, num_images: Optional[int]) -> str:
    config = state.config
    source = ", ".join(config.data_sets) if config.train_reader is None else "train_reader"
    images = counted(num_images, "image") if num_images else "an unknown number of images"
    steps = "unknown steps" if not state.steps_per_epoch else counted(state.steps_per_epoch, "step")
    times = f" x {config.gradient_accumulation} accumulated" if config.gradient_accumulation > 1 else ""
    return (
        f"data {source}, {images}, batch {config.train_batch_size} per rank{times} "
        f"({config.batch_per_rank * parallel.world_size()} in all), {steps} per epoch, "
        f"{counted(config.train_epochs, 'epoch')}"
    )
