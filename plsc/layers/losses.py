"""Losses and accuracy. Labels are integers [B, 1], as in Paddle 1.x, or [B]."""

from __future__ import annotations

from typing import Any, Optional

import paddle
from paddle import Tensor
from paddle.nn import functional

from plsc.errors import PlscError
from plsc.layers.parametric import drop_last_one


def one_hot(input: Tensor, depth: int, allow_out_of_range: bool = False) -> Tensor:
    """Returns one-hot rows of numbers, [B, 1] or [B] -> [B, depth] float32.

    Args:
        input: Integers.
        depth: Number of columns.
        allow_out_of_range: Whether a number outside [0, depth) gives zeros rather than an error.
    """
    return one_hot_rows(drop_last_one(input), depth, allow_out_of_range)


def one_hot_rows(numbers: Tensor, depth: int, allow_out_of_range: bool) -> Tensor:
    """Returns one-hot rows of numbers of any shape, [...] -> [..., depth]; see `one_hot`."""
    if not allow_out_of_range:
        return functional.one_hot(numbers.astype("int64"), depth)
    return (numbers.astype("int64").unsqueeze(-1) == paddle.arange(depth)).astype("float32")


def cross_entropy(input: Tensor, label: Tensor, soft_label: bool = False, ignore_index: int = -100) -> Tensor:
    """Returns -log of the probability of the label, [B, C] -> [B, 1].

    Args:
        input: Probabilities, as `softmax` returns them, not logits.
        label: Labels, [B, 1] or [B] int64; or with `soft_label` a probability for each class, [B, C].
        soft_label: Whether labels are probabilities.
        ignore_index: Label whose loss is 0.
    """
    if soft_label:
        return -(label * _log(input)).sum(-1, keepdim=True)
    numbers = _with_last_one(input, label)
    used = numbers != ignore_index
    chosen = paddle.take_along_axis(input, paddle.where(used, numbers, paddle.zeros_like(numbers)), -1)
    return -_log(chosen) * used.astype(input.dtype)


def _log(probability: Tensor) -> Tensor:
    """Returns the logarithm, and -1e20 for 0."""
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
    """Returns the cross entropy of softmax(logits) along `axis`, which has size 1 in the result.

    Args:
        logits: Logits.
        label: Labels, int64; or with `soft_label` a probability for each class.
        soft_label: Whether labels are probabilities.
        ignore_index: Label whose loss is 0.
        numeric_stable_mode: Has no effect; the result is always computed in a stable way.
        return_softmax: Whether to return (loss, softmax) instead of the loss.
        axis: Axis of the classes.
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
    """Returns the share of labels that are among the k largest scores of their row, [1] float32."""
    if correct is not None or total is not None:
        raise PlscError(
            "layers.accuracy: correct= and total= are not supported; multiply the result by the batch size instead"
        )
    return paddle.metric.accuracy(input, _with_last_one(input, label), k).reshape([1])
