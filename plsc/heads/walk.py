"""The two walks of a step over the rows of a shard, in chunks that stay in cache.

`sweep` is the first walk: it gives each sample's softmax sum, and the pull of all rows on its embedding. `update` is
the second: once the step is known to be good, it computes the logits again and hands the gradient of each chunk to a
sink, which moves the rows. Only one chunk of the logits, of the normalised rows and of their gradient exists at a time.

A walk brings two sides together: `Rows` says what is walked over, `Queries` what each row is multiplied with. Nothing
here knows of other ranks.

Shapes: B samples, D embedding, N classes walked over, K classes of a chunk, C rows of a chunk (as many, or k times as
many with sub-centres), n samples whose class is among the rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import numpy as np
import paddle

from plsc import parallel
from plsc.heads.products import Products
from plsc.heads.queries import Queries, join_queries
from plsc.heads.rows import Rows
from plsc.heads.sinks import RowSink
from plsc.heads.sub_centers import Nearest, nearest_of
from plsc.heads.terms import sum_of_rows, unfiltered

_NO_LOGIT = -1e30  # stands for the label's logit, which the walks leave out
_LOWEST_PEAK = -1e29
# A walk starts about 30 operators for each chunk, which takes the processor 0.3 ms. On 256 MB of data they keep a GPU
# busy for longer: five passes take 0.6 ms at 2 TB/s. This is an estimate; it was not measured on a GPU.
_GPU_BYTES = 256 << 20
_CHUNK_BYTES = 16 << 20  # of a chunk's data on a CPU; half as much is a few percent slower
_KEPT_SHARE = 16
_REDUCED_BYTES = 32 << 20  # of the gradient that the ranks sum at once; the latency of a sum is small against it


def chunk_rows(batch: int, emb_dim: int, on_cpu: Optional[bool] = None) -> int:
    """Returns how many rows a chunk has: a power of two, so that a chunk's data stay in a CPU's cache or fill a GPU.

    Args:
        batch: B.
        emb_dim: D.
        on_cpu: None asks the device of this process.
    """
    a_row = 4 * (3 * emb_dim + 2 * batch)
    rows = (_CHUNK_BYTES if (parallel.on_cpu() if on_cpu is None else on_cpu) else _GPU_BYTES) // a_row
    return 1 << max(7, min(16, rows.bit_length() - 1))


def kept_fraction(rows: int, selected: int, emb_dim: int, batch: int) -> float:
    """Returns the fraction of the products that a sampled step keeps, so as to compute them once instead of twice.

    Args:
        rows: The rows of the shard; the kept products take at most a sixteenth of their bytes.
        selected: The rows that take part.
        emb_dim: D.
        batch: B.
    """
    return min(1.0, rows * emb_dim / (_KEPT_SHARE * max(1, selected * batch)))


@dataclass(frozen=True)
class PlainLabels:
    """The labels as the accuracy sees them.

    Attributes:
        logit_B: Logits of the labels without a margin.
        class_1B: [1, B] The labels.
    """

    logit_B: paddle.Tensor
    class_1B: paddle.Tensor


@dataclass(frozen=True)
class Sums:
    """What `sweep` finds, without the labelled classes.

    Attributes:
        total_B: The sum of exp(logit - peak).
        peak_B: The largest logit; None where the logits are bounded, and nothing is subtracted from them.
        pull_BD: The sum of exp(logit - peak) * d(logit)/d(row . query) * row.
        ahead_B: The number of rows ahead of the label, if they were counted.
        row_sum_1D: [1, D] The sum of all rows, labelled or not, for label smoothing; None without it, or where the
            logits are not products of rows and queries alone.
        logit_sum_B: The sum of the logits, for label smoothing in that case.
        logit_pull_BD: The sum of d(logit)/d(row . query) * row, in that case.
    """

    total_B: paddle.Tensor
    peak_B: Optional[paddle.Tensor]
    pull_BD: paddle.Tensor
    ahead_B: Optional[paddle.Tensor]
    row_sum_1D: Optional[paddle.Tensor]
    logit_sum_B: Optional[paddle.Tensor] = None
    logit_pull_BD: Optional[paddle.Tensor] = None


def sweep(rows: Rows, queries: Queries, plain: Optional[PlainLabels] = None) -> Sums:
    """Walks over the rows for the first time: adds up the softmax sums of all samples and the pull on their embeddings.

    Args:
        rows: What is walked over.
        queries: What the rows are multiplied with.
        plain: If given, the rows ahead of each label are counted: those with a larger logit, or with an equal one and a
            smaller class.
    """
    walk = _Walk(rows, queries)
    found = rows.shard.workers.map(lambda numbers: _sweep_chunks(walk, plain, numbers), rows.chunks)
    return functools.reduce(_added, found)


@paddle.no_grad()
def _sweep_chunks(walk: _Walk, plain: Optional[PlainLabels], numbers: Sequence[int]) -> Sums:
    """Sweeps over some of the chunks, in one thread."""
    rows, (batch, emb_dim), dtype = walk.rows, walk.queries.query_BD.shape, walk.queries.query_BD.dtype
    total_1B, pull_BD = paddle.zeros([1, batch], dtype), paddle.zeros([batch, emb_dim], dtype)
    peak_1B = None if rows.shard.bounded else paddle.full([1, batch], _LOWEST_PEAK, dtype)
    ahead_B = None if plain is None else paddle.zeros([batch], "int64")
    ones_1K = paddle.ones([1, rows.chunk], dtype)
    is_smooth, is_linear = bool(rows.shard.terms.label_smoothing), walk.is_linear
    row_sum_1D = paddle.zeros([1, emb_dim], dtype) if is_smooth and is_linear else None
    logits = _LogitSums(walk, ones_1K) if is_smooth and not is_linear else None
    for number in numbers:
        weight_CD = rows.of(rows.weight, number)
        inverse_C1 = rows.inverse_norms(number, weight_CD)
        inverse_CB = walk.for_each_sample(inverse_C1)
        nearest, logits_KB, slope_KB = walk.logits(number, weight_CD, inverse_CB)
        if row_sum_1D is not None:
            row_sum_1D.add_(sum_of_rows(weight_CD, inverse_C1))
        if logits is not None:
            logits.add(_Chunk(number, weight_CD), nearest, logits_KB, slope_KB, inverse_CB=inverse_CB)
        if ahead_B is not None and plain is not None:
            ahead_B.add_(walk.count_ahead(number, nearest.product_KB, plain))
        kept_KB = walk.unfiltered(nearest.product_KB, logits_KB)
        if peak_1B is not None:
            walk.without_labels(number, logits_KB, _NO_LOGIT)
            _without_filtered(logits_KB, kept_KB)
            higher_1B = paddle.maximum(peak_1B, logits_KB.max(axis=0, keepdim=True))
            fade_1B, peak_1B = paddle.exp(peak_1B - higher_1B), higher_1B
            total_1B.multiply_(fade_1B)
            pull_BD.multiply_(fade_1B.reshape([-1, 1]))
            logits_KB.subtract_(peak_1B)
        exp_KB = paddle.exp(logits_KB) if rows.keep(number, nearest.product_CB) else logits_KB.exp_()
        walk.without_labels(number, exp_KB, 0.0)
        if kept_KB is not None:
            exp_KB.multiply_(kept_KB)
        total_1B.add_(paddle.matmul(ones_1K[:, : exp_KB.shape[0]], exp_KB))
        if slope_KB is not None:
            exp_KB.multiply_(slope_KB)
        walk.products.add_pull(pull_BD, nearest.spread(exp_KB), weight_CD, inverse_CB)
    peak_B = None if peak_1B is None else peak_1B.flatten()
    sums = Sums(total_1B.flatten(), peak_B, pull_BD, ahead_B, row_sum_1D)
    return sums if logits is None else replace(sums, logit_sum_B=logits.sum_1B.flatten(), logit_pull_BD=logits.pull_BD)


class _LogitSums:
    """The sums of all logits but the labels', and of what they pull with, where the logits are not linear in the rows.

    They are for label smoothing, which asks each class for a share of the probability. The pull takes one more product.

    Attributes:
        sum_1B: [1, B] The sum of the logits.
        pull_BD: The sum of d(logit)/d(row . query) * row.
    """

    def __init__(self, walk: _Walk, ones_1K: paddle.Tensor) -> None:
        self._walk, self._ones_1K = walk, ones_1K
        query_BD = walk.queries.query_BD
        self.sum_1B = paddle.zeros([1, query_BD.shape[0]], query_BD.dtype)
        self.pull_BD = paddle.zeros_like(query_BD)

    def add(
        self,
        chunk: _Chunk,
        nearest: Nearest,
        logits_KB: paddle.Tensor,
        slope_KB: Optional[paddle.Tensor],
        *,
        inverse_CB: Optional[paddle.Tensor],
    ) -> None:
        """Adds those of a chunk, and leaves what it is given as it is."""
        others_KB = self._walk.without_labels(chunk.number, logits_KB.clone(), 0.0)
        self.sum_1B.add_(paddle.matmul(self._ones_1K[:, : others_KB.shape[0]], others_KB))
        slope_KB = paddle.ones_like(logits_KB) if slope_KB is None else slope_KB.clone()
        self._walk.without_labels(chunk.number, slope_KB, 0.0)
        self._walk.products.add_pull(self.pull_BD, nearest.spread(slope_KB), chunk.weight_CD, inverse_CB)


def _added(first: Sums, other: Sums) -> Sums:
    """Adds the sums of other chunks to `first`, whose tensors are overwritten."""
    peak_B = None
    if first.peak_B is not None:
        peak_B = paddle.maximum(first.peak_B, other.peak_B)
        for sums in (first, other):
            fade_B = paddle.exp(sums.peak_B - peak_B)
            sums.total_B.multiply_(fade_B)
            sums.pull_BD.multiply_(fade_B.unsqueeze(1))
    first.total_B.add_(other.total_B)
    first.pull_BD.add_(other.pull_BD)
    if first.ahead_B is not None:
        first.ahead_B.add_(other.ahead_B)
    for mine, theirs in (
        (first.row_sum_1D, other.row_sum_1D),
        (first.logit_sum_B, other.logit_sum_B),
        (first.logit_pull_BD, other.logit_pull_BD),
    ):
        if mine is not None:
            mine.add_(theirs)
    return replace(first, peak_B=peak_B)


@dataclass(frozen=True)
class LabelPush:
    """The labelled rows' part of their gradient, in the order of `Queries.place`.

    Attributes:
        push_nD: The part itself.
        radial_n: The part times the unit row; the labels' part of the bias's gradient where rows are not normalised.
        nearest_n: Which of the rows of its class each of them is; None where a class has one row.
    """

    push_nD: paddle.Tensor
    radial_n: paddle.Tensor
    nearest_n: Optional[paddle.Tensor] = None


@dataclass(frozen=True)
class GradientParts:
    """What `update` makes the gradient of the rows from.

    Attributes:
        queries: The queries of the first walk.
        log_total_B: The logarithm of the whole denominator of the softmax.
        sample_weight_B: The weight of each sample in the loss.
        weighted_query_BD: The queries times `sample_weight_B`.
        label_push: None if no sample's class is among the rows.
        share_B: What label smoothing asks of each other class as its probability; None without it.
    """

    queries: Queries
    log_total_B: paddle.Tensor
    sample_weight_B: paddle.Tensor
    weighted_query_BD: paddle.Tensor
    label_push: Optional[LabelPush]
    share_B: Optional[paddle.Tensor] = None


def join_parts(micro_batches: Sequence[GradientParts]) -> GradientParts:
    """Puts several micro-batches, which were swept over the same rows, one after the other."""
    if len(micro_batches) == 1:
        return micro_batches[0]
    pushes = [one.label_push for one in micro_batches if one.label_push is not None]
    push, shares = None, [one.share_B for one in micro_batches]
    if pushes:
        nearest = [one.nearest_n for one in pushes if one.nearest_n is not None]
        push = LabelPush(
            paddle.concat([one.push_nD for one in pushes]),
            paddle.concat([one.radial_n for one in pushes]),
            paddle.concat(nearest) if nearest else None,
        )
    return GradientParts(
        queries=join_queries([one.queries for one in micro_batches]),
        log_total_B=paddle.concat([one.log_total_B for one in micro_batches]),
        sample_weight_B=paddle.concat([one.sample_weight_B for one in micro_batches]),
        weighted_query_BD=paddle.concat([one.weighted_query_BD for one in micro_batches]),
        label_push=push,
        share_B=None if shares[0] is None else paddle.concat(shares),
    )


ReduceSum = Callable[[paddle.Tensor], Any]


def update(
    rows: Rows, parts: GradientParts, sink: RowSink, reduce_sum: Optional[ReduceSum] = None
) -> Optional[paddle.Tensor]:
    """Walks over the rows for the second time: computes their gradient and hands it to the sink, chunk by chunk.

    Args:
        rows: The rows that were swept.
        parts: What the gradient is made from.
        sink: What receives it.
        reduce_sum: Sums a gradient over the ranks in place, where each rank has computed its own batch only. The chunk
            must be the same on all ranks then.

    Returns:
        The gradient of the bias [N]; None without a bias.
    """
    sink.begin()
    rows.prepare_rounding()
    walk = _Walk(rows, parts.queries)
    parts = replace(parts, label_push=walk.in_order(parts.label_push))
    if rows.shard.bounded:  # softmax = exp(logit) / total, with the division moved to the samples
        fade_B = paddle.exp(-parts.log_total_B)
        parts = replace(
            parts,
            weighted_query_BD=parts.weighted_query_BD * fade_B.unsqueeze(1),
            sample_weight_B=parts.sample_weight_B * fade_B,
            share_B=None if parts.share_B is None else parts.share_B * paddle.exp(parts.log_total_B),
        )

    if reduce_sum is None:
        found = _in_threads(rows, range(rows.chunks), lambda number: _update_chunk(walk, parts, sink, number))
    else:
        found = _update_summed(walk, parts, sink, reduce_sum)
    return paddle.concat(found).flatten() if rows.bias is not None else None


def _in_threads(rows: Rows, numbers: range, function: Callable[[int], Optional[paddle.Tensor]]) -> list[Any]:
    """Returns what `function` returns for the number of each chunk; the threads share the work."""

    def of_stretch(places: Sequence[int]) -> list[Any]:
        with paddle.no_grad():  # each thread has this setting for itself
            return [function(numbers[place]) for place in places]

    return [one for stretch in rows.shard.workers.map(of_stretch, len(numbers)) for one in stretch]


def _update_chunk(walk: _Walk, parts: GradientParts, sink: RowSink, number: int) -> paddle.Tensor:
    """Hands the gradient of one chunk to the sink; returns the bias's gradient [C, 1] where rows are not normalised."""
    rows = walk.rows
    chunk = _Chunk(number, rows.of(rows.weight, number))
    buffers = [rows.of(buffer, number) for buffer in sink.buffers]
    gradient_CD = buffers[0] if sink.in_place else paddle.zeros_like(chunk.weight_CD)
    momentum = sink.momentum if sink.in_place else 0.0
    radial_C1 = _compute_gradient(walk, parts, chunk, gradient_CD, momentum=momentum, decay=sink.decay)
    _hand_over(rows, chunk, sink, gradient_CD, buffers)
    return radial_C1


