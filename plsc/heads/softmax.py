"""The classifier head: logits against this rank's class centres, one global softmax, loss and exact gradients.

Shapes: B global batch, b this rank's batch, C classes of this shard, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import paddle

from plsc import parallel
from plsc.heads.margins import AngularMargin

_ROWS_PER_DRAW = 4096


@dataclass
class HeadOutput:
    """One step of the head.

    Attributes:
        loss: scalar, the mean over the global batch; the same on every rank.
        embedding_grad: [b, D], d(loss)/d(embedding) of this rank's rows.
        correct: (top-1, top-5) counts over the global batch, when asked for.
        samples: the global batch B.
    """

    loss: paddle.Tensor
    embedding_grad: paddle.Tensor
    correct: Optional[tuple[int, int]]
    samples: int


def shard_bounds(num_classes: int, num_ranks: int, rank: int) -> tuple[int, int]:
    """Half-open range of classes `rank` of `num_ranks` holds; empty where there are fewer classes than ranks."""
    quotient, remainder = divmod(num_classes, num_ranks)
    start = rank * quotient + min(rank, remainder)
    return start, start + quotient + (rank < remainder)


def build_head(
    loss_type: str,
    num_classes: int,
    emb_dim: int,
    margin: float = 0.5,
    scale: float = 64.0,
    seed: int = 0,
    param_attr: Any = None,
    bias_attr: Any = None,
    dtype: str = "float32",
) -> ClassifierHead:
    """The head of `loss_type`: softmax, arcface or cosface, with the prefix `dist_` to shard it over the ranks."""
    kind = loss_type[len("dist_") :] if loss_type.startswith("dist_") else loss_type
    margins: dict[str, Optional[AngularMargin]] = {
        "softmax": None,
        "arcface": AngularMargin(m2=margin),
        "cosface": AngularMargin(m3=margin),
    }
    return ClassifierHead(
        num_classes,
        emb_dim,
        margin=margins[kind],
        scale=scale,
        sharded=loss_type.startswith("dist_"),
        seed=seed,
        param_attr=param_attr,
        bias_attr=bias_attr,
        dtype=dtype,
    )


class ClassifierHead(paddle.nn.Layer):
    """Class centres W, the loss over all classes, and its exact gradients, without autograd.

    With `sharded`, rank r holds the rows `shard_bounds(num_classes, world_size, r)` of W and every rank computes its
    classes for the global batch; otherwise every rank holds all of W and computes its own batch. Both give the same
    numbers. A zero embedding or a zero row has cosine 0 to everything and receives no gradient.

    Args:
        num_classes: classes over all ranks.
        emb_dim: D.
        margin: of the labelled class's cosine; None for plain softmax on X W^T + bias.
        scale: s, the factor on the cosines (unused by softmax).
        seed: of the initial weights, which do not depend on the number of ranks.
        param_attr, bias_attr: `paddle.ParamAttr`: initializer, learning rate, regularizer of W and of the bias.
            `bias_attr=False` leaves the bias out.
    """

    def __init__(
        self,
        num_classes: int,
        emb_dim: int,
        margin: Optional[AngularMargin] = None,
        scale: float = 64.0,
        sharded: bool = True,
        seed: int = 0,
        param_attr: Any = None,
        bias_attr: Any = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(dtype=dtype)
        self.num_classes, self.emb_dim = num_classes, emb_dim
        self.margin, self.scale, self.sharded = margin, scale, sharded
        self.lower, self.upper = (
            shard_bounds(num_classes, parallel.world_size(), parallel.rank()) if sharded else (0, num_classes)
        )
        rows = self.upper - self.lower
        self.weight: Optional[paddle.Tensor] = None
        self.bias: Optional[paddle.Tensor] = None
        if rows:  # Paddle has no parameter of zero rows
            self.weight = self.create_parameter([rows, emb_dim], attr=param_attr, dtype=dtype)
            if getattr(param_attr, "initializer", None) is None:
                self.weight.set_value(_initial_rows(self.lower, self.upper, emb_dim, seed).astype(dtype))
            if margin is None and bias_attr is not False:
                self.bias = self.create_parameter([rows], attr=bias_attr, dtype=dtype, is_bias=True)

    @paddle.no_grad()
    def step(self, embedding: paddle.Tensor, label: paddle.Tensor, with_accuracy: bool = False) -> HeadOutput:
        """Loss and gradients of one global batch; W's and the bias's gradients are left in their `.grad`.

        Args:
            embedding: [b, D] float32; b may differ between ranks, and may be 0.
            label: [b] int64 in [0, num_classes).
            with_accuracy: also count the samples whose class has the largest, or one of the 5 largest, logits
                (without margin) of all classes.
        """
        counts = parallel.row_counts(embedding.shape[0])
        samples = sum(counts)
        if samples == 0:
            return HeadOutput(paddle.zeros([], embedding.dtype), embedding, (0, 0) if with_accuracy else None, 0)
        if self.sharded:
            embedding_BD = parallel.all_gather_rows(embedding, counts)
            label_B = parallel.all_gather_rows(label, counts)
            reduce_sum, reduce_max = parallel.all_reduce_sum, parallel.all_reduce_max
        else:
            embedding_BD, label_B = embedding, label
            reduce_sum = reduce_max = _identity

        loss, gradient_BD, correct = self._loss_and_gradients(
            embedding_BD, label_B, samples, with_accuracy, reduce_sum, reduce_max
        )
        if self.sharded:
            first = sum(counts[: parallel.rank()])
            gradient_BD = parallel.all_reduce_sum(gradient_BD)[first : first + counts[parallel.rank()]]
        else:
            self._sum_gradients_over_ranks(embedding.shape[0])
            loss = parallel.all_reduce_sum(loss)
            if correct is not None:
                correct = parallel.all_reduce_sum(correct)
        return HeadOutput(loss, gradient_BD, None if correct is None else (int(correct[0]), int(correct[1])), samples)

    def _loss_and_gradients(
        self,
        embedding_BD: paddle.Tensor,
        label_B: paddle.Tensor,
        samples: int,
        with_accuracy: bool,
        reduce_sum: Callable[[paddle.Tensor], paddle.Tensor],
        reduce_max: Callable[[paddle.Tensor], paddle.Tensor],
    ) -> tuple[paddle.Tensor, paddle.Tensor, Optional[paddle.Tensor]]:
        batch, dtype = embedding_BD.shape[0], embedding_BD.dtype
        if batch == 0:
            return paddle.zeros([], dtype), embedding_BD, paddle.zeros([2], "int64") if with_accuracy else None
        own_B = paddle.logical_and(label_B >= self.lower, label_B < self.upper)
        row_B = paddle.clip(label_B - self.lower, 0, max(self.upper - self.lower - 1, 0))
        weight = self.weight
        if weight is None:
            # More ranks than classes: this rank only takes part in the reductions.
            logits_BC = None
            target_B = slope_B = plain_B = paddle.zeros([batch], dtype)
        else:
            if self.margin is None:
                logits_BC = paddle.matmul(embedding_BD, weight, transpose_y=True)
                if self.bias is not None:
                    logits_BC += self.bias
            else:
                unit_BD, inverse_B = _normalised(embedding_BD)
                unit_CD, inverse_C = _normalised(weight)
                logits_BC = paddle.clip(paddle.matmul(unit_BD, unit_CD, transpose_y=True), -1.0, 1.0)
            plain_B = paddle.take_along_axis(logits_BC, row_B.unsqueeze(1), 1).squeeze(1)
            target_B, slope_B = (
                (plain_B, paddle.ones_like(plain_B)) if self.margin is None else self.margin.target(plain_B)
            )

        mask_B = own_B.astype(dtype)
        # One reduction carries the labelled class's logit before and after the margin from its owner to all.
        plain_B, target_B = reduce_sum(paddle.stack([plain_B * mask_B, target_B * mask_B])).unbind(0)
        correct = self._count_correct(logits_BC, plain_B, label_B, reduce_sum) if with_accuracy else None

        scale = 1.0 if self.margin is None else self.scale
        if logits_BC is None:
            shift_B = reduce_max(paddle.full([batch], -1e30, dtype))
            row_sum_B = reduce_sum(paddle.zeros([batch], dtype))
        else:
            at_label = paddle.stack([paddle.arange(batch, dtype="int64"), row_B], axis=1)
            logits_BC = paddle.scatter_nd_add(logits_BC, at_label, (target_B - plain_B) * mask_B)
            shift_B = reduce_max(logits_BC.max(axis=1))
            exp_BC = paddle.exp((logits_BC - shift_B.unsqueeze(1)) * scale)
            row_sum_B = reduce_sum(exp_BC.sum(axis=1))
        loss = ((shift_B - target_B) * scale + paddle.log(row_sum_B)).sum() / samples
        if weight is None:
            return loss, paddle.zeros_like(embedding_BD), correct

        # d(loss)/d(logit) = (softmax - onehot) / samples, then through the margin and the scale.
        grad_BC = exp_BC / row_sum_B.unsqueeze(1)
        probability_B = paddle.take_along_axis(grad_BC, row_B.unsqueeze(1), 1).squeeze(1)
        at_label_B = (probability_B - 1.0) * slope_B
        grad_BC = paddle.scatter_nd_add(grad_BC, at_label, (at_label_B - probability_B) * mask_B)
        grad_BC = grad_BC * (scale / samples)
        if self.margin is None:
            weight.grad = paddle.matmul(grad_BC, embedding_BD, transpose_x=True)
            if self.bias is not None:
                self.bias.grad = grad_BC.sum(axis=0)
            return loss, paddle.matmul(grad_BC, weight), correct
        weight.grad = _through_normalisation(paddle.matmul(grad_BC, unit_BD, transpose_x=True), unit_CD, inverse_C)
        embedding_grad_BD = _through_normalisation(paddle.matmul(grad_BC, unit_CD), unit_BD, inverse_B)
        return loss, embedding_grad_BD, correct

    def _count_correct(
        self,
        logits_BC: Optional[paddle.Tensor],
        plain_B: paddle.Tensor,
        label_B: paddle.Tensor,
        reduce_sum: Callable[[paddle.Tensor], paddle.Tensor],
    ) -> paddle.Tensor:
        """[top-1, top-5] counts; of equal logits the lower class number comes first, whatever the sharding."""
        if logits_BC is None:
            before_B = paddle.zeros(label_B.shape, "int64")
        else:
            class_C = paddle.arange(self.lower, self.upper, dtype="int64")
            is_label_BC = class_C.unsqueeze(0) == label_B.unsqueeze(1)
            lower_class_BC = class_C.unsqueeze(0) < label_B.unsqueeze(1)
            equal_BC = logits_BC == plain_B.unsqueeze(1)
            larger_BC = logits_BC > plain_B.unsqueeze(1)
            ahead_BC = paddle.logical_or(larger_BC, paddle.logical_and(equal_BC, lower_class_BC))
            before_B = paddle.logical_and(ahead_BC, paddle.logical_not(is_label_BC)).astype("int64").sum(axis=1)
        before_B = reduce_sum(before_B)
        return paddle.stack([(before_B < 1).astype("int64").sum(), (before_B < 5).astype("int64").sum()])

    def _sum_gradients_over_ranks(self, own_rows: int) -> None:
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                gradient = paddle.zeros_like(parameter) if own_rows == 0 else parameter.grad
                parameter.grad = parallel.all_reduce_sum(gradient)


def _identity(tensor: paddle.Tensor) -> paddle.Tensor:
    return tensor


def _initial_rows(lower: int, upper: int, emb_dim: int, seed: int) -> np.ndarray:
    """Rows [lower, upper) of the initial W, normal(0, 0.01), drawn in fixed blocks so that sharding changes nothing."""
    rows = np.empty((upper - lower, emb_dim), dtype="float32")
    for block in range(lower // _ROWS_PER_DRAW, (upper - 1) // _ROWS_PER_DRAW + 1):
        first = block * _ROWS_PER_DRAW
        drawn = np.random.default_rng((seed, block)).standard_normal((_ROWS_PER_DRAW, emb_dim), dtype="float32")
        begin, end = max(lower, first), min(upper, first + _ROWS_PER_DRAW)
        rows[begin - lower : end - lower] = drawn[begin - first : end - first] * 0.01
    return rows


def _normalised(rows: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Unit rows [N, D] and the inverse norms [N, 1]; a zero row stays zero, with inverse 0.

    Rows are divided by their largest element first, so that no norm overflows or underflows.
    """
    largest = rows.abs().max(axis=1, keepdim=True)
    is_zero = largest == 0
    safe = paddle.where(is_zero, paddle.ones_like(largest), largest)
    scaled = rows / safe
    norm = paddle.sqrt((scaled * scaled).sum(axis=1, keepdim=True))
    norm = paddle.where(is_zero, paddle.ones_like(norm), norm)
    inverse = paddle.where(is_zero, paddle.zeros_like(norm), 1.0 / norm / safe)
    return scaled / norm, inverse


def _through_normalisation(gradient: paddle.Tensor, unit: paddle.Tensor, inverse: paddle.Tensor) -> paddle.Tensor:
    """Gradient with respect to the rows from the gradient with respect to the unit rows."""
    return (gradient - unit * (unit * gradient).sum(axis=1, keepdim=True)) * inverse
