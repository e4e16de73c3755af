"""The walk over the rows of a shard in chunks that stay in cache: softmax sums, gradients and row updates.

It is done twice a step. `sweep` gives each sample's softmax sum and what pulls its embedding; `update`, once the step is
known to be good, computes the logits again and moves the rows. Neither the logits of a shard, nor a normalised copy of
its rows, nor their gradient is ever held: only a chunk of each. Nothing here knows of ranks,
only of the device.

Shapes: B samples, D embedding, N rows walked, C rows of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Protocol

import numpy as np
import paddle

from plsc import parallel
from plsc.heads.products import Products
from plsc.heads.workers import Workers

_NO_LOGIT = -1e30  # of a labelled class, which is treated apart
_LOWEST_PEAK = -1e29
_L2_BYTES = 2 << 20
_GPU_BYTES = 256 << 20

Others = Callable[[paddle.Tensor], "tuple[paddle.Tensor, paddle.Tensor]"]


class RowSink(Protocol):
    """What receives the gradient of the rows, chunk by chunk (see `plsc.optim.RowUpdate`)."""

    momentum: float
    decay: float
    buffer: Optional[paddle.Tensor]  # like the matrix: its momentum, or its whole gradient
    in_place: bool  # whether a chunk's gradient is added to `momentum * buffer` at once
    moves_rows: bool

    def apply(
        self, rows: paddle.Tensor, gradient: paddle.Tensor, buffer: Optional[paddle.Tensor], scratch: paddle.Tensor
    ) -> None:
        """Moves `rows`, in place; with `in_place`, `gradient` is `buffer`. `scratch` may be overwritten."""


class DenseGradient:
    """The sink of optimizers that work on the whole matrix: collects its gradient in `buffer`."""

    momentum, decay, in_place, moves_rows = 0.0, 0.0, True, False

    def __init__(self, parameter: paddle.Tensor) -> None:
        self.buffer = paddle.zeros_like(parameter)  # rows that take no part have a gradient of 0

    def apply(
        self, rows: paddle.Tensor, gradient: paddle.Tensor, buffer: Optional[paddle.Tensor], scratch: paddle.Tensor
    ) -> None:
        """The gradient is where it belongs, unless it was summed elsewhere."""
        if gradient is not buffer:
            paddle.assign(gradient, buffer)


class SquareSum:
    """A sink that only adds up the squares of the gradient: for its norm, before anything moves."""

    momentum, decay, buffer, in_place, moves_rows = 0.0, 0.0, None, False, False

    def __init__(self) -> None:
        self._parts: list[paddle.Tensor] = []

    def apply(
        self, rows: paddle.Tensor, gradient: paddle.Tensor, buffer: Optional[paddle.Tensor], scratch: paddle.Tensor
    ) -> None:
        """Takes in a chunk; threads may call it at the same time."""
        self._parts.append(gradient.multiply_(gradient).sum())

    def total(self) -> float:
        """The sum, the same whatever the order of the chunks."""
        return math.fsum(paddle.stack(self._parts).tolist()) if self._parts else 0.0


@dataclass
class Labels:
    """The labelled classes among the rows walked.

    Attributes:
        place: [n] ascending, positions in the walk.
        sample: [n], which of the B samples; each sample at most once.
    """

    place: np.ndarray
    sample: np.ndarray


@dataclass
class Sums:
    """What `sweep` found, without the labelled classes.

    Attributes:
        total_B: sum of exp(logit - peak).
        peak_B: largest logit; None when the logits are bounded and none was taken off.
        pull_BD: sum of exp(logit - peak) * d(logit)/d(row . query) * row.
        ahead_B: rows whose plain logit is ahead of the label's, when asked for.
    """

    total_B: paddle.Tensor
    peak_B: Optional[paddle.Tensor]
    pull_BD: paddle.Tensor
    ahead_B: Optional[paddle.Tensor]


def chunk_rows(batch: int, emb_dim: int, on_cpu: Optional[bool] = None) -> int:
    """Rows of a chunk: a power of two, so that their gradients, momentum and logits stay in cache, or fill a GPU."""
    a_row = 4 * (3 * emb_dim + 2 * batch)
    rows = (4 * _L2_BYTES if (parallel.on_cpu() if on_cpu is None else on_cpu) else _GPU_BYTES) // a_row
    return 1 << max(7, min(16, rows.bit_length() - 1))


@dataclass
class RowGradient:
    """What `Walk.update` makes the rows' gradient of.

    Attributes:
        log_total_B: logarithm of the softmax's whole denominator.
        share_B: weight of each sample in the loss.
        query_BD: derivative of (row . query) by the row, times `share_B`: unit embeddings times scale, or embeddings.
        label_push_nD: the labelled rows' part of their gradient, in the order of the walk's labels.
        label_radial_n: the same, times the unit row; their part of the bias's gradient where rows are not normalised.
    """

    log_total_B: paddle.Tensor
    share_B: paddle.Tensor
    query_BD: paddle.Tensor
    label_push_nD: paddle.Tensor
    label_radial_n: paddle.Tensor


@dataclass
class _ChunkGradient:
    """What `Walk.update` gives each chunk: a `RowGradient` with the softmax's division moved to where it costs least."""

    subtract_1B: Optional[paddle.Tensor]
    share_B1: paddle.Tensor
    query_BD: paddle.Tensor
    label_push_nD: paddle.Tensor
    label_radial_n1: paddle.Tensor


