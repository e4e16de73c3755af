"""One step of a head. `forward` is the first half, for one micro-batch; `backward` the second, for all of them.

Read `forward` from top to bottom: each stage is a function that takes and returns frozen records. docs/head.md explains
the stages by the same names, and plsc/heads/reference.py computes the same numbers in the plainest way.

Shapes: B samples whose logits this rank computes (the global micro-batch if the head is sharded, else this rank's own),
b samples of this rank, n of the B samples whose class this rank holds, D embedding, N rows that take part in the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import numpy as np
import paddle
from paddle.nn import functional

from plsc import parallel
from plsc.heads import walk
from plsc.heads.bfloat16 import Rounding, widened
from plsc.heads.labels import MicroBatchLabels
from plsc.heads.margins import Margin, Target
from plsc.heads.queries import OtherLogits, Queries
from plsc.heads.records import Batch, HeadOutput, HeldLabels, Kept, Losses, Push, Step, Totals, classes_of
from plsc.heads.rows import Rows, inverse_norms
from plsc.heads.shard import Shard, first_row_not_finite
from plsc.heads.sinks import DenseGradient, RowSink
from plsc.heads.sub_centers import nearest_rows
from plsc.heads.walk import GradientParts, LabelPush, PlainLabels, Sums
from plsc.machine.names import class_title

_LOWEST = -1e29


def begin(
    shard: Shard,
    micro_batches: Sequence[MicroBatchLabels],
    selected: Optional[np.ndarray],
    sample_weight: float,
    key: tuple[int, int],
) -> Step:
    """Returns what the micro-batches of a step have in common.

    Args:
        shard: What this rank holds.
        micro_batches: The labels of all micro-batches.
        selected: This rank's rows that take part, ascending; None for all.
        sample_weight: The weight of each sample in the loss.
        key: The seed of the head and the number of the step, which decide how rows in bfloat16 are rounded.
    """
    of_ranks = [sum(counts) for counts in zip(*(one.counts for one in micro_batches))]
    samples = sum(of_ranks)
    # All ranks must use one chunk where they reduce their gradients chunk by chunk, also if their batches differ.
    batch = samples if shard.sharded else max(of_ranks)
    chunk = max(1, (shard.chunk or walk.chunk_rows(batch, shard.emb_dim)) // shard.sub_centers)
    if shard.weight is None:
        return Step(sample_weight, None)
    keeping = 0.0
    # Without a bound, or with a margin on all classes, the first walk changes the products in place.
    if selected is not None and shard.bounded and len(micro_batches) == 1:
        keeping = walk.kept_fraction(shard.upper - shard.lower, len(selected), shard.emb_dim, batch)
    rounding = Rounding(*key, shard.emb_dim) if shard.weight.dtype == paddle.bfloat16 else None
    return Step(sample_weight, Rows(shard, selected, chunk, keeping, rounding))


def forward(
    shard: Shard,
    step: Step,
    embedding: paddle.Tensor,
    labels: MicroBatchLabels,
    statistics: Optional[paddle.Tensor],
    with_accuracy: bool,
) -> tuple[HeadOutput, Kept]:
    """Computes the loss and the gradient of the embeddings for one micro-batch; changes nothing.

    Args:
        shard: What this rank holds.
        step: What the micro-batches have in common.
        embedding: [b, D] This rank's embeddings.
        labels: Those of all ranks, at least one.
        statistics: The margin's running statistics before this micro-batch; None without any.
        with_accuracy: Whether to count the correct samples.
    """
    batch = gather_batch(shard, step, embedding, labels)
    held = find_labels(shard, step, batch)
    changes_others = shard.margin is not None and shard.margin.changes_others
    plain_B = gather_plain(shard, batch, held) if with_accuracy or changes_others else None
    statistics = observe(shard, batch, statistics, plain_B)
    target = apply_margin(shard, batch, held, statistics)
    others = margin_on_others(shard, batch, statistics, plain_B) if changes_others else ()
    queries = make_queries(shard, batch, held, others)
    plain = plain_labels(shard, batch, plain_B) if with_accuracy else None
    sums = None if step.rows is None else walk.sweep(step.rows, queries, plain)
    smoothing = smoothing_numbers(shard, step, batch, queries, held, sums)
    totals = reduce_sums(shard, batch, sums, target_logits(shard, batch, held, target), with_accuracy, smoothing)
    losses = losses_of(shard, batch, totals)
    push = push_labels(held, target, losses)
    pending = start_embedding_gradient(shard, batch, sums, losses, held, push)
    loss, correct = reduce_loss(shard, batch, losses, totals.ahead_B)
    problem = None if math.isfinite(loss) else describe_problem(shard, batch, loss)
    output = HeadOutput(loss, own_gradient(shard, batch, pending), correct, sum(labels.counts), problem)
    return output, Kept(batch, held, push, queries, losses, statistics)


def gather_batch(shard: Shard, step: Step, embedding: paddle.Tensor, labels: MicroBatchLabels) -> Batch:
    """Gathers the embeddings of all ranks if the head is sharded, and normalises them."""
    before = sum(labels.counts[: parallel.rank()])
    own = slice(before, before + labels.counts[parallel.rank()])
    if shard.sharded:
        embedding_BD, label_B = parallel.all_gather_rows(embedding, labels.counts), labels.labels
    else:
        embedding_BD, label_B = embedding, labels.labels[own]
    is_empty = not len(label_B)
    if is_empty:
        embedding_BD = paddle.zeros([1, shard.emb_dim], embedding.dtype)
    unit_BD, inverse_B1, norm_B = normalised(embedding_BD)
    return Batch(
        own_embedding=embedding,
        own=own,
        counts=labels.counts,
        label_B=label_B,
        embedding_BD=embedding_BD,
        unit_BD=unit_BD,
        inverse_B1=inverse_B1,
        norm_B=norm_B,
        sample_weight=0.0 if is_empty else step.sample_weight,
        is_empty=is_empty,
        class_weight_B=shard.terms.weights_at(classes_of(label_B), embedding_BD.dtype),
    )


def find_labels(shard: Shard, step: Step, batch: Batch) -> Optional[HeldLabels]:
    """Looks up the rows of the labels that this rank holds, in full precision; returns None if it holds none."""
    sample = np.flatnonzero((batch.label_B >= shard.lower) & (batch.label_B < shard.upper))
    if step.rows is None or not len(sample):
        return None
    sample = sample[np.argsort(batch.label_B[sample], kind="stable")]
    row = batch.label_B[sample] - shard.lower
    row_n, sample_n = paddle.to_tensor(row), paddle.to_tensor(sample)
    direction_nD = paddle.gather(_direction(shard, batch), sample_n)
    center_nD, inverse_n1, nearest_n = widened(paddle.gather(shard.weight, row_n)), None, None
    if shard.sub_centers > 1:
        center_nD, nearest_n = nearest_rows(center_nD, direction_nD)
    if shard.margin is not None:
        inverse_n1 = inverse_norms(center_nD)
        center_nD = center_nD * inverse_n1
    plain_n = (center_nD * direction_nD).sum(axis=1)
    if shard.margin is not None:
        plain_n = paddle.clip(plain_n, -1.0, 1.0)
    elif shard.bias is not None:
        plain_n = plain_n + paddle.gather(shard.bias, row_n)
    return HeldLabels(
        sample=sample,
        place=step.rows.places(row),
        sample_n=sample_n,
        center_nD=center_nD,
        inverse_n1=inverse_n1,
        plain_n=plain_n,
        nearest_n=nearest_n,
    )


def gather_plain(shard: Shard, batch: Batch, held: Optional[HeldLabels]) -> paddle.Tensor:
    """Returns all labels' cosines without margin (logits for softmax) [B], from the ranks that hold their rows."""
    plain_B = batch.zeros_B() if held is None else _at_samples(batch, held, held.plain_n)
    return parallel.all_reduce_sum(plain_B) if shard.sharded else plain_B


