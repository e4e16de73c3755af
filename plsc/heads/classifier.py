"""The classifier head: this rank's class centres, and the two halves of a step.

Shapes: B global batch, b this rank's batch, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Optional, Union

import numpy as np
import paddle

from plsc import parallel
from plsc.config import DEFAULT_MARGINS, kind_of
from plsc.heads.labels import GatheredLabels, LabelGatherer
from plsc.heads.margins import AdaFace, AngularMargin, CurricularFace, MagFace, Margin
from plsc.heads.sampling import sample_rows
from plsc.heads.step import HeadOutput, HeadStep, Plan, Shard, plan_step, update_rows
from plsc.heads.walk import RowSink, SquareSum
from plsc.heads.workers import Workers

_ROWS_PER_DRAW = 4096
# float32 ends at e^88. A sum of exponentials must stay below it, and so must an exponential divided by the shortest row's
# norm, 1e-9 = e^-20.7.
_LARGEST_SUM, _LARGEST_SCALE = 84.0, 66.0


def shard_bounds(num_classes: int, num_ranks: int, rank: int) -> tuple[int, int]:
    """Half-open range of classes `rank` of `num_ranks` holds; empty where there are fewer classes than ranks."""
    quotient, remainder = divmod(num_classes, num_ranks)
    start = rank * quotient + min(rank, remainder)
    return start, start + quotient + (rank < remainder)


def build_margin(loss_type: str, margin: Any = None) -> Optional[Margin]:
    """The margin of a loss type of `plsc.config.LOSS_TYPES`; None for softmax.

    Args:
        loss_type: with or without `dist_`.
        margin: what `Entry.set_margin` takes; None for the default of the loss.
    """
    kind = kind_of(loss_type)
    margin = DEFAULT_MARGINS[kind] if margin is None else margin
    makers: dict[str, Callable[[], Optional[Margin]]] = {
        "softmax": lambda: None,
        "arcface": lambda: AngularMargin(m2=margin),
        "cosface": lambda: AngularMargin(m3=margin),
        "sphereface": lambda: AngularMargin(m1=margin),
        "combined": lambda: AngularMargin(*margin),
        "adaface": lambda: AdaFace(m=margin),
        "magface": MagFace,
        "curricularface": lambda: CurricularFace(m=margin),
    }
    return makers[kind]()


def build_head(loss_type: str, num_classes: int, emb_dim: int, margin: Any = None, **options: Any) -> ClassifierHead:
    """The head of `loss_type`, sharded when that begins with `dist_`.

    Args:
        margin: a number (or three for combined) as `build_margin` takes, or a `Margin` of your own.
        options: of `ClassifierHead`.
    """
    own = margin if isinstance(margin, Margin) else build_margin(loss_type, margin)
    return ClassifierHead(num_classes, emb_dim, own, sharded=loss_type.startswith("dist_"), **options)


class ClassifierHead(paddle.nn.Layer):
    """Class centres W, the loss over all classes, and its exact gradients, without autograd.

    With `sharded`, rank r holds the rows `shard_bounds(num_classes, world_size, r)` of W and every rank computes its
    classes for the global batch; otherwise every rank holds all of W and computes its own batch. Both give the same
    numbers. A zero embedding or a zero row has cosine 0 to everything and receives no gradient.

    A step is `forward`, once for each micro-batch, then, when the whole step is known to be good, `backward`. Micro-batches
    give the loss and gradients of one batch of all their samples, over the same sampled rows; only running statistics of a
    margin move with each of them.

    Args:
        num_classes: classes over all ranks.
        emb_dim: D.
        margin: of the labelled class's cosine; None for plain softmax on X W^T + bias.
        scale: s, the factor on the cosines (unused by softmax).
        sample_ratio: share of this rank's rows that take part in a step: the labelled ones, and others drawn at random
            by (seed, step, rank). The other rows and their momentum are neither read nor written: they do not decay.
        seed: of the initial weights, which do not depend on the number of ranks, and of the sampling.
        param_attr, bias_attr: `paddle.ParamAttr`: initializer, learning rate, regularizer of W and of the bias.
            `bias_attr=False` leaves the bias out.
        chunk: rows of W computed at a time; 0 chooses by batch, embedding and cache. It changes nothing but rounding.
        compute_dtype: of the products on a GPU: 'float32', 'bfloat16' or 'float16'; everything else stays float32.
            A CPU computes in float32.
        simulate: on a CPU, round the products as `compute_dtype` would.
    """

    def __init__(
        self,
        num_classes: int,
        emb_dim: int,
        margin: Optional[Margin] = None,
        scale: float = 64.0,
        sharded: bool = True,
        sample_ratio: float = 1.0,
        seed: int = 0,
        param_attr: Any = None,
        bias_attr: Any = None,
        dtype: str = "float32",
        chunk: int = 0,
        compute_dtype: str = "float32",
        simulate: bool = False,
    ) -> None:
        super().__init__(dtype=dtype)
        self.num_classes, self.emb_dim, self.sharded = num_classes, emb_dim, sharded
        self.margin, self.sample_ratio, self.seed = margin, sample_ratio, seed
        self.next_step = 0  # with seed and rank it decides which rows are drawn
        self._labels = LabelGatherer(num_classes)
        self._plan: Optional[Plan] = None
        self._steps: list[HeadStep] = []  # what `backward` works on
        self.lower, self.upper = (
            shard_bounds(num_classes, parallel.world_size(), parallel.rank()) if sharded else (0, num_classes)
        )
        rows = self.upper - self.lower
        self.weight: Optional[paddle.Tensor] = None
        self.bias: Optional[paddle.Tensor] = None
        if rows:  # Paddle has no parameter of zero rows
            self.weight = self.create_parameter([rows, emb_dim], attr=param_attr, dtype=dtype)
            if getattr(param_attr, "initializer", None) is None:
                _initialise_rows(self.weight, self.lower, seed)
            if margin is None and bias_attr is not False:
                self.bias = self.create_parameter([rows], attr=bias_attr, dtype=dtype, is_bias=True)
        statistics = () if margin is None else margin.initial_state
        state = paddle.to_tensor(statistics, dtype="float64") if statistics else None
        self.register_buffer("margin_state", state)
        low = "float32" if parallel.on_cpu() and not simulate else compute_dtype
        precision = dtype if low == "float32" else low
        self._shard = Shard(
            weight=self.weight,
            bias=self.bias,
            lower=self.lower,
            upper=self.upper,
            emb_dim=emb_dim,
            margin=margin,
            scale=1.0 if margin is None else scale,
            sharded=sharded,
            # The logits of the other classes are within the scale, unless the margin changes them.
            bounded=margin is not None
            and not margin.changes_others
            and precision in ("float32", "float64")
            and scale <= _LARGEST_SCALE
            and scale + math.log(num_classes) <= _LARGEST_SUM,
            chunk=chunk,
            precision=precision,
            simulate=simulate,
            workers=Workers(),
        )

    @paddle.no_grad()
    def forward(
        self,
        embedding: paddle.Tensor,
        label: Union[np.ndarray, GatheredLabels],
        with_accuracy: bool = False,
        part: int = 0,
    ) -> HeadOutput:
        """Loss of one global batch and the gradient of the embeddings; or of the next micro-batch of it.

        Args:
            embedding: [b, D] float32; b may differ between ranks, and may be 0.
            label: [b] integers in [0, num_classes), or what `gather_labels` made of those of all micro-batches.
            with_accuracy: also count the samples whose class has the largest, or one of the 5 largest, logits
                (without margin) of all classes that take part.
            part: which micro-batch this is; they come in order, from 0.

        Raises:
            DataError: a label is out of range, on any rank.
        """
        gathered = label if isinstance(label, GatheredLabels) else self.gather_labels(label)
        parts = gathered.wait()
        if part == 0:
            rows = self._next_rows(np.concatenate([labels for _, labels in parts]))
            self._plan, self._steps = plan_step(self._shard, [counts for counts, _ in parts], rows), []
        assert self._plan is not None
        counts, labels = parts[part]
        if not sum(counts):
            return HeadOutput(0.0, embedding, (0, 0) if with_accuracy else None, 0)
        state = self._steps[-1].state if self._steps else self.margin_state
        step = HeadStep(self._shard, self._plan, embedding, counts, labels, state)
        output = step.run(with_accuracy)
        self._steps = [*self._steps, step] if output.problem is None else []
        return output

    @paddle.no_grad()
    def backward(
        self, weight_sink: Optional[RowSink] = None, bias_sink: Optional[RowSink] = None, factor: float = 1.0
    ) -> None:
        """The rest of the step `forward` began: the gradients of W and of the bias, and the margin's statistics.

        The gradients of all micro-batches are made in one walk over the rows.

        Args:
            weight_sink, bias_sink: move the rows chunk by chunk; without them the gradients are left in `.grad`.
            factor: on the gradients, such as a clipping's.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return
        if self.margin_state is not None:
            self.margin_state.set_value(steps[-1].state)
        if self._trains():
            update_rows(self._shard, steps, weight_sink, bias_sink, factor)

    @paddle.no_grad()
    def gradient_square_sum(self) -> float:
        """Sum of the squares of the gradients `backward` will give, over all shards; changes nothing.

        It walks over the rows once more: two products, and nothing held.
        """
        sums = [SquareSum() for parameter in (self.weight, self.bias) if parameter is not None]
        if self._steps and self._trains():
            update_rows(self._shard, self._steps, sums[0], sums[-1], 1.0)
        own = sum(one.total() for one in sums)
        return parallel.sum_number(own) if self.sharded else own

    def gather_labels(self, *labels: np.ndarray, note: int = 0) -> GatheredLabels:
        """Starts to gather the labels of all ranks, of every micro-batch of a step, so that the backbone can run meanwhile.

        A `note` travels with them.
        """
        return self._labels.start(labels, note)

    def _trains(self) -> bool:
        """Whether this rank holds rows or biases that are not frozen."""
        return any(not parameter.stop_gradient for parameter in self.parameters())

    def _next_rows(self, labels: np.ndarray) -> Optional[np.ndarray]:
        """The rows of this rank that take part in the next step, ascending; None when all do."""
        step, self.next_step = self.next_step, self.next_step + 1
        if self.sample_ratio >= 1.0 or self.weight is None:
            return None
        positives = np.unique(labels[(labels >= self.lower) & (labels < self.upper)]) - self.lower
        # Ranks that hold the same rows must draw the same ones.
        key = (self.seed, step, parallel.rank() if self.sharded else 0)
        return sample_rows(self.upper - self.lower, positives, self.sample_ratio, key)


def _initialise_rows(weight: paddle.Tensor, lower: int, seed: int) -> None:
    """Fills W with normal(0, 0.01), drawn in fixed blocks of the whole W so that sharding changes nothing."""
    rows, emb_dim = (int(side) for side in weight.shape)
    for block in range(lower // _ROWS_PER_DRAW, (lower + rows - 1) // _ROWS_PER_DRAW + 1):
        first = block * _ROWS_PER_DRAW
        drawn = np.random.default_rng((seed, block)).standard_normal((_ROWS_PER_DRAW, emb_dim), dtype="float32")
        begin, end = max(lower, first), min(lower + rows, first + _ROWS_PER_DRAW)
        values = paddle.to_tensor(drawn[begin - first : end - first] * np.float32(0.01), dtype=weight.dtype)
        with paddle.no_grad():
            weight[begin - lower : end - lower] = values
