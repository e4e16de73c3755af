"""Losses and accuracy. Labels are whole numbers [B, 1], as Paddle 1.x had them, or [B]."""

from __future__ import annotations

from typing import Any, Optional

import paddle
from paddle import Tensor
from paddle.nn import functional

from plsc.errors import PlscError
from plsc.layers.parametric import drop_last_one


def one_hot(input: Tensor, depth: int, allow_out_of_range: bool = False) -> Tensor:
    """[B, 1] or [B] -> [B, depth] float32.

    Args:
        allow_out_of_range: a number outside [0, depth) gives zeros rather than an error.
    """
    return one_hot_rows(drop_last_one(input), depth, allow_out_of_range)


def one_hot_rows(numbers: Tensor, depth: int, allow_out_of_range: bool) -> Tensor:
    """`one_hot` for numbers of any shape [...] -> [..., depth]."""
    if not allow_out_of_range:
        return functional.one_hot(numbers.astype("int64"), depth)
    return (numbers.astype("int64").unsqueeze(-1) == paddle.arange(depth)).astype("float32")


def cross_entropy(input: Tensor, label: Tensor, soft_label: bool = False, ignore_index: int = -100) -> Tensor:
    """-log of the label's probability, [B, C] -> [B, 1]: for what `softmax` gives, not for logits.

    Args:
        input: probabilities.
        label: [B, 1] or [B] int64, or with `soft_label` a probability for each class [B, C].
        ignore_index: the loss of this label is 0.
    """
    if soft_label:
        return -(label * _log(input)).sum(-1, keepdim=True)
    numbers = _with_last_one(input, label)
    used = numbers != ignore_index
    chosen = paddle.take_along_axis(input, paddle.where(used, numbers, paddle.zeros_like(numbers)), -1)
    return -_log(chosen) * used.astype(input.dtype)


def _log(probability: Tensor) -> Tensor:
    """log, and -1e20 for 0."""
    return paddle.clip(paddle.log(probability), min=-1e20)


def softmax_with_cross_entropy(
    logits: Tensor,
    label: Tensor,
    soft_label: bool = False,
    ignore_index: int = -100,
    numeric_stable_mode: bool = True,
    return_softmax: bool = False,
    axis: int = -1,
) -> Any:
    """Cross entropy of softmax(logits) along `axis`, of which the result has 1; computed stably in every case.

    Args:
        return_softmax: returns (loss, softmax) instead of the loss.
    """
    target = label if soft_label or axis not in (-1, len(logits.shape) - 1) else _with_last_one(logits, label)
    return functional.softmax_with_cross_entropy(
        logits, target, soft_label, ignore_index, return_softmax=return_softmax, axis=axis
    )


def _with_last_one(scores: Tensor, label: Tensor) -> Tensor:
    label = label.astype("int64")
    return label.unsqueeze(-1) if len(label.shape) < len(scores.shape) else label


def accuracy(
    input: Tensor, label: Tensor, k: int = 1, correct: Optional[Tensor] = None, total: Optional[Tensor] = None
) -> Tensor:
    """Share of the labels among the k largest of their row, [1] float32."""
    if correct is not None or total is not None:
        raise PlscError("layers.accuracy: correct= and total= cannot be filled; multiply the result by the batch size")
    return paddle.metric.accuracy(input, _with_last_one(input, label), k).reshape([1])