def observe(
    shard: Shard, batch: Batch, statistics: Optional[paddle.Tensor], plain_B: Optional[paddle.Tensor]
) -> Optional[paddle.Tensor]:
    """Returns the margin's running statistics after this micro-batch, which are of the global batch on every rank."""
    margin = shard.margin
    if margin is None or not margin.initial_state:
        return statistics
    cosine_B = _of_global_batch(shard, batch, plain_B) if margin.changes_others else None
    return margin.observe(statistics, _of_global_batch(shard, batch, batch.norm_B), cosine_B)


def apply_margin(
    shard: Shard, batch: Batch, held: Optional[HeldLabels], statistics: Optional[paddle.Tensor]
) -> Optional[Target]:
    """Returns the labels' cosines after the margin (their logits for softmax); None if this rank holds none of them."""
    if held is None:
        return None
    if shard.margin is None:
        return Target(held.plain_n, paddle.ones_like(held.plain_n))
    norm_n, margin = paddle.gather(batch.norm_B, held.sample_n), _margin_at(shard, batch.label_B[held.sample], batch)
    return margin.target(held.plain_n, norm_n, statistics)


def target_logits(shard: Shard, batch: Batch, held: Optional[HeldLabels], target: Optional[Target]) -> paddle.Tensor:
    """Returns the logits of the labels that this rank holds, with margin [B]; 0 for the others."""
    if held is None or target is None:
        return batch.zeros_B()
    return _at_samples(batch, held, target.value * shard.scale)


