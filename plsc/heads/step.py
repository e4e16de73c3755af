"""One step of a head, in order: gather the batch, find the labelled classes, walk the others, reduce, differentiate.

`HeadStep` is the first half, for one micro-batch; `update_rows` the second, for all micro-batches of a step.

Shapes: B samples whose logits this rank computes (the global micro-batch when sharded, else its own), b this rank's, n of
the B samples whose class this rank holds, D embedding, N rows that take part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import paddle
from paddle.nn import functional

from plsc import parallel
from plsc.heads.margins import Margin, Target
from plsc.heads.products import Products
from plsc.heads.walk import DenseGradient, Labels, RowGradient, RowSink, Sums, Walk, chunk_rows, inverse_norms
from plsc.heads.workers import Workers

_LOWEST = -1e29
_ROWS_PER_CHECK = 1 << 16


@dataclass
class HeadOutput:
    """What `ClassifierHead.forward` gives.

    Attributes:
        loss: the mean over the global batch (a micro-batch's part of that mean); the same on every rank.
        embedding_grad: [b, D], d(loss)/d(embedding) of this rank's rows.
        correct: (top-1, top-5) counts over the global (micro-)batch, when asked for.
        samples: size of the global (micro-)batch.
        problem: why the step must not be used (what was not finite, and on which rank), the same on every rank; None
            when all is well.
    """

    loss: float
    embedding_grad: paddle.Tensor
    correct: Optional[tuple[int, int]]
    samples: int
    problem: Optional[str] = None


@dataclass
class Shard:
    """What a rank holds of a head, and how it is computed with; see `ClassifierHead`.

    Attributes:
        weight: rows [lower, upper) of W; None where there are none.
        bias: the same of the bias; None without one.
        scale: on the cosines; 1 without a margin.
        sharded: the other ranks hold other rows, and every rank computes the global batch.
        bounded: the exponentials of the logits fit in the dtype as they are.
        precision, simulate: see `Products`.
    """

    weight: Optional[paddle.Tensor]
    bias: Optional[paddle.Tensor]
    lower: int
    upper: int
    emb_dim: int
    margin: Optional[Margin]
    scale: float
    sharded: bool
    bounded: bool
    chunk: int
    precision: str
    simulate: bool
    workers: Workers


@dataclass
class Plan:
    """What the micro-batches of a step have in common.

    Attributes:
        samples: of all micro-batches and all ranks: the loss is their mean.
        rows: [N] this rank's rows that take part, ascending; None for all.
        chunk: rows walked at a time.
    """

    samples: int
    rows: Optional[np.ndarray]
    chunk: int


class HeadStep:
    """The first half of a step, for one micro-batch.

    Args:
        head: this rank's part of it.
        plan: of the step.
        embedding: [b, D].
        counts: samples of each rank, not all 0.
        label: [sum(counts)], in rank order.
        margin_state: the margin's running statistics before this micro-batch; None without any.
    """

    def __init__(
        self,
        head: Shard,
        plan: Plan,
        embedding: paddle.Tensor,
        counts: Sequence[int],
        label: np.ndarray,
        margin_state: Optional[paddle.Tensor],
    ) -> None:
        self.head, self.plan, self.margin, self.counts = head, plan, head.margin, list(counts)
        self.rows, self.own_embedding = plan.rows, embedding
        before = sum(counts[: parallel.rank()])
        self.own = slice(before, before + counts[parallel.rank()])
        self.embedding_BD, self.label_B = embedding, label
        if head.sharded:
            self.embedding_BD = parallel.all_gather_rows(embedding, self.counts)
        else:
            self.label_B = label[self.own]
        self.empty = not len(self.label_B)
        if self.empty:  # one sample without weight, so that this rank takes its part in what all do together
            self.embedding_BD = paddle.zeros([1, head.emb_dim], embedding.dtype)
        self.batch, self.dtype = int(self.embedding_BD.shape[0]), self.embedding_BD.dtype
        self.share = 0.0 if self.empty else 1.0 / plan.samples  # of a sample in the loss
        self.state = margin_state
        self.target: Optional[Target] = None
        self.walk: Optional[Walk] = None

    def run(self, with_accuracy: bool) -> HeadOutput:
        """Loss and the embeddings' gradient."""
        self.unit_BD, self.inverse_B1, norm_B = normalised(self.embedding_BD)
        self.factor_BD = self.embedding_BD if self.margin is None else self.unit_BD * self.head.scale
        self._find_labels()
        plain_n = self._label_products()
        changes_others = self.margin is not None and self.margin.changes_others
        plain_B = self._everywhere(plain_n) if with_accuracy or changes_others else None
        self._compute_target(plain_n, norm_B, plain_B)
        sums = self._sweep(norm_B, plain_B, with_accuracy)
        others_B, target_B, ahead_B = self._reduce_sums(sums, with_accuracy)

        # x = log(sum over the others) - target: the loss is log(1 + e^x), the label's p - 1 is -sigmoid(x).
        excess_B = others_B - target_B
        loss_B = functional.softplus(excess_B, threshold=40)
        self.log_total_B = loss_B + target_B
        self.error_B = -functional.sigmoid(excess_B)
        penalty = None if self.margin is None else self.margin.penalty(norm_B)
        gradient = self._start_embedding_gradient(sums, None if penalty is None else penalty[1])
        loss, correct = self._total(loss_B if penalty is None else loss_B + penalty[0], ahead_B)
        problem = None if math.isfinite(loss) else self._what_is_not_finite(loss)
        gradient_BD = gradient.wait()
        if self.head.sharded:
            gradient_BD = gradient_BD[self.own]
        elif self.empty:
            gradient_BD = self.own_embedding
        return HeadOutput(loss, gradient_BD, correct, sum(self.counts), problem)

    def row_gradient(self, factor: float) -> RowGradient:
        """`factor` times the gradient of the rows, for `Walk.update`."""
        head = self.head
        share = self.share * factor
        if self.target is None:
            push_nD = paddle.zeros([0, head.emb_dim], self.dtype)
            radial_n = paddle.zeros([0], self.dtype)
        else:
            push_n = self.push_n * (share * head.scale)
            radial_n = push_n
            if self.row_inverse_n1 is not None:
                push_n = push_n * self.row_inverse_n1.squeeze(1)
                radial_n = push_n * self.plain_n
            direction_BD = self.embedding_BD if self.margin is None else self.unit_BD
            push_nD = paddle.gather(direction_BD, self.sample_n) * push_n.unsqueeze(1)
        log_total_B = paddle.clip(self.log_total_B, -87.0, 87.0) if head.bounded else self.log_total_B
        share_B = paddle.full([self.batch], share, self.dtype)
        return RowGradient(log_total_B, share_B, self.factor_BD * share, push_nD, radial_n)

    def _find_labels(self) -> None:
        head = self.head
        mine = np.flatnonzero((self.label_B >= head.lower) & (self.label_B < head.upper))
        row = self.label_B[mine] - head.lower
        order = np.argsort(row, kind="stable")
        row, sample = row[order], mine[order]
        self.labels = Labels(row if self.rows is None else np.searchsorted(self.rows, row), sample)
        self.row_n, self.sample_n = paddle.to_tensor(row), paddle.to_tensor(sample)

    def _label_products(self) -> Optional[paddle.Tensor]:
        """Cosines of the labelled classes held here (logits without a margin): [n], None where there are none."""
        if not len(self.labels.sample):
            return None
        head = self.head
        rows_nD, self.row_inverse_n1 = paddle.gather(head.weight, self.row_n), None
        if self.margin is not None:
            self.row_inverse_n1 = inverse_norms(rows_nD)
            rows_nD = rows_nD * self.row_inverse_n1
        self.rows_nD = rows_nD
        direction_BD = self.embedding_BD if self.margin is None else self.unit_BD
        plain_n = (rows_nD * paddle.gather(direction_BD, self.sample_n)).sum(axis=1)
        if self.margin is not None:
            return paddle.clip(plain_n, -1.0, 1.0)
        return plain_n if head.bias is None else plain_n + paddle.gather(head.bias, self.row_n)

    def _compute_target(
        self, plain_n: Optional[paddle.Tensor], norm_B: paddle.Tensor, plain_B: Optional[paddle.Tensor]
    ) -> None:
        if self.margin is not None and self.margin.initial_state:
            cosine_B = plain_B if self.margin.changes_others else None
            self.state = self.margin.observe(self.state, self._of_global_batch(norm_B), self._of_global_batch(cosine_B))
        if plain_n is None:
            return
        self.plain_n = plain_n
        if self.margin is None:
            self.target = Target(plain_n, paddle.ones_like(plain_n))
        else:
            self.target = self.margin.target(plain_n, paddle.gather(norm_B, self.sample_n), self.state)

    def _sweep(self, norm_B: paddle.Tensor, plain_B: Optional[paddle.Tensor], with_accuracy: bool) -> Optional[Sums]:
        """The sums over this rank's rows; None on a rank without rows (more ranks than classes)."""
        head, margin, state = self.head, self.margin, self.state
        others = None
        if margin is not None and margin.changes_others:
            assert plain_B is not None
            target_1B = margin.target(plain_B, norm_B, state).value.unsqueeze(0)

            def others(product_CB: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
                value, slope = margin.others(product_CB * (1.0 / head.scale), target_1B, state)
                return value * head.scale, slope

        if head.weight is None:
            return None
        chunk = self.plan.chunk
        self.walk = Walk(
            head.weight,
            head.bias,
            self.rows,
            self.factor_BD,
            margin is not None,
            self.labels,
            others,
            head.bounded,
            chunk,
            Products(head.precision, max(chunk, self.batch), head.simulate),
            head.workers,
        )
        if not with_accuracy:
            return self.walk.sweep()
        label_1B = paddle.to_tensor(np.zeros(1, "int64") if self.empty else self.label_B).unsqueeze(0)

        def lower_class(first: int, last: int) -> paddle.Tensor:
            rows = np.arange(first, last) if self.rows is None else self.rows[first:last]
            return paddle.to_tensor(rows + head.lower).unsqueeze(1) < label_1B

        assert plain_B is not None
        return self.walk.sweep(plain_B * head.scale, lower_class)

    def _reduce_sums(
        self, sums: Optional[Sums], with_accuracy: bool
    ) -> tuple[paddle.Tensor, paddle.Tensor, Optional[paddle.Tensor]]:
        """Over all ranks, in one collective: log of the sum of exp(logit) over all classes but the label, the label's
        logit, and the number of classes ahead of it, each [B]."""
        zeros_B = paddle.zeros([self.batch], self.dtype)
        target_B = zeros_B if self.target is None else self._at_samples(self.target.value * self.head.scale)
        parts = [zeros_B if sums is None else sums.total_B, target_B]
        if with_accuracy:  # inexact beyond 2^24, which is not "fewer than 5" either way
            ahead_B = None if sums is None else sums.ahead_B
            parts.append(zeros_B if ahead_B is None else ahead_B.astype(self.dtype))
        smallest = 1e-37 if self.dtype == paddle.float32 else 1e-300
        if self.head.bounded:
            total = paddle.stack(parts)
            if self.head.sharded:
                total = parallel.all_reduce_sum(total)
            # Exactly 0 only where there is no other class.
            others_B = paddle.where(total[0] > 0, paddle.log(paddle.clip(total[0], min=smallest)), zeros_B + _LOWEST)
        else:  # the peaks differ between ranks, so they travel with the sums
            parts.append(zeros_B + _LOWEST if sums is None else sums.peak_B)
            every = paddle.stack(parts).unsqueeze(0)
            if self.head.sharded:
                every = parallel.start_all_gather(every[0]).wait()
            peak_B = every[:, -1].max(axis=0)
            every[:, 0] = every[:, 0] * paddle.exp(every[:, -1] - peak_B)
            total = every.sum(axis=0)
            others_B = peak_B + paddle.log(paddle.clip(total[0], min=smallest))
        return others_B, total[1], total[2] if with_accuracy else None

    def _start_embedding_gradient(
        self, sums: Optional[Sums], penalty_by_norm_B: Optional[paddle.Tensor]
    ) -> parallel.Pending:
        """d(loss)/d(embedding) [B, D], on its way to being summed over the ranks."""
        head, target = self.head, self.target
        if sums is None:
            gradient_BD = paddle.zeros_like(self.embedding_BD)
        else:
            exponent_B = -self.log_total_B if sums.peak_B is None else sums.peak_B - self.log_total_B
            gradient_BD = sums.pull_BD.multiply_(paddle.exp(exponent_B).unsqueeze(1))
        by_norm_B = None
        if target is not None:
            error_n = paddle.gather(self.error_B, self.sample_n)
            self.push_n = error_n * target.by_cosine
            gradient_BD.index_add_(self.sample_n, 0, self.rows_nD * self.push_n.unsqueeze(1))
            if target.by_norm is not None:
                by_norm_B = self._at_samples(error_n * target.by_norm * head.scale)
        gradient_BD.scale_(self.share * head.scale)
        if self.margin is not None:
            gradient_BD = _through_normalisation(gradient_BD, self.unit_BD, self.inverse_B1)
        counts_here = not head.sharded or parallel.rank() == 0  # the penalty counts once in the sum over the ranks
        if penalty_by_norm_B is not None and counts_here:
            by_norm_B = penalty_by_norm_B if by_norm_B is None else by_norm_B + penalty_by_norm_B
        if by_norm_B is not None:
            gradient_BD.add_(self.unit_BD * (by_norm_B * self.share).unsqueeze(1))
        return parallel.start_all_reduce_sum(gradient_BD) if head.sharded else parallel.Pending(gradient_BD)

    def _total(
        self, loss_B: paddle.Tensor, ahead_B: Optional[paddle.Tensor]
    ) -> tuple[float, Optional[tuple[int, int]]]:
        """Loss and correct samples of the global batch."""
        parts = [loss_B.sum() * self.share]
        if ahead_B is not None:
            weight = 0.0 if self.empty else 1.0
            parts += [(ahead_B < limit).astype(self.dtype).sum() * weight for limit in (1, 5)]
        total = paddle.stack(parts)
        if not self.head.sharded:
            total = parallel.all_reduce_sum(total)
        loss, *correct = total.tolist()
        return loss, (int(correct[0]), int(correct[1])) if correct else None

    def _what_is_not_finite(self, loss: float) -> str:
        """One line from what each rank finds in its batch and its rows."""
        found = []
        if self.own_embedding.shape[0]:
            bad = int(paddle.logical_not(paddle.isfinite(self.own_embedding).all(axis=1)).sum())
            if bad:
                found.append(f"{bad} of {self.own_embedding.shape[0]} embeddings are not finite")
        row = _first_bad_row(self.head.weight)
        if row is not None:
            found.append(f"the class centre of class {self.head.lower + row} is not finite")
        every = parallel.all_gather_object("; ".join(found))
        words = [f"rank {rank}: {text}" for rank, text in enumerate(every) if text]
        return "; ".join([*words, f"the loss is {loss}"])

    def _at_samples(self, value_n: paddle.Tensor) -> paddle.Tensor:
        """[B], 0 where the class is not held here."""
        return paddle.scatter(paddle.zeros([self.batch], self.dtype), self.sample_n, value_n)

    def _everywhere(self, value_n: Optional[paddle.Tensor]) -> paddle.Tensor:
        """[B], each sample's value from the rank that holds its class."""
        value_B = paddle.zeros([self.batch], self.dtype) if value_n is None else self._at_samples(value_n)
        return parallel.all_reduce_sum(value_B) if self.head.sharded else value_B

    def _of_global_batch(self, value_B: Optional[paddle.Tensor]) -> Optional[paddle.Tensor]:
        if value_B is None or self.head.sharded:
            return value_B
        return parallel.all_gather_rows(value_B[: 0 if self.empty else self.batch], self.counts)


def update_rows(
    head: Shard, steps: Sequence[HeadStep], weight_sink: Optional[RowSink], bias_sink: Optional[RowSink], factor: float
) -> None:
    """`factor` times the gradient of the rows over all micro-batches, handed to the sinks, or left in `.grad` without."""
    assert head.weight is not None
    walks = [step.walk for step in steps if step.walk is not None]
    walk, gradient = Walk.joined(walks, [step.row_gradient(factor) for step in steps])
    reduce_sum = None if head.sharded or parallel.world_size() == 1 else parallel.all_reduce_sum
    sink = weight_sink or DenseGradient(head.weight)
    bias_gradient_N = walk.update(gradient, sink, reduce_sum)
    if weight_sink is None:
        head.weight.grad = sink.buffer
    if bias_gradient_N is not None and head.bias is not None:
        if reduce_sum is not None:
            reduce_sum(bias_gradient_N)
        sink = bias_sink or DenseGradient(head.bias)
        walk.update_bias(bias_gradient_N, sink)
        if bias_sink is None:
            head.bias.grad = sink.buffer


def plan_step(head: Shard, counts: Sequence[Sequence[int]], rows: Optional[np.ndarray]) -> Plan:
    """The plan of a step from each micro-batch's samples of each rank."""
    samples = sum(sum(of_ranks) for of_ranks in counts)
    walked = samples if head.sharded else sum(of_ranks[parallel.rank()] for of_ranks in counts)
    return Plan(samples, rows, head.chunk or chunk_rows(max(walked, 1), head.emb_dim))


def _first_bad_row(weight: Optional[paddle.Tensor]) -> Optional[int]:
    """The first row that holds something that is not finite."""
    for first in range(0, 0 if weight is None else int(weight.shape[0]), _ROWS_PER_CHECK):
        assert weight is not None
        bad = paddle.logical_not(paddle.isfinite(weight[first : first + _ROWS_PER_CHECK]).all(axis=1))
        if bool(bad.any()):
            return first + int(bad.astype("int64").argmax())
    return None


def normalised(rows: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """Unit rows [N, D], inverse norms [N, 1] and norms [N]; a zero row stays zero, with inverse 0.

    Rows are divided by their largest element first, so that no norm overflows or underflows.
    """
    largest = rows.abs().max(axis=1, keepdim=True)
    is_zero = largest == 0
    safe = paddle.where(is_zero, paddle.ones_like(largest), largest)
    scaled = rows / safe
    length = paddle.sqrt((scaled * scaled).sum(axis=1, keepdim=True))
    length = paddle.where(is_zero, paddle.ones_like(length), length)
    inverse = paddle.where(is_zero, paddle.zeros_like(length), 1.0 / length / safe)
    return scaled / length, inverse, (length * largest).squeeze(1)


def _through_normalisation(gradient: paddle.Tensor, unit: paddle.Tensor, inverse: paddle.Tensor) -> paddle.Tensor:
    """Gradient with respect to the rows from the gradient with respect to the unit rows."""
    return (gradient - unit * (unit * gradient).sum(axis=1, keepdim=True)) * inverse
