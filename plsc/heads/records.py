"""The records of a step: what its stages in plsc/heads/step.py take and return.

Shapes: B samples whose logits this rank computes (the global micro-batch if the head is sharded, else this rank's own),
b samples of this rank, n of the B samples whose class this rank holds, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import paddle

from plsc.heads.queries import Queries
from plsc.heads.rows import Rows


@dataclass
class HeadOutput:
    """What `ClassifierHead.forward` returns.

    Attributes:
        loss: The mean over the global batch, or a micro-batch's part of that mean; the same on every rank.
        embedding_grad: [b, D] d(loss)/d(embedding) of this rank's samples.
        correct: Top-1 and top-5 counts over the global (micro-)batch, if asked for.
        samples: The size of the global (micro-)batch.
        problem: Why the step must not be used: what was not finite, and on which rank. The same on every rank; None if
            all is well.
        of_heads: For each head of a `HeadGroup`, the sum of the losses of its samples, before its weight, and their
            number, or with class weights the sums of both by these weights; empty for a single head. With a teacher,
            the same of the head and of the teacher.
    """

    loss: float
    embedding_grad: paddle.Tensor
    correct: Optional[tuple[int, int]]
    samples: int
    problem: Optional[str] = None
    of_heads: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What the micro-batches of a step have in common.

    Attributes:
        sample_weight: The weight of a sample in the loss: 1 / the samples of all micro-batches and all ranks, for the
            loss that is their mean.
        rows: This rank's rows that take part; None on a rank without rows (there are more ranks than classes).
    """

    sample_weight: float
    rows: Optional[Rows]


@dataclass(frozen=True)
class Batch:
    """The samples of one micro-batch whose logits this rank computes.

    A rank without samples computes one of zeros with weight 0, so that it takes part in what all ranks do together.

    Attributes:
        own_embedding: [b, D] This rank's embeddings, as the backbone gave them.
        own: Which of the B samples are this rank's.
        counts: The number of samples of each rank.
        label_B: Labels; empty if the batch is.
        embedding_BD: Embeddings.
        unit_BD: Unit embeddings.
        inverse_B1: 1 / |embedding|.
        norm_B: |embedding|.
        sample_weight: The weight of each sample in the loss.
        is_empty: Whether this rank has no samples to compute.
        class_weight_B: The weight of each sample's class, in addition to `sample_weight`; None without class weights.
    """

    own_embedding: paddle.Tensor
    own: slice
    counts: list[int]
    label_B: np.ndarray
    embedding_BD: paddle.Tensor
    unit_BD: paddle.Tensor
    inverse_B1: paddle.Tensor
    norm_B: paddle.Tensor
    sample_weight: float
    is_empty: bool
    class_weight_B: Optional[paddle.Tensor]

    def zeros_B(self) -> paddle.Tensor:
        """Returns a 0 for each sample."""
        return paddle.zeros([self.embedding_BD.shape[0]], self.embedding_BD.dtype)

    def weighted(self, values: paddle.Tensor) -> paddle.Tensor:
        """Returns values of the samples [B] or [B, D] times the weights of their classes."""
        if self.class_weight_B is None:
            return values
        return values * (self.class_weight_B if values.ndim == 1 else self.class_weight_B.unsqueeze(1))

    @property
    def classes(self) -> np.ndarray:
        """The labels of the B samples; 0 for the one that a rank without samples computes."""
        return classes_of(self.label_B)


def classes_of(label_B: np.ndarray) -> np.ndarray:
    """Returns labels [B]; class 0 where there are none, for the sample that a rank without samples computes."""
    return label_B if len(label_B) else np.zeros(1, "int64")


@dataclass(frozen=True)
class HeldLabels:
    """The samples whose class this rank holds, in the order of the rows.

    Attributes:
        sample: [n] Which of the B samples they are.
        place: [n] Where their rows are in the walk.
        sample_n: The same as `sample`, on the device.
        center_nD: Rows of W; unit rows with a margin.
        inverse_n1: 1 / |row|; None without a margin.
        plain_n: Cosines of sample and row; logits for softmax.
        nearest_n: Which of the rows of its class is the nearest; None where a class has one row.
    """

    sample: np.ndarray
    place: np.ndarray
    sample_n: paddle.Tensor
    center_nD: paddle.Tensor
    inverse_n1: Optional[paddle.Tensor]
    plain_n: paddle.Tensor
    nearest_n: Optional[paddle.Tensor] = None


@dataclass(frozen=True)
class Totals:
    """What is known of each sample after the sums of all ranks have come together.

    Attributes:
        others_B: log of the sum of exp(logit) over all classes but the label.
        target_B: The label's logit, with margin.
        ahead_B: The number of classes ahead of the label, if they were counted.
        unlabelled_B: The sum of the logits of all classes but the label, for label smoothing; None without it.
        classes_B: The number of classes that take part, for label smoothing.
    """

    others_B: paddle.Tensor
    target_B: paddle.Tensor
    ahead_B: Optional[paddle.Tensor]
    unlabelled_B: Optional[paddle.Tensor] = None
    classes_B: Optional[paddle.Tensor] = None


@dataclass(frozen=True)
class Losses:
    """Loss and error of each sample.

    Attributes:
        loss_B: -log(probability of the label), plus the margin's penalty.
        log_total_B: log of the sum of exp(logit) over all classes.
        error_B: d(loss)/d(label's logit): the probability of the label minus 1, or minus what label smoothing asks for.
        penalty_by_norm_B: d(penalty)/d(norm of the embedding); None without a penalty.
        share_B: What label smoothing asks of each other class as its probability; None without it.
    """

    loss_B: paddle.Tensor
    log_total_B: paddle.Tensor
    error_B: paddle.Tensor
    penalty_by_norm_B: Optional[paddle.Tensor]
    share_B: Optional[paddle.Tensor] = None


@dataclass(frozen=True)
class Push:
    """What the loss asks of the labels' own terms, before the scale and the sample's weight.

    Attributes:
        by_cosine_n: d(loss)/d(cosine); d(loss)/d(logit) for softmax.
        by_norm_n: d(loss)/d(norm of the embedding), through the margin; None where the margin has no such gradient.
    """

    by_cosine_n: paddle.Tensor
    by_norm_n: Optional[paddle.Tensor]


@dataclass(frozen=True)
class Kept:
    """What a micro-batch keeps for the second half of the step.

    Attributes:
        batch: The samples.
        held: Those whose class this rank holds; None without any.
        push: What the loss asks of these.
        queries: What the rows were multiplied with.
        losses: Their losses.
        statistics: The margin's running statistics after this micro-batch; None without any.
    """

    batch: Batch
    held: Optional[HeldLabels]
    push: Optional[Push]
    queries: Queries
    losses: Losses
    statistics: Optional[paddle.Tensor]