def margin_on_others(
    shard: Shard, batch: Batch, statistics: Optional[paddle.Tensor], plain_B: Optional[paddle.Tensor]
) -> tuple[OtherLogits]:
    """Returns what the margin makes of the logits of the other classes."""
    assert shard.margin is not None
    target = _margin_at(shard, batch.classes, batch).target(plain_B, batch.norm_B, statistics)
    return (OtherLogits(shard.margin, shard.scale, target.value.unsqueeze(0), statistics),)


def make_queries(shard: Shard, batch: Batch, held: Optional[HeldLabels], others: tuple[OtherLogits, ...]) -> Queries:
    """Returns what the rows are multiplied with."""
    nothing = np.zeros(0, "int64")
    return Queries(
        query_BD=batch.embedding_BD if shard.margin is None else batch.unit_BD * shard.scale,
        place=nothing if held is None else held.place,
        sample=nothing if held is None else held.sample,
        others=others,
    )


def plain_labels(shard: Shard, batch: Batch, plain_B: Optional[paddle.Tensor]) -> PlainLabels:
    """Returns what the sweep compares every class with, for the accuracy."""
    assert plain_B is not None
    return PlainLabels(plain_B * shard.scale, paddle.to_tensor(batch.classes).unsqueeze(0))


def smoothing_numbers(
    shard: Shard, step: Step, batch: Batch, queries: Queries, held: Optional[HeldLabels], sums: Optional[Sums]
) -> list[paddle.Tensor]:
    """Returns what label smoothing must know of this rank's rows, for each sample; nothing without smoothing.

    Returns:
        The sum of the logits [B] of all classes but the label, and the number of classes [B].
    """
    if not shard.terms.label_smoothing:
        return []
    if step.rows is None or sums is None:
        return [batch.zeros_B(), batch.zeros_B()]
    if sums.logit_sum_B is not None:
        unlabelled_B = sums.logit_sum_B
    else:
        unlabelled_B = paddle.matmul(queries.query_BD, sums.row_sum_1D, transpose_y=True).flatten()
        if step.rows.bias is not None:
            unlabelled_B = unlabelled_B + step.rows.all_of(step.rows.bias).sum()
        if held is not None:
            unlabelled_B = unlabelled_B - _at_samples(batch, held, held.plain_n * shard.scale)
    return [unlabelled_B, paddle.full_like(unlabelled_B, step.rows.count)]