class Walk:
    """One step's walk over the rows of a shard, or over `rows` of them.

    Args:
        weight: [shard, D] class centres.
        bias: [shard] or None.
        rows: [N] ascending, the rows that take part; None for all.
        query: [B, D], what the rows are multiplied with: unit embeddings times the scale, or plain embeddings.
        normalised: whether the rows are taken as unit vectors. Rows shorter than 1e-9 count as zero rows (cosine 0, no
            gradient).
        labels: the labelled classes; they are left out, the caller sees to them.
        others: (cosine [C, B]) -> (logit, d(logit)/d(cosine)); None where the product is the logit.
        bounded: the exponentials of the logits, and their sums, are known to fit in the dtype.
        chunk: C.
    """

    def __init__(
        self,
        weight: paddle.Tensor,
        bias: Optional[paddle.Tensor],
        rows: Optional[np.ndarray],
        query: paddle.Tensor,
        normalised: bool,
        labels: Labels,
        others: Optional[Others],
        bounded: bool,
        chunk: int,
        products: Products,
        workers: Workers,
    ) -> None:
        self.weight, self.bias, self.query, self.normalised = weight, bias, query, normalised
        self.rows, self.labels = rows, labels
        self.size = int(weight.shape[0]) if rows is None else len(rows)
        self._rows = None if rows is None else paddle.to_tensor(rows)
        self._others, self._bounded, self._chunk = others, bounded, chunk
        self._products, self._workers = products, workers
        self._chunks = -(-self.size // chunk)
        self._first_label = np.searchsorted(labels.place, np.arange(self._chunks + 1) * chunk)
        batch = int(query.shape[0])
        self._label_place = paddle.to_tensor(labels.place % chunk)
        self._label_entry = paddle.to_tensor(labels.place % chunk * batch + labels.sample)
        self._no_logit = paddle.full([len(labels.place)], _NO_LOGIT, query.dtype)
        self._nothing = paddle.zeros([len(labels.place)], query.dtype)
        self._ones = paddle.ones([1, chunk], query.dtype)
        self._inverse: list[Optional[paddle.Tensor]] = [None] * self._chunks

    def sweep(self, plain_B: Optional[paddle.Tensor] = None, ties: Optional[Callable] = None) -> Sums:
        """The softmax sums and the embeddings' pull over all rows.

        Args:
            plain_B: each label's logit without a margin; given, the rows ahead of it are counted.
            ties: (first, last position in the walk) -> bool [C, B], whether a row with an equal logit is ahead.
        """
        parts = self._workers.map(lambda share: self._sweep_share(share, plain_B, ties), self._chunks)
        first = parts[0]
        for other in parts[1:]:
            if first.peak_B is not None:
                peak = paddle.maximum(first.peak_B, other.peak_B)
                for part in (first, other):
                    fade = paddle.exp(part.peak_B - peak)
                    part.total_B.multiply_(fade)
                    part.pull_BD.multiply_(fade.unsqueeze(1))
                first.peak_B = peak
            first.total_B.add_(other.total_B)
            first.pull_BD.add_(other.pull_BD)
            if first.ahead_B is not None:
                first.ahead_B.add_(other.ahead_B)
        return first

    @paddle.no_grad()
    def _sweep_share(self, share: Sequence[int], plain_B: Optional[paddle.Tensor], ties: Optional[Callable]) -> Sums:
        batch, emb_dim, dtype = int(self.query.shape[0]), int(self.query.shape[1]), self.query.dtype
        total_1B, pull_BD = paddle.zeros([1, batch], dtype), paddle.zeros([batch, emb_dim], dtype)
        peak_1B = None if self._bounded else paddle.full([1, batch], _LOWEST_PEAK, dtype)
        ahead_B = None if plain_B is None else paddle.zeros([batch], "int64")
        scratch = self._scratch()
        for number in share:
            weight_CD = self._rows_of(self.weight, number)
            inverse_C1 = self._inverse[number] = _inverse_norms(weight_CD, scratch) if self.normalised else None
            product_CB, logits_CB, slope_CB = self._logits(number, weight_CD, inverse_C1)
            if ahead_B is not None:
                ahead_B.add_(self._ahead(number, product_CB, plain_B, ties))
            if peak_1B is not None:
                higher_1B = paddle.maximum(peak_1B, logits_CB.max(axis=0, keepdim=True))
                fade_1B, peak_1B = paddle.exp(peak_1B - higher_1B), higher_1B
                total_1B.multiply_(fade_1B)
                pull_BD.multiply_(fade_1B.reshape([-1, 1]))
                logits_CB.subtract_(peak_1B)
            exp_CB = self._without_labels(number, logits_CB.exp_())
            total_1B.add_(paddle.matmul(self._ones[:, : exp_CB.shape[0]], exp_CB))
            if slope_CB is not None:
                exp_CB.multiply_(slope_CB)
            self._products.add_pull(pull_BD, exp_CB, weight_CD, inverse_C1)
        return Sums(total_1B.flatten(), None if peak_1B is None else peak_1B.flatten(), pull_BD, ahead_B)

    @classmethod
    def joined(cls, walks: Sequence[Walk], gradients: Sequence[RowGradient]) -> tuple[Walk, RowGradient]:
        """One walk for the samples of several, which were swept over the same rows in the same chunks."""
        first = walks[0]
        if len(walks) == 1:
            return first, gradients[0]
        sizes = [int(walk.query.shape[0]) for walk in walks]
        place = np.concatenate([walk.labels.place for walk in walks])
        order = np.argsort(place, kind="stable")
        before = np.cumsum([0, *sizes[:-1]])
        sample = np.concatenate([walk.labels.sample + start for walk, start in zip(walks, before)])
        others = None
        if first._others is not None:

            def others(product_CB: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
                parts = paddle.split(product_CB, sizes, axis=1)
                values, slopes = zip(*(walk._others(part) for walk, part in zip(walks, parts)))  # type: ignore[misc]
                return paddle.concat(values, axis=1), paddle.concat(slopes, axis=1)

        walk = cls(
            first.weight,
            first.bias,
            first.rows,
            paddle.concat([walk.query for walk in walks]),
            first.normalised,
            Labels(place[order], sample[order]),
            others,
            first._bounded,
            first._chunk,
            first._products.of_terms(max(first._chunk, sum(sizes))),
            first._workers,
        )
        walk._inverse = first._inverse
        in_order = paddle.to_tensor(order)
        gradient = RowGradient(
            paddle.concat([one.log_total_B for one in gradients]),
            paddle.concat([one.share_B for one in gradients]),
            paddle.concat([one.query_BD for one in gradients]),
            _rows_in_order([one.label_push_nD for one in gradients], in_order),
            _rows_in_order([one.label_radial_n for one in gradients], in_order),
        )
        return walk, gradient

    def update(
        self, gradient: RowGradient, sink: RowSink, reduce_sum: Optional[Callable[[paddle.Tensor], Any]]
    ) -> Optional[paddle.Tensor]:
        """Computes the rows' gradient and hands it to `sink`; returns the bias's gradient [N], or None.

        Args:
            gradient: what it is made of.
            sink: receives the gradient, chunk by chunk, in place of the optimizer.
            reduce_sum: sums a chunk's gradient over the ranks, in place, where each has a part of it.
        """
        share_B1, query_BD = gradient.share_B.unsqueeze(1), gradient.query_BD
        subtract_1B = None
        if self._bounded:  # exp(logit) / total, with the division moved to the samples
            fade_B1 = paddle.exp(-gradient.log_total_B).unsqueeze(1)
            query_BD, share_B1 = query_BD * fade_B1, share_B1 * fade_B1
        else:
            subtract_1B = gradient.log_total_B.unsqueeze(0)
        of_chunk = _ChunkGradient(
            subtract_1B, share_B1, query_BD, gradient.label_push_nD, gradient.label_radial_n.unsqueeze(1)
        )

        def update_share(share: Sequence[int]) -> list[paddle.Tensor]:
            scratch = self._scratch()
            with paddle.no_grad():  # which is each thread's own
                return [self._update_chunk(number, of_chunk, sink, reduce_sum, scratch) for number in share]

        if reduce_sum is None:
            parts = self._workers.map(update_share, self._chunks)
        else:  # the ranks' reductions must meet in one order
            parts = [update_share(range(self._chunks))]
        return paddle.concat([chunk for part in parts for chunk in part]).flatten() if self.bias is not None else None

    def _update_chunk(
        self,
        number: int,
        gradient: _ChunkGradient,
        sink: RowSink,
        reduce_sum: Optional[Callable[[paddle.Tensor], Any]],
        scratch: paddle.Tensor,
    ) -> paddle.Tensor:
        """Moves a chunk of rows; returns the bias's gradient [C, 1] where rows are not normalised."""
        weight_CD, inverse_C1 = self._rows_of(self.weight, number), self._inverse[number]
        buffer_CD = None if sink.buffer is None else self._rows_of(sink.buffer, number)
        product_CB, logits_CB, slope_CB = self._logits(number, weight_CD, inverse_C1)
        less_1B = gradient.subtract_1B
        softmax_CB = paddle.exp(logits_CB) if less_1B is None else (logits_CB - less_1B).exp_()
        self._without_labels(number, softmax_CB)
        if slope_CB is not None:
            softmax_CB.multiply_(slope_CB)
        # What a unit row loses because its length may not change; the bias's gradient is the same sum without product.
        radial_CB = softmax_CB if inverse_C1 is None else product_CB.multiply_(softmax_CB)
        radial_C1 = paddle.matmul(radial_CB, gradient.share_B1)
        if inverse_C1 is not None:
            radial_C1.multiply_(inverse_C1)
        in_place = buffer_CD is not None and sink.in_place and reduce_sum is None
        gradient_CD: Any = buffer_CD if in_place else paddle.zeros_like(weight_CD)
        momentum = sink.momentum if in_place else 0.0
        self._products.add_gradient(gradient_CD, momentum, softmax_CB, gradient.query_BD, inverse_C1)
        labels = self._labels_of(number)
        place_n = self._label_place[labels]
        if place_n.shape[0]:
            radial_C1.index_add_(place_n, 0, gradient.label_radial_n1[labels])
            gradient_CD.index_add_(place_n, 0, gradient.label_push_nD[labels])

        # Along the rows themselves: less the radial part, plus the decay, which must not be summed over the ranks.
        decay_now = sink.decay if reduce_sum is None else 0.0
        if inverse_C1 is not None:
            gradient_CD.add_(_copied(weight_CD, scratch).multiply_(decay_now - radial_C1 * inverse_C1))
        elif decay_now:
            gradient_CD.add_(_copied(weight_CD, scratch).scale_(decay_now))
        if reduce_sum is not None:
            reduce_sum(gradient_CD)
            gradient_CD.add_(_copied(weight_CD, scratch).scale_(sink.decay))
        sink.apply(weight_CD, gradient_CD, buffer_CD, scratch)
        if sink.moves_rows:
            self._put_back(self.weight, number, weight_CD)
        if buffer_CD is not None:
            self._put_back(sink.buffer, number, buffer_CD)
        return radial_C1

    def update_bias(self, gradient_N: paddle.Tensor, sink: RowSink) -> None:
        """Hands the bias's gradient, which `update` gave, to `sink`."""
        assert self.bias is not None
        bias_N = self.bias[:] if self._rows is None else paddle.gather(self.bias, self._rows)
        buffer = sink.buffer
        buffer_N = buffer if self._rows is None or buffer is None else paddle.gather(buffer, self._rows)
        if sink.decay:
            gradient_N.add_(bias_N * sink.decay)
        if sink.in_place and buffer_N is not None:
            gradient_N = buffer_N.scale_(sink.momentum).add_(gradient_N)
        sink.apply(bias_N, gradient_N, buffer_N, paddle.empty_like(bias_N))
        if self._rows is not None:
            if sink.moves_rows:
                self.bias.scatter_(self._rows, bias_N)
            if buffer is not None:
                buffer.scatter_(self._rows, buffer_N)

    def _logits(
        self, number: int, weight_CD: paddle.Tensor, inverse_C1: Optional[paddle.Tensor]
    ) -> tuple[paddle.Tensor, paddle.Tensor, Optional[paddle.Tensor]]:
        """row . query, the logits (where nothing changes them, the same tensor) and their derivative by the former."""
        product_CB = self._products.logits(weight_CD, self.query, inverse_C1)
        if self.bias is not None:
            product_CB.add_(self._rows_of(self.bias, number).unsqueeze(1))
        logits_CB, slope_CB = (product_CB, None) if self._others is None else self._others(product_CB)
        labels = self._labels_of(number)
        entry_n = self._label_entry[labels]
        if entry_n.shape[0]:
            logits_CB.reshape([-1]).scatter_(entry_n, self._no_logit[labels])
        return product_CB, logits_CB, slope_CB

    def _without_labels(self, number: int, exp_CB: paddle.Tensor) -> paddle.Tensor:
        """Sets the labelled classes' exponentials to 0: on a CPU Paddle's exponential never gets below 2.9e-39, which is much
        where all sums are tiny, because the embeddings are opposite to all rows."""
        labels = self._labels_of(number)
        entry_n = self._label_entry[labels]
        if entry_n.shape[0]:
            exp_CB.reshape([-1]).scatter_(entry_n, self._nothing[labels])
        return exp_CB

    def _ahead(
        self, number: int, product_CB: paddle.Tensor, plain_B: Optional[paddle.Tensor], ties: Optional[Callable]
    ) -> paddle.Tensor:
        assert plain_B is not None and ties is not None
        labels = self._labels_of(number)
        entry_n = self._label_entry[labels]
        if self._others is not None and entry_n.shape[0]:
            product_CB = product_CB.clone()
            product_CB.reshape([-1]).scatter_(entry_n, self._no_logit[labels])
        first = number * self._chunk
        tied_CB = paddle.logical_and(product_CB == plain_B, ties(first, first + int(product_CB.shape[0])))
        return paddle.logical_or(product_CB > plain_B, tied_CB).astype("int64").sum(axis=0)

    def _scratch(self) -> paddle.Tensor:
        return paddle.empty([self._chunk, self.weight.shape[1]], self.weight.dtype)

    def _labels_of(self, number: int) -> slice:
        return slice(int(self._first_label[number]), int(self._first_label[number + 1]))

    def _rows_of(self, matrix: paddle.Tensor, number: int) -> paddle.Tensor:
        """The chunk's rows: a view of them, or a copy of the sampled ones."""
        first = number * self._chunk
        last = min(first + self._chunk, self.size)
        return matrix[first:last] if self._rows is None else paddle.gather(matrix, self._rows[first:last])

    def _put_back(self, matrix: paddle.Tensor, number: int, values: paddle.Tensor) -> None:
        """Writes sampled rows to where they were gathered from; a view has nothing to be put back."""
        if self._rows is not None:
            first = number * self._chunk
            matrix.scatter_(self._rows[first : first + int(values.shape[0])], values)


def _rows_in_order(parts: Sequence[paddle.Tensor], order: paddle.Tensor) -> paddle.Tensor:
    """Rows of all parts, in another order; parts may be empty."""
    rows = [part for part in parts if part.shape[0]]
    return paddle.gather(paddle.concat(rows), order) if rows else parts[0]


def inverse_norms(rows_CD: paddle.Tensor) -> paddle.Tensor:
    """1 / |row| [C, 1]; 0 for rows shorter than 1e-9 (1e-100 in float64) or so long that their square is infinite."""
    return _inverse_norms(rows_CD, paddle.empty_like(rows_CD))


def _inverse_norms(rows_CD: paddle.Tensor, scratch: paddle.Tensor) -> paddle.Tensor:
    smallest = 1e-18 if rows_CD.dtype == paddle.float32 else 1e-200
    squares_CD = _copied(rows_CD, scratch)
    squares_CD.multiply_(squares_CD)
    square_C1 = paddle.matmul(squares_CD, paddle.ones([rows_CD.shape[1], 1], rows_CD.dtype))
    return paddle.rsqrt(paddle.clip(square_C1, min=smallest)) * (square_C1 >= smallest).astype(rows_CD.dtype)


def _copied(rows_CD: paddle.Tensor, scratch: paddle.Tensor) -> paddle.Tensor:
    """A copy in `scratch`: new memory for each result would cost more than the arithmetic."""
    copy_CD = scratch[: rows_CD.shape[0]]
    paddle.assign(rows_CD, copy_CD)
    return copy_CD
