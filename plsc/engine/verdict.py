"""The verdict on a step: what came out of it, and whether its gradients may be used."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Optional

import numpy as np
import paddle

from plsc import optim, parallel
from plsc.engine.callbacks import Step
from plsc.engine.progress import Progress
from plsc.errors import TrainingError
from plsc.heads import HeadOutput

logger = logging.getLogger("plsc")


def gradient_problem(backbone: paddle.nn.Layer, images: Sequence[np.ndarray]) -> Optional[str]:
    """Returns what is wrong with the backbone's gradients, which are the same on every rank; None when they are finite.

    Args:
        backbone: The model, after the backward pass.
        images: This rank's images of the step, by micro-batch; they may be the cause.
    """
    bad = optim.first_not_finite(backbone.named_parameters())
    if bad is None:
        return None
    own = "" if all(np.isfinite(one).all() for one in images) else "its images are not finite"
    found = [f"rank {rank}: {text}" for rank, text in enumerate(parallel.all_gather_object(own, "its images")) if text]
    return "; ".join([*found, f"the gradient of the backbone's {bad} is not finite"])


def step_of(outputs: Sequence[HeadOutput], lr: float, scale: Optional[float], problem: Optional[str]) -> Step:
    """Returns the `Step` that callbacks see, from the outputs of its micro-batches."""
    correct = None
    if outputs[-1].correct is not None:
        top1, top5 = (sum(counts) for counts in zip(*(one.correct for one in outputs if one.correct)))
        correct = (top1, top5)
    return Step(
        loss=sum(one.loss for one in outputs),
        lr=lr,
        scale=scale,
        samples=sum(one.samples for one in outputs),
        correct=correct,
        problem=problem,
    )


def report_skipped_step(progress: Progress, problem: str, most: int) -> None:
    """Warns that the last step was skipped.

    Raises:
        TrainingError: `most` steps in a row were skipped; the same on every rank.
    """
    logger.warning("step %d was skipped and updated nothing: %s", progress.step, problem)
    if progress.skipped_in_a_row >= most:
        raise TrainingError(
            f"step {progress.step}: {progress.skipped_in_a_row} steps in a row were skipped: {problem}. Lower set_lr, "
            "add set_warmup_epochs, or check the images; set_max_skipped_steps allows more skipped steps"
        )