def reduce_sums(
    shard: Shard,
    batch: Batch,
    sums: Optional[Sums],
    target_B: paddle.Tensor,
    with_accuracy: bool,
    smoothing: Sequence[paddle.Tensor],
) -> Totals:
    """Brings together what the sweeps of all ranks found, in one collective.

    Args:
        shard: What this rank holds.
        batch: The samples.
        sums: What this rank's sweep found; None on a rank without rows.
        target_B: Logits of the labels this rank holds; 0 for the others.
        with_accuracy: Whether the classes ahead of the labels were counted.
        smoothing: What `smoothing_numbers` found.
    """
    zeros_B = batch.zeros_B()
    numbers = [zeros_B if sums is None else sums.total_B, target_B]
    if with_accuracy:  # inexact beyond 2^24, which is not "fewer than 5" either way
        ahead_B = None if sums is None else sums.ahead_B
        numbers.append(zeros_B if ahead_B is None else ahead_B.astype(zeros_B.dtype))
    numbers += smoothing
    smallest = 1e-37 if zeros_B.dtype == paddle.float32 else 1e-300
    if shard.bounded:
        total = paddle.stack(numbers)
        if shard.sharded:
            total = parallel.all_reduce_sum(total)
        # Exactly 0 only where there is no other class.
        others_B = paddle.where(total[0] > 0, paddle.log(paddle.clip(total[0], min=smallest)), zeros_B + _LOWEST)
    else:  # the peaks differ between ranks, so they travel with the sums
        numbers.append(zeros_B + _LOWEST if sums is None else sums.peak_B)
        of_ranks = paddle.stack(numbers).unsqueeze(0)
        if shard.sharded:
            of_ranks = parallel.start_all_gather(of_ranks[0]).wait()
        peak_B = of_ranks[:, -1].max(axis=0)
        of_ranks[:, 0] = of_ranks[:, 0] * paddle.exp(of_ranks[:, -1] - peak_B)
        total = of_ranks.sum(axis=0)
        others_B = peak_B + paddle.log(paddle.clip(total[0], min=smallest))
    first = 3 if with_accuracy else 2
    unlabelled_B, classes_B = (total[first], total[first + 1]) if smoothing else (None, None)
    return Totals(others_B, total[1], total[2] if with_accuracy else None, unlabelled_B, classes_B)


def losses_of(shard: Shard, batch: Batch, totals: Totals) -> Losses:
    """Computes loss and error of each sample without cancellation, however sure the model is.

    With x = log(sum over the others) - target, the loss is log(1 + e^x) and the label's probability minus 1 is
    -sigmoid(x).
    """
    excess_B = totals.others_B - totals.target_B
    loss_B = functional.softplus(excess_B, threshold=40)
    log_total_B, error_B, share_B = loss_B + totals.target_B, -functional.sigmoid(excess_B), None
    if totals.classes_B is not None and totals.unlabelled_B is not None:
        smoothing = shard.terms.label_smoothing
        share_B = smoothing / totals.classes_B
        loss_B = loss_B + smoothing * totals.target_B - share_B * (totals.target_B + totals.unlabelled_B)
        error_B = error_B + (smoothing - share_B)
    penalty = None if shard.margin is None else shard.margin.penalty(batch.norm_B)
    if penalty is None:
        return Losses(loss_B, log_total_B, error_B, None, share_B)
    return Losses(loss_B + penalty[0], log_total_B, error_B, penalty[1], share_B)


def push_labels(held: Optional[HeldLabels], target: Optional[Target], losses: Losses) -> Optional[Push]:
    """Computes what the loss asks of the labels' cosines; returns None if this rank holds none of the labels."""
    if held is None or target is None:
        return None
    error_n = paddle.gather(losses.error_B, held.sample_n)
    return Push(error_n * target.by_cosine, None if target.by_norm is None else error_n * target.by_norm)


