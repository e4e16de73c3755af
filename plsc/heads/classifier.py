"""The classifier head: this rank's class centres, and the two halves of a training step.

Shapes: B global batch, b this rank's batch, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import paddle

from plsc import parallel
from plsc.errors import ConfigError
from plsc.heads import step
from plsc.heads.labels import GatheredLabels, LabelGatherer, MicroBatchLabels
from plsc.heads.margins import Margin, build_margin
from plsc.heads.records import HeadOutput, Kept, Step
from plsc.heads.sampling import sample_rows
from plsc.heads.shard import Shard, initialise_rows, shard_bounds
from plsc.heads.sinks import RowSink, SquareSum
from plsc.heads.terms import PLAIN_LOSS, LossTerms
from plsc.heads.workers import Workers

# float32 ends at e^88. A sum of exponentials must stay below it, and so must an exponential divided by the shortest
# row's norm, 1e-9 = e^-20.7.
_LARGEST_SUM, _LARGEST_SCALE = 84.0, 66.0


def build_head(loss_type: str, num_classes: int, emb_dim: int, margin: Any = None, **options: Any) -> ClassifierHead:
    """Builds the head of a loss type; it is sharded if the name begins with `dist_`.

    Args:
        loss_type: One of `plsc.config.LOSS_TYPES`.
        num_classes: Classes over all ranks.
        emb_dim: D.
        margin: What `build_margin` takes, or a custom `Margin`.
        options: Further arguments of `ClassifierHead`.
    """
    if not isinstance(margin, Margin):
        margin = build_margin(loss_type, margin)
    return ClassifierHead(num_classes, emb_dim, margin, sharded=loss_type.startswith("dist_"), **options)


class HeadPart(NamedTuple):
    """One of the heads that a training has.

    Attributes:
        prefix: What the names of its parameters begin with; '' where it is the only head.
        first: Number of its first class among the classes of all heads.
        head: The head.
    """

    prefix: str
    first: int
    head: ClassifierHead


class ClassifierHead(paddle.nn.Layer):
    """Class centres W, the loss over all classes, and its exact gradients, without autograd.

    If the head is sharded, rank r holds the rows `shard_bounds(num_classes, world_size, r)` of W, and every rank
    computes its classes for the global batch. Otherwise every rank holds all of W and computes its own batch. Both give
    the same numbers. A zero embedding or a zero row has cosine 0 to everything and receives no gradient.

    A step is `forward`, once for each micro-batch, and then, if the whole step is known to be good, `backward`.
    Micro-batches give the loss and the gradients of one batch of all their samples, over the same sampled rows. Only
    the running statistics of a margin change with each micro-batch.

    Args:
        num_classes: Classes over all ranks.
        emb_dim: D.
        margin: Acts on the cosine of the label; None for plain softmax on X W^T + bias.
        scale: s, the factor on the cosines (softmax does not use it).
        sharded: Whether each rank holds a part of W.
        sample_ratio: The fraction of this rank's rows that take part in a step: the labelled ones, and others drawn at
            random by (seed, step, rank). The other rows and their momentum are neither read nor written, and do not
            decay.
        seed: Decides the initial weights, which do not depend on the number of ranks, and the sampling.
        param_attr: A `paddle.ParamAttr` with the initializer, learning rate and regularizer of W.
        bias_attr: The same for the bias; False leaves the bias out.
        dtype: 'float32' or 'float64'.
        chunk: Rows of W computed at a time; 0 chooses by batch, embedding and cache. It changes nothing but rounding.
            The rows of a class are always computed together.
        compute_dtype: The dtype of the products on a GPU: 'float32', 'bfloat16' or 'float16'; everything else stays
            float32. A CPU computes in float32.
        simulate: Whether a CPU rounds the products as `compute_dtype` would.
        loss_weight: The factor on the loss.
        terms: What is changed in the loss: a filter of other classes, label smoothing, weights and margins of classes.
        sub_centers: k, the rows of each class, of which the nearest counts; more than 1 needs a margin.
        row_dtype: The dtype in which W and its momentum are kept: `dtype`, or 'bfloat16', into which rows are rounded
            at random. They are computed with in `dtype`, chunk by chunk. None stands for `dtype`.
        is_drawn: Whether W begins at random rows; otherwise `draw` makes them, if nothing else does.
        class_names: Names of all classes, for messages; empty if they are unknown.

    Attributes:
        weight: This rank's rows of W, [C, D], or [C, k, D] with sub-centres; None if it has none.
        bias: This rank's entries of the bias; None without one.
        lower: The first class of this rank.
        upper: One past the last class of this rank.
        next_step: The number of the next step; with seed and rank it decides which rows are drawn.
        margin_state: The margin's running statistics; None without any.
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
        loss_weight: float = 1.0,
        terms: LossTerms = PLAIN_LOSS,
        sub_centers: int = 1,
        row_dtype: Optional[str] = None,
        is_drawn: bool = True,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__(dtype=dtype)
        if sub_centers > 1 and margin is None:
            raise ConfigError("sub_centers: softmax without a margin has one row for each class; choose another loss")
        self.loss_weight, self.terms = loss_weight, terms
        self.num_classes, self.emb_dim, self.sharded = num_classes, emb_dim, sharded
        self.margin, self.sample_ratio, self.seed, self.sub_centers = margin, sample_ratio, seed, sub_centers
        self.next_step, self.class_names = 0, class_names
        self._labels = LabelGatherer(num_classes)
        self._step: Optional[Step] = None
        self._kept: list[Kept] = []  # of the micro-batches since the last `backward`
        self.lower, self.upper = (
            shard_bounds(num_classes, parallel.world_size(), parallel.rank()) if sharded else (0, num_classes)
        )
        rows = self.upper - self.lower
        self.weight: Optional[paddle.Tensor] = None
        self.bias: Optional[paddle.Tensor] = None
        self._is_fresh = False
        if rows:  # Paddle has no parameter of zero rows
            self._is_fresh = getattr(param_attr, "initializer", None) is None
            # Paddle would otherwise draw rows of its own first.
            zeros = paddle.nn.initializer.Constant(0.0) if self._is_fresh else None
            shape = [rows, emb_dim] if sub_centers == 1 else [rows, sub_centers, emb_dim]
            self.weight = self.create_parameter(
                shape, attr=param_attr, dtype=row_dtype or dtype, default_initializer=zeros
            )
            if is_drawn:
                self.draw()
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
            bounded=precision in ("float32", "float64") and _is_bounded(margin, scale, num_classes),
            chunk=chunk,
            sub_centers=sub_centers,
            precision=precision,
            simulate=simulate,
            workers=Workers(),
            terms=terms,
            class_names=class_names,
        )

    def draw(self) -> None:
        """Fills W with random rows, unless that has been done, or all rows have been loaded."""
        if self._is_fresh and self.weight is not None:
            initialise_rows(self.weight, self.lower, self.seed)
        self._is_fresh = False

    def filled(self) -> None:
        """Remembers that all rows of W have been loaded, so that none is drawn."""
        self._is_fresh = False

    @property
    def parts(self) -> list[HeadPart]:
        """The only head."""
        return [HeadPart("", 0, self)]

    @paddle.no_grad()
    def forward(
        self,
        embedding: paddle.Tensor,
        label: Union[np.ndarray, GatheredLabels, Sequence[MicroBatchLabels]],
        with_accuracy: bool = False,
        micro_batch: int = 0,
        samples: Optional[float] = None,
    ) -> HeadOutput:
        """Computes the loss and the gradient of the embeddings, for a global batch or the next micro-batch of it.

        Args:
            embedding: [b, D] float32; b may differ between ranks, and may be 0.
            label: [b] Integers in [0, num_classes), or what `gather_labels` made of the labels of all micro-batches,
                or these labels of all ranks.
            with_accuracy: Whether to count the samples whose class has the largest, or one of the 5 largest, logits
                (without margin) of all classes that take part.
            micro_batch: The number of the micro-batch. They come in order, from 0.
            samples: The number of samples, or the sum of the weights of their classes, that the sum of the losses is
                divided by; None divides by that of all samples of the step.

        Raises:
            DataError: A label of some rank is out of range.
        """
        if isinstance(label, np.ndarray):
            label = self.gather_labels(label)
        micro_batches = label.wait() if isinstance(label, GatheredLabels) else label
        if micro_batch == 0:
            all_labels = np.concatenate([one.labels for one in micro_batches])
            selected = self._select_rows(all_labels)
            total = self.terms.weight_of(all_labels) if samples is None else samples
            sample_weight = self.loss_weight / (total or 1)
            key = self.seed, self.next_step - 1
            self._step, self._kept = step.begin(self._shard, micro_batches, selected, sample_weight, key), []
        assert self._step is not None
        labels = micro_batches[micro_batch]
        if not sum(labels.counts):
            return HeadOutput(0.0, embedding, (0, 0) if with_accuracy else None, 0)
        statistics = self._kept[-1].statistics if self._kept else self.margin_state
        output, kept = step.forward(self._shard, self._step, embedding, labels, statistics, with_accuracy)
        self._kept = [*self._kept, kept] if output.problem is None else []
        return output

    @paddle.no_grad()
    def backward(
        self, weight_sink: Optional[RowSink] = None, bias_sink: Optional[RowSink] = None, factor: float = 1.0
    ) -> None:
        """Finishes the step that `forward` began: computes the gradients of W and the bias, and stores the statistics.

        The gradients of all micro-batches are computed in one walk over the rows.

        Args:
            weight_sink: Moves the rows chunk by chunk; None leaves the gradient in `weight.grad`.
            bias_sink: Moves the bias; None leaves the gradient in `bias.grad`.
            factor: The factor on the gradients, such as that of clipping.
        """
        kept, self._kept = self._kept, []
        if not kept:
            return
        if self.margin_state is not None:
            self.margin_state.set_value(kept[-1].statistics)
        self._differentiate(kept, weight_sink, bias_sink, factor)
        self._step = None  # frees the products that were kept

    @paddle.no_grad()
    def gradient_squares(self) -> dict[str, float]:
        """Returns the sums of the squares of the gradients `backward` will give on this rank: {parameter name: sum}.

        Frozen parameters are left out. It changes nothing, and walks over the rows once more, which costs two products
        of the four of a step, and no memory.
        """
        weight, bias = SquareSum(), SquareSum()
        if self._kept and self.weight is not None:
            self._differentiate(self._kept, weight, bias, 1.0)
        found = {"weight": (self.weight, weight), "bias": (self.bias, bias)}
        return {name: one.total() for name, (p, one) in found.items() if p is not None and not p.stop_gradient}

    def gather_labels(self, *labels: np.ndarray, note: int = 0) -> GatheredLabels:
        """Starts to gather the labels of all ranks, so that the backbone can run meanwhile.

        Args:
            labels: [b] of each micro-batch of the step.
            note: A number for the other ranks that travels with the labels.
        """
        return self._labels.start(labels, note)

    def _differentiate(
        self, kept: list[Kept], weight_sink: Optional[RowSink], bias_sink: Optional[RowSink], factor: float
    ) -> None:
        """Walks over the rows for the second time, unless this rank has none or they are frozen."""
        if any(not parameter.stop_gradient for parameter in self.parameters()):
            assert self._step is not None
            step.backward(self._shard, self._step, kept, weight_sink, bias_sink, factor)

    def _select_rows(self, labels: np.ndarray) -> Optional[np.ndarray]:
        """Draws the rows of this rank that take part in the next step, ascending; None if all do."""
        number, self.next_step = self.next_step, self.next_step + 1
        if self.sample_ratio >= 1.0 or self.weight is None:
            return None
        positives = np.unique(labels[(labels >= self.lower) & (labels < self.upper)]) - self.lower
        # Ranks that hold the same rows must draw the same ones.
        key = (self.seed, number, parallel.rank() if self.sharded else 0)
        return sample_rows(self.upper - self.lower, positives, self.sample_ratio, key)


def _is_bounded(margin: Optional[Margin], scale: float, num_classes: int) -> bool:
    """Whether exp(logit) and its sum over the classes fit in float32: the logits are cosines times a moderate scale."""
    return (
        margin is not None
        and not margin.changes_others
        and scale <= _LARGEST_SCALE
        and scale + math.log(num_classes) <= _LARGEST_SUM
    )
