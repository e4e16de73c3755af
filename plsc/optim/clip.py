"""Clipping of gradients by norms that are taken over all shards of the head."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import paddle
from paddle.nn import ClipGradByGlobalNorm, ClipGradByNorm, ClipGradByValue

from plsc import parallel
from plsc.config import Config
from plsc.errors import ConfigError
from plsc.optim.wrapped import groups_of, innermost, parameters_of

logger = logging.getLogger("plsc")


@dataclass(frozen=True)
class NormClip:
    """Gradients that are scaled down together if their joint norm is larger than `norm`.

    Attributes:
        norm: The largest norm.
        backbone: Positions of their parameters among those of the backbone.
        head: Names of their parameters in the head, such as 'weight' and 'bias'.
    """

    norm: float
    backbone: tuple[int, ...]
    head: tuple[str, ...]


def take_clips(
    config: Config,
    optimizer: paddle.optimizer.Optimizer,
    backbone: Sequence[Any],
    head: Mapping[str, Any],
    is_split: bool,
) -> list[NormClip]:
    """Takes the clips by norm off an optimizer, because Paddle's own would see the shard of one rank only.

    Clips by value are left to Paddle, and so are clips by the norm of single gradients where each rank has the whole
    head. A parameter with `need_clip=False` is in no clip.

    Args:
        config: The settings; `set_gradient_clip` clips all gradients together.
        optimizer: The user's optimizer or the default one.
        backbone: The trained parameters of the backbone.
        head: The trained parameters of this rank's part of the head, by name.
        is_split: Whether other ranks hold other parts of the head.

    Returns:
        The clips, the same on every rank.

    Raises:
        ConfigError: Both `set_gradient_clip` and the optimizer clip.
    """
    found = []
    inner = innermost(optimizer)
    owners: list[Any] = [*groups_of(inner)] or [{"params": parameters_of(inner), "grad_clip": inner._grad_clip}]
    if config.gradient_clip:
        if inner._grad_clip is not None or any(owner.get("grad_clip") is not None for owner in owners):
            raise ConfigError(
                f"set_gradient_clip({config.gradient_clip}), but set_optimizer's optimizer has a grad_clip too; leave "
                "one out"
            )
        owners = [{"params": parameters_of(inner), "grad_clip": ClipGradByGlobalNorm(config.gradient_clip)}]
    for owner in owners:
        clip, wanted = owner.get("grad_clip"), {id(p) for p in owner["params"] if getattr(p, "need_clip", True)}
        places = tuple(number for number, parameter in enumerate(backbone) if id(parameter) in wanted)
        names = tuple(name for name, parameter in head.items() if id(parameter) in wanted)
        if isinstance(clip, ClipGradByGlobalNorm):
            found.append(NormClip(clip.clip_norm, places, names))
        elif isinstance(clip, ClipGradByNorm) and is_split:
            found += [NormClip(clip.clip_norm, (number,), ()) for number in places]
            found += [NormClip(clip.clip_norm, (), (name,)) for name in names]
        else:
            _warn_of_shards(clip, names, is_split)
            continue
        owner["grad_clip"] = None
    if not groups_of(inner) and not config.gradient_clip:
        inner._grad_clip = owners[0]["grad_clip"]
    # A rank without rows does not know which of the head's parameters are clipped; rank 0 always has rows.
    return parallel.all_gather_object(found, "its optimizer")[0]


def _warn_of_shards(clip: Any, names: tuple[str, ...], is_split: bool) -> None:
    """Warns of a clip that plsc does not know, and that is given a part of the head's gradient."""
    if clip is not None and names and is_split and not isinstance(clip, ClipGradByValue) and parallel.rank() == 0:
        logger.warning(
            "set_optimizer: %s is given the gradient of one shard of the head on each rank, so it clips right only if "
            "it treats each row by itself; use ClipGradByGlobalNorm or ClipGradByNorm for norms",
            type(clip).__name__,
        )


def clip_factor(norm: float, square_sum: float) -> float:
    """Returns the factor that clips gradients with this sum of squares to a norm of at most `norm`."""
    return norm / max(norm, math.sqrt(square_sum))


def squares_of(parameters: Sequence[Any]) -> list[float]:
    """Returns the sum of the squares of each parameter's gradient; 0 for one without a gradient."""
    parts = {n: paddle.square(p.grad.astype("float32")).sum() for n, p in enumerate(parameters) if p.grad is not None}
    sums = dict(zip(parts, paddle.stack(list(parts.values())).tolist())) if parts else {}
    return [sums.get(number, 0.0) for number in range(len(parameters))]


def head_squares(
    own: Mapping[str, float], wanted: Sequence[tuple[str, ...]], is_split: bool
) -> dict[tuple[str, ...], float]:
    """Returns the sums of squares of the head's gradients over all shards, by the names of the parameters in a sum.

    Args:
        own: Those of this rank, by name.
        wanted: The sums, the same on every rank.
        is_split: Whether other ranks hold other parts of the head; then every rank must call it.
    """
    sums = [sum(own.get(name, 0.0) for name in names) for names in wanted]
    if is_split:
        sums = parallel.all_reduce_sum(paddle.to_tensor(sums, dtype="float64")).tolist()
    return dict(zip(wanted, sums))


def scale_gradients(parameters: Iterable[Any], factor: float) -> None:
    """Multiplies the gradients by `factor`, in place."""
    if factor == 1.0:
        return
    with paddle.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.scale_(factor)