def start_embedding_gradient(
    shard: Shard,
    batch: Batch,
    sums: Optional[Sums],
    losses: Losses,
    held: Optional[HeldLabels],
    push: Optional[Push],
) -> parallel.Pending:
    """Computes this rank's part of d(loss)/d(embedding) [B, D], and starts to sum it over the ranks."""
    if sums is None:
        gradient_BD = paddle.zeros_like(batch.embedding_BD)
    else:
        exponent_B = -losses.log_total_B if sums.peak_B is None else sums.peak_B - losses.log_total_B
        gradient_BD = sums.pull_BD.multiply_(paddle.exp(exponent_B).unsqueeze(1))
    of_label_B = None  # what is taken from the label's row with all others, and given back
    if losses.share_B is not None and sums is not None:
        if sums.logit_pull_BD is None:
            of_label_B = losses.share_B
        asked = sums.row_sum_1D if sums.logit_pull_BD is None else sums.logit_pull_BD
        gradient_BD.subtract_(losses.share_B.unsqueeze(1) * asked)
    by_norm_B = None
    if held is not None and push is not None:
        push_n = push.by_cosine_n
        if of_label_B is not None:
            push_n = push_n + paddle.gather(of_label_B, held.sample_n)
        gradient_BD.index_add_(held.sample_n, 0, held.center_nD * push_n.unsqueeze(1))
        if push.by_norm_n is not None:
            by_norm_B = _at_samples(batch, held, push.by_norm_n * shard.scale)
    gradient_BD.scale_(batch.sample_weight * shard.scale)
    if shard.margin is not None:
        gradient_BD = through_normalisation(gradient_BD, batch.unit_BD, batch.inverse_B1)
    penalty_by_norm_B = losses.penalty_by_norm_B
    if penalty_by_norm_B is not None and (not shard.sharded or parallel.rank() == 0):  # once in the sum over the ranks
        by_norm_B = penalty_by_norm_B if by_norm_B is None else by_norm_B + penalty_by_norm_B
    if by_norm_B is not None:
        gradient_BD.add_(batch.unit_BD * (by_norm_B * batch.sample_weight).unsqueeze(1))
    gradient_BD = batch.weighted(gradient_BD)
    return parallel.start_all_reduce_sum(gradient_BD) if shard.sharded else parallel.Pending(gradient_BD)


def own_gradient(shard: Shard, batch: Batch, pending: parallel.Pending) -> paddle.Tensor:
    """Waits for the gradient of the embeddings, and returns this rank's [b, D]."""
    gradient_BD = pending.wait()
    if shard.sharded:
        return gradient_BD[batch.own]
    return batch.own_embedding if batch.is_empty else gradient_BD


def reduce_loss(
    shard: Shard, batch: Batch, losses: Losses, ahead_B: Optional[paddle.Tensor]
) -> tuple[float, Optional[tuple[int, int]]]:
    """Returns the loss of the global batch, and its correct samples (top-1, top-5) if they were counted."""
    numbers = [batch.weighted(losses.loss_B).sum() * batch.sample_weight]
    if ahead_B is not None:
        counted = 0.0 if batch.is_empty else 1.0
        numbers += [(ahead_B < limit).astype(losses.loss_B.dtype).sum() * counted for limit in (1, 5)]
    total = paddle.stack(numbers)
    if not shard.sharded:
        total = parallel.all_reduce_sum(total)
    loss, *correct = total.tolist()
    return loss, (int(correct[0]), int(correct[1])) if correct else None


def describe_problem(shard: Shard, batch: Batch, loss: float) -> str:
    """Returns one line that says what each rank finds in its embeddings and its rows."""
    found = []
    if batch.own_embedding.shape[0]:
        bad = int(paddle.logical_not(paddle.isfinite(batch.own_embedding).all(axis=1)).sum())
        if bad:
            found.append(f"{bad} of {batch.own_embedding.shape[0]} embeddings are not finite")
    row = first_row_not_finite(shard.weight)
    if row is not None:
        found.append(f"the class centre of {class_title(shard.lower + row, shard.class_names)} is not finite")
    of_ranks = parallel.all_gather_object("; ".join(found), "the verdict on a step")
    words = [f"rank {rank}: {text}" for rank, text in enumerate(of_ranks) if text]
    return "; ".join([*words, f"the loss is {loss}"])


