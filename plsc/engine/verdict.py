"""The verdict on a step: what came out of it, and whether its gradients may be used."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from typing import Optional, Union

import numpy as np
import paddle

from plsc import optim, parallel
from plsc.engine.callbacks import Step
from plsc.engine.progress import Progress
from plsc.errors import TrainingError, counted
from plsc.heads import ClassifierHead, HeadGroup, HeadOutput
from plsc.heads.shard import first_row_not_finite
from plsc.machine.names import class_title
from plsc.models.freezing import statistics_of

logger = logging.getLogger("plsc")

_NAMED = 3  # parameters in a warning
_CURE = "Lower set_lr, add set_warmup_epochs, or check the images"


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


def warn_of_missing_gradients(backbone: paddle.nn.Layer) -> None:
    """Logs which trainable parameters got no gradient, after the first backward pass."""
    missing = [name for name, p in backbone.named_parameters() if not p.stop_gradient and p.grad is None]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        logger.warning(
            "%s: %s%s got no gradient in the first step; if they are to be trained, look for detach(), numpy() or "
            "stop_gradient in its forward, and for layers that it does not use",
            type(backbone).__name__,
            ", ".join(missing[:_NAMED]),
            more,
        )


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
        of_heads={
            title: (sum(one.of_heads[title][0] for one in outputs), sum(one.of_heads[title][1] for one in outputs))
            for title in outputs[-1].of_heads
        },
    )


def report_skipped_step(progress: Progress, problem: str, most: int) -> None:
    """Warns that the last step was skipped.

    Raises:
        TrainingError: `most` steps in a row were skipped; the same on every rank.
    """
    logger.warning("step %d was skipped and updated nothing: %s", progress.step, problem)
    if progress.skipped_in_a_row >= most:
        raise TrainingError(
            f"step {progress.step}: {counted(progress.skipped_in_a_row, 'step')} in a row skipped: {problem}. {_CURE}; "
            "set_max_skipped_steps allows more skipped steps"
        )


def check_epoch(progress: Progress, last: Optional[Step]) -> None:
    """Checks that an epoch has trained something, before it is tested and saved.

    Skips that a large loss scale explains do not count.

    Args:
        progress: The state after the last step of the epoch.
        last: The last step; None if the steps of the epoch were done before the run was resumed.

    Raises:
        TrainingError: All steps of the epoch were skipped; the same on every rank.
    """
    if last is None or last.problem is None or progress.used_steps or progress.skipped_in_a_row < progress.batch:
        return
    raise TrainingError(
        f"epoch {progress.epoch}: all {progress.batch} of its steps were skipped, so it trained nothing: "
        f"{last.problem}. {_CURE}"
    )


def check_weights(
    backbone: paddle.nn.Layer, head: Union[ClassifierHead, HeadGroup], progress: Progress, last: Optional[Step]
) -> None:
    """Checks that the weights that are about to be tested or saved are finite, and the backbone the same on all ranks.

    Every rank must call it.

    Args:
        backbone: The model.
        head: This rank's class centres.
        progress: How far the run has come, for the message.
        last: The last step, for the message.

    Raises:
        TrainingError: A weight is infinite or NaN, or a rank trains another backbone; the same on every rank.
    """
    moving = statistics_of(backbone)  # what is frozen was finite when training began
    state = backbone.state_dict().items()
    name = optim.first_tensor_not_finite((name, t) for name, t in state if not t.stop_gradient or name in moving)
    found = "" if name is None else f"the backbone's {name} is not finite"
    for part in head.parts:
        row = first_row_not_finite(part.head.weight)
        if not found and row is not None:
            title = class_title(part.first + part.head.lower + row, part.head.class_names, part.first)
            found = f"the class centre of {title} is not finite"
    own = found, _digests(backbone) if parallel.world_size() > 1 else {}
    problems, digests = zip(*parallel.all_gather_object(own, "the check of its weights"))
    found = next(filter(None, problems), "")
    if found:
        skipped = f" ({progress.skipped_in_a_row} steps after it were skipped)" if last and last.problem else ""
        raise TrainingError(
            f"step {progress.step}: {found}, because a step was too large{skipped}; nothing is saved of these weights. "
            f"{_CURE}; set_resume(True) resumes from the last checkpoint"
        )
    _check_replicas(digests, progress.step)


def _digests(backbone: paddle.nn.Layer) -> dict[str, int]:
    """Returns a digest of every trained parameter; BatchNorm's running statistics differ between the ranks."""
    return {
        name: zlib.crc32(parameter.numpy())
        for name, parameter in backbone.named_parameters()
        if not parameter.stop_gradient
    }


def _check_replicas(digests: Sequence[dict[str, int]], step: int) -> None:
    """Checks that the backbones of all ranks, which begin the same and take the same steps, are equal to the bit."""
    first = digests[0]
    for rank, other in enumerate(digests):
        name = next((name for name in {**first, **other} if first.get(name) != other.get(name)), None)
        if name is not None:
            raise TrainingError(
                f"step {step}: the backbone of rank {rank} is no longer that of rank 0: its {name} differs; nothing is "
                "saved of these weights. Give every rank the same optimizer, and let callbacks call set_lr, or change "
                "weights, on every rank; set_resume(True) resumes from the last checkpoint"
            )


def report_skipped_end(progress: Progress, last: Optional[Step]) -> None:
    """Warns at the end of a run that its last steps were skipped, or all of them."""
    if last is None or last.problem is None or parallel.rank() != 0:
        return
    if progress.skipped == progress.step:
        logger.warning(
            "all %d steps of the run were skipped, so it has trained nothing yet: %s. %s, or lower the "
            "init_loss_scaling of set_mixed_precision",
            progress.step,
            last.problem,
            _CURE,
        )
    else:
        logger.warning(
            "the last steps of the run were skipped, up to step %d: its weights are those of the last step before them",
            progress.step,
        )