def _update_summed(walk: _Walk, parts: GradientParts, sink: RowSink, reduce_sum: ReduceSum) -> list[paddle.Tensor]:
    """Does what `_update_chunk` does for all chunks, with gradients that are summed over the ranks.

    The gradients of some chunks are computed, summed in one reduction, and handed to the sink, before those of the next
    chunks. The decay and the momentum, which must not be summed, are added afterwards.
    """
    rows, emb_dim = walk.rows, int(walk.rows.weight.shape[-1])
    chunk = rows.chunk * rows.sub_centers
    size = max(1, _REDUCED_BYTES // (4 * chunk * emb_dim))
    memory_RD = paddle.empty([min(size * chunk, rows.count * rows.sub_centers), emb_dim], parts.weighted_query_BD.dtype)

    def gradient_of(number: int) -> paddle.Tensor:
        first = number % size * chunk
        return memory_RD[first : first + rows.size(number)]

    def compute(number: int) -> paddle.Tensor:
        chunk = _Chunk(number, rows.of(rows.weight, number))
        return _compute_gradient(walk, parts, chunk, gradient_of(number).zero_(), momentum=0.0, decay=0.0)

    def apply(number: int) -> None:
        chunk, gradient_CD = _Chunk(number, rows.of(rows.weight, number)), gradient_of(number)
        if sink.decay:
            gradient_CD.add_(paddle.scale(chunk.weight_CD, sink.decay))
        _hand_over(rows, chunk, sink, gradient_CD, [rows.of(buffer, number) for buffer in sink.buffers])

    found: list[paddle.Tensor] = []
    for first in range(0, rows.chunks, size):
        numbers = range(first, min(first + size, rows.chunks))
        found += _in_threads(rows, numbers, compute)
        reduce_sum(memory_RD[: sum(map(rows.size, numbers))])
        _in_threads(rows, numbers, apply)
    return found


@dataclass(frozen=True)
class _Chunk:
    """A chunk of a walk: its number and its rows."""

    number: int
    weight_CD: paddle.Tensor


def _compute_gradient(
    walk: _Walk, parts: GradientParts, chunk: _Chunk, gradient_CD: paddle.Tensor, *, momentum: float, decay: float
) -> paddle.Tensor:
    """Computes momentum * gradient + the gradient of a chunk's rows + decay * rows into `gradient_CD`.

    Returns:
        The bias's gradient [C, 1] where rows are not normalised.
    """
    inverse_C1 = walk.rows.inverse_norms(chunk.number, chunk.weight_CD)
    inverse_CB = walk.for_each_sample(inverse_C1)
    product_CB, softmax_CB = _softmax(walk, chunk.number, parts, chunk.weight_CD, inverse_CB)
    # What a unit row loses because its length may not change; the bias's gradient is the same sum without the products.
    radial_CB = softmax_CB if inverse_C1 is None else product_CB * softmax_CB  # the product may be used again
    radial_C1 = paddle.matmul(radial_CB, parts.sample_weight_B.unsqueeze(1))
    if inverse_C1 is not None:
        radial_C1.multiply_(inverse_C1)
    walk.products.add_gradient(gradient_CD, momentum, softmax_CB, parts.weighted_query_BD, inverse_CB)
    walk.add_label_push(chunk.number, parts.label_push, gradient_CD, radial_C1)
    # Along the rows themselves: less the radial part, plus the decay.
    if inverse_C1 is not None:
        along_CD = paddle.tile(decay - radial_C1 * inverse_C1, [1, chunk.weight_CD.shape[1]])
        gradient_CD.add_(along_CD.multiply_(chunk.weight_CD))
    elif decay:
        gradient_CD.add_(paddle.scale(chunk.weight_CD, decay))
    return radial_C1


def _hand_over(
    rows: Rows, chunk: _Chunk, sink: RowSink, gradient_CD: paddle.Tensor, buffers: Sequence[paddle.Tensor]
) -> None:
    """Hands a chunk's gradient to the sink, and puts back the rows and the buffers that it changed."""
    sink.apply(chunk.weight_CD, gradient_CD, buffers)
    if sink.moves_rows:
        rows.put_back(rows.weight, chunk.number, chunk.weight_CD)
    for place, (whole, buffer_CD) in enumerate(zip(sink.buffers, buffers), 1):
        rows.put_back(whole, chunk.number, buffer_CD, place)


def _softmax(
    walk: _Walk, number: int, parts: GradientParts, weight_CD: paddle.Tensor, inverse_CB: Optional[paddle.Tensor]
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Returns row . query of a chunk, and its softmax times d(logit)/d(row . query), which is 0 for the labels.

    What label smoothing asks for is subtracted from the softmax.
    """
    nearest, logits_KB, slope_KB = walk.logits(number, weight_CD, inverse_CB)
    log_total_1B = parts.log_total_B.unsqueeze(0)  # where logits are bounded, `update` has divided the samples by it
    kept_KB = walk.unfiltered(nearest.product_KB, logits_KB, log_total_1B)
    if walk.rows.shard.bounded:
        softmax_KB = paddle.exp(logits_KB)
    else:
        softmax_KB = _without_filtered(logits_KB - log_total_1B, kept_KB).exp_()
    if kept_KB is not None:
        softmax_KB.multiply_(kept_KB)
    if parts.share_B is not None:
        softmax_KB.subtract_(parts.share_B.unsqueeze(0))
    walk.without_labels(number, softmax_KB, 0.0)
    if slope_KB is not None:
        softmax_KB.multiply_(slope_KB)
    return nearest.product_CB, nearest.spread(softmax_KB)


def _without_filtered(logits_KB: paddle.Tensor, kept_KB: Optional[paddle.Tensor]) -> paddle.Tensor:
    """Makes the logits that the filter takes out so low that no maximum sees them, and no exponential overflows."""
    return logits_KB if kept_KB is None else logits_KB.add_((kept_KB - 1.0) * -_NO_LOGIT)


def update_bias(rows: Rows, gradient_N: paddle.Tensor, sink: RowSink) -> None:
    """Hands the gradient of the bias, which `update` returned, to the sink."""
    assert rows.bias is not None
    bias_N = rows.all_of(rows.bias)
    buffers = [rows.all_of(buffer) for buffer in sink.buffers]
    if sink.decay:
        gradient_N.add_(bias_N * sink.decay)
    if sink.in_place:
        gradient_N = buffers[0].scale_(sink.momentum).add_(gradient_N)
    sink.begin()
    sink.apply(bias_N, gradient_N, buffers)
    if sink.moves_rows:
        rows.put_all_back(rows.bias, bias_N)
    for whole, buffer_N in zip(sink.buffers, buffers):
        rows.put_all_back(whole, buffer_N)


class _Walk:
    """Rows and queries together: their logits, and where the labels are in each chunk."""

    def __init__(self, rows: Rows, queries: Queries) -> None:
        self.rows, self.queries = rows, queries
        batch = int(queries.query_BD.shape[0])
        self.products = Products(rows.shard.precision, max(rows.chunk, batch), rows.shard.simulate)
        self._order = np.argsort(queries.place, kind="stable")
        place, sample = queries.place[self._order], queries.sample[self._order]
        self._first_label = np.searchsorted(place, np.arange(rows.chunks + 1) * rows.chunk).tolist()
        self._label_row = paddle.to_tensor(place % rows.chunk)  # without sub-centres; else the class in its chunk
        self._label_entry = paddle.to_tensor(place % rows.chunk * batch + sample)

    @property
    def is_linear(self) -> bool:
        """Whether the logits of the other classes are the products of rows and queries, and nothing else."""
        return self.rows.sub_centers == 1 and not self.queries.others

    def for_each_sample(self, inverse_C1: Optional[paddle.Tensor]) -> Optional[paddle.Tensor]:
        """Returns the inverse norms of a chunk's rows, once for each sample, as `Products` wants them."""
        return None if inverse_C1 is None else paddle.tile(inverse_C1, [1, self.queries.query_BD.shape[0]])

    def logits(
        self, number: int, weight_CD: paddle.Tensor, inverse_CB: Optional[paddle.Tensor]
    ) -> tuple[Nearest, paddle.Tensor, Optional[paddle.Tensor]]:
        """Returns row . query, the logits of the classes, and their derivative by row . query of the nearest row.

        Where nothing changes the logits, they are the same tensor as row . query, and the derivative is None.
        """
        product_CB = self.rows.kept.get(number)
        if product_CB is None:
            product_CB = self.products.logits(weight_CD, self.queries.query_BD, inverse_CB)
            if self.rows.bias is not None:
                product_CB.add_(self.rows.of(self.rows.bias, number).unsqueeze(1))
        nearest = nearest_of(product_CB, self.rows.sub_centers)
        logits_KB, slope_KB = self.queries.other_logits(nearest.product_KB)
        return nearest, logits_KB, slope_KB

    def unfiltered(
        self, product_KB: paddle.Tensor, logits_KB: paddle.Tensor, log_total_1B: Optional[paddle.Tensor] = None
    ) -> Optional[paddle.Tensor]:
        """Returns 0 for the entries that the filter of other classes takes out, else 1; None without a filter."""
        shard = self.rows.shard
        if not shard.terms.interclass_filter:
            return None
        return unfiltered(product_KB, shard.terms.interclass_filter * shard.scale, logits_KB, log_total_1B)

    def without_labels(self, number: int, matrix_KB: paddle.Tensor, value: float) -> paddle.Tensor:
        """Overwrites the entries of the labels with `value`.

        That the label's logit is very low is not enough: on a CPU Paddle's exponential never gets below 2.9e-39, which
        is much where all sums are tiny, because the embeddings are opposite to all rows.
        """
        labels = self._labels_of(number)
        if labels.start < labels.stop:
            values_n = paddle.full([labels.stop - labels.start], value, matrix_KB.dtype)
            matrix_KB.reshape([-1]).scatter_(self._label_entry[labels], values_n)
        return matrix_KB

    def count_ahead(self, number: int, product_KB: paddle.Tensor, plain: PlainLabels) -> paddle.Tensor:
        """Returns how many classes of a chunk are ahead of each label [B]; overwrites the products of the labels."""
        self.without_labels(number, product_KB, _NO_LOGIT)
        smaller_KB = self.rows.classes(number).unsqueeze(1) < plain.class_1B
        tied_KB = paddle.logical_and(product_KB == plain.logit_B, smaller_KB)
        return paddle.logical_or(product_KB > plain.logit_B, tied_KB).astype("int64").sum(axis=0)

    def in_order(self, push: Optional[LabelPush]) -> Optional[LabelPush]:
        """Sorts the labels' part by the rows' place in the walk."""
        if push is None:
            return None
        order = paddle.to_tensor(self._order)
        nearest_n = None if push.nearest_n is None else paddle.gather(push.nearest_n, order)
        return LabelPush(paddle.gather(push.push_nD, order), paddle.gather(push.radial_n, order), nearest_n)

    def add_label_push(
        self, number: int, push: Optional[LabelPush], gradient_CD: paddle.Tensor, radial_C1: paddle.Tensor
    ) -> None:
        """Adds the labels' part, sorted by `in_order`, to the gradient of a chunk and to its radial part."""
        labels = self._labels_of(number)
        if push is not None and labels.start < labels.stop:
            row_n = self._label_row[labels]
            if push.nearest_n is not None:
                row_n = row_n * self.rows.sub_centers + push.nearest_n[labels]
            radial_C1.index_add_(row_n, 0, push.radial_n[labels].unsqueeze(1))
            gradient_CD.index_add_(row_n, 0, push.push_nD[labels])

    def _labels_of(self, number: int) -> slice:
        return slice(self._first_label[number], self._first_label[number + 1])