def backward(
    shard: Shard,
    step: Step,
    kept: Sequence[Kept],
    weight_sink: Optional[RowSink],
    bias_sink: Optional[RowSink],
    factor: float,
) -> None:
    """Computes the gradients of W and the bias over all micro-batches in one walk, and hands them to the sinks.

    Args:
        shard: What this rank holds; it has at least one row.
        step: What the micro-batches have in common.
        kept: What each of them kept.
        weight_sink: None leaves the gradient of W in its `.grad`.
        bias_sink: None leaves the gradient of the bias in its `.grad`.
        factor: The factor on the gradients.
    """
    assert shard.weight is not None and step.rows is not None
    parts = walk.join_parts([gradient_parts(shard, one, factor) for one in kept])
    reduce_sum = None if shard.sharded or parallel.world_size() == 1 else parallel.all_reduce_sum
    sink = weight_sink or DenseGradient(shard.weight)
    bias_gradient_N = walk.update(step.rows, parts, sink, reduce_sum)
    if isinstance(sink, DenseGradient):
        shard.weight.grad = sink.whole
    if bias_gradient_N is not None and shard.bias is not None:
        if reduce_sum is not None:
            reduce_sum(bias_gradient_N)
        sink = bias_sink or DenseGradient(shard.bias)
        walk.update_bias(step.rows, bias_gradient_N, sink)
        if isinstance(sink, DenseGradient):
            shard.bias.grad = sink.whole


def gradient_parts(shard: Shard, kept: Kept, factor: float) -> GradientParts:
    """Returns what `factor` times the gradient of the rows is made from, for one micro-batch."""
    batch, held, push = kept.batch, kept.held, kept.push
    weight = batch.sample_weight * factor
    label_push = None
    if held is not None and push is not None:
        push_n = push.by_cosine_n * (weight * shard.scale)
        if batch.class_weight_B is not None:
            push_n = push_n * paddle.gather(batch.class_weight_B, held.sample_n)
        radial_n = push_n
        if held.inverse_n1 is not None:
            push_n = push_n * held.inverse_n1.squeeze(1)
            radial_n = push_n * held.plain_n
        push_nD = paddle.gather(_direction(shard, batch), held.sample_n) * push_n.unsqueeze(1)
        label_push = LabelPush(push_nD, radial_n, held.nearest_n)
    query_BD, log_total_B = kept.queries.query_BD, kept.losses.log_total_B
    return GradientParts(
        queries=kept.queries,
        log_total_B=paddle.clip(log_total_B, -87.0, 87.0) if shard.bounded else log_total_B,
        sample_weight_B=batch.weighted(paddle.full([query_BD.shape[0]], weight, query_BD.dtype)),
        weighted_query_BD=batch.weighted(query_BD * weight),
        label_push=label_push,
        share_B=kept.losses.share_B,
    )


def _direction(shard: Shard, batch: Batch) -> paddle.Tensor:
    """Returns what the rows are compared with: unit embeddings, or plain ones for softmax."""
    return batch.embedding_BD if shard.margin is None else batch.unit_BD


def _margin_at(shard: Shard, labels: np.ndarray, batch: Batch) -> Margin:
    """Returns the margin of samples with these labels."""
    assert shard.margin is not None
    margins = shard.terms.margins_at(labels, batch.embedding_BD.dtype)
    return shard.margin if margins is None else shard.margin.of_classes(margins)


def _at_samples(batch: Batch, held: HeldLabels, value_n: paddle.Tensor) -> paddle.Tensor:
    """Returns the values at their samples [B]; 0 for samples whose class this rank does not hold."""
    return paddle.scatter(batch.zeros_B(), held.sample_n, value_n)


def _of_global_batch(shard: Shard, batch: Batch, value_B: Optional[paddle.Tensor]) -> Optional[paddle.Tensor]:
    """Returns the values of all ranks' samples."""
    if value_B is None or shard.sharded:
        return value_B
    return parallel.all_gather_rows(value_B[: len(batch.label_B)], batch.counts)


def normalised(rows: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """Returns unit rows [N, D], inverse norms [N, 1] and norms [N]; a zero row stays zero, with inverse 0.

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


def through_normalisation(gradient: paddle.Tensor, unit: paddle.Tensor, inverse: paddle.Tensor) -> paddle.Tensor:
    """Returns the gradient with respect to the rows from the gradient with respect to the unit rows."""
    return (gradient - unit * (unit * gradient).sum(axis=1, keepdim=True)) * inverse
