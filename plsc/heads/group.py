"""Several heads on one backbone: a head for each data set, which computes the samples of that set.

Shapes: b samples of this rank, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Union

import numpy as np
import paddle

from plsc import parallel
from plsc.heads.classifier import ClassifierHead, HeadPart
from plsc.heads.labels import GatheredLabels, LabelGatherer, MicroBatchLabels
from plsc.heads.records import HeadOutput


class _Routed(NamedTuple):
    """The labels of one micro-batch that one head computes.

    Attributes:
        labels: Those of all ranks, counted from the head's first class.
        own: [n] Which of this rank's samples they are.
    """

    labels: MicroBatchLabels
    own: np.ndarray


class HeadGroup(paddle.nn.Layer):
    """Separate heads, whose classes are numbered one head after another.

    Each sample belongs to the head that has its label. The loss of a step is the mean, over all its samples, of the
    sample's loss among the classes of its head, times the weight of the head. So every sample counts the same, but for
    the weights, however many samples of each head a step has. A head without samples in a step stays as it is.

    The heads take part in a step or leave it out together; its `forward` and `backward` are those of `ClassifierHead`.

    Args:
        heads: The heads, all of one embedding size, and all sharded or none. Their `loss_weight` is the weight.
        titles: What the heads are called, for messages.

    Attributes:
        parts: The heads, with the names of their parameters in the group and their first classes.
        num_classes: Classes of all heads.
        emb_dim: D.
        sharded: Whether each rank holds a part of each head.
        next_step: The number of the next step; see `ClassifierHead`.
    """

    def __init__(self, heads: Sequence[ClassifierHead], titles: Sequence[str]) -> None:
        super().__init__()
        self.titles = tuple(titles)
        ends = np.cumsum([head.num_classes for head in heads]).tolist()
        self.parts = [
            HeadPart(f"{number}.", end - head.num_classes, head) for number, (end, head) in enumerate(zip(ends, heads))
        ]
        for number, head in enumerate(heads):
            self.add_sublayer(str(number), head)
        self.num_classes, self.emb_dim, self.sharded = ends[-1], heads[0].emb_dim, heads[0].sharded
        self.next_step = 0
        self._labels = LabelGatherer(self.num_classes)

    @paddle.no_grad()
    def forward(
        self,
        embedding: paddle.Tensor,
        label: Union[np.ndarray, GatheredLabels],
        with_accuracy: bool = False,
        micro_batch: int = 0,
    ) -> HeadOutput:
        """Computes the loss and the gradient of the embeddings; see `ClassifierHead.forward`."""
        gathered = label if isinstance(label, GatheredLabels) else self.gather_labels(label)
        micro_batches = gathered.wait()
        if micro_batch == 0:
            for part in self.parts:
                part.head.next_step = self.next_step
            self.next_step += 1
        routed = [[self._route(one, number) for one in micro_batches] for number in range(len(self.parts))]
        weights = [
            [part.head.terms.weight_of(one.labels.labels) for one in of_head]
            for part, of_head in zip(self.parts, routed)
        ]
        samples = sum(map(sum, weights))
        joined = HeadOutput(0.0, paddle.zeros_like(embedding), (0, 0) if with_accuracy else None, 0)
        for number, (title, part) in enumerate(zip(self.titles, self.parts)):
            own = routed[number][micro_batch].own
            place = paddle.to_tensor(own) if len(own) else None
            rows = (
                paddle.zeros([0, self.emb_dim], embedding.dtype) if place is None else paddle.gather(embedding, place)
            )
            output = part.head(rows, [one.labels for one in routed[number]], with_accuracy, micro_batch, samples)
            if place is not None:
                joined.embedding_grad = paddle.scatter(joined.embedding_grad, place, output.embedding_grad)
            joined.loss, joined.samples = joined.loss + output.loss, joined.samples + output.samples
            if joined.correct is not None and output.correct is not None:
                joined.correct = joined.correct[0] + output.correct[0], joined.correct[1] + output.correct[1]
            joined.of_heads[title] = output.loss * samples / part.head.loss_weight, weights[number][micro_batch]
            if output.problem is not None:
                joined.problem = f"the head of {title}: {output.problem}"
                break
        return joined

    def gather_labels(self, *labels: np.ndarray, note: int = 0) -> GatheredLabels:
        """Starts to gather the labels of all ranks; see `ClassifierHead.gather_labels`."""
        return self._labels.start(labels, note)

    def _route(self, labels: MicroBatchLabels, number: int) -> _Routed:
        """Returns the part of a micro-batch that a head computes."""
        first, head = self.parts[number].first, self.parts[number].head
        is_its = (labels.labels >= first) & (labels.labels < first + head.num_classes)
        of_ranks = np.split(is_its, np.cumsum(labels.counts)[:-1])
        counts = [int(one.sum()) for one in of_ranks]
        return _Routed(
            MicroBatchLabels(counts, labels.labels[is_its] - first), np.flatnonzero(of_ranks[parallel.rank()])
        )
