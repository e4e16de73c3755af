"""The samples' side of a walk: what the rows are multiplied with, and which of the products belong to labels.

Shapes: B samples, D embedding, C rows of a chunk, n samples whose class is among the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import paddle

from plsc.heads.margins import Margin


@dataclass(frozen=True)
class OtherLogits:
    """What a margin makes of the logits of the classes that are not the label (`Margin.others`).

    Attributes:
        margin: The margin.
        scale: The factor on the cosines.
        target_1B: [1, B] The labels' cosines after the margin.
        statistics: The margin's running statistics in this micro-batch.
    """

    margin: Margin
    scale: float
    target_1B: paddle.Tensor
    statistics: paddle.Tensor

    def of(self, product_CB: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Returns the logits, and their derivative with respect to the scaled cosines in `product_CB`."""
        value, slope = self.margin.others(product_CB * (1.0 / self.scale), self.target_1B, self.statistics)
        return value * self.scale, slope


@dataclass(frozen=True)
class Queries:
    """The samples' side of a walk: what each row is multiplied with, and which of the products belong to labels.

    Attributes:
        query_BD: Unit embeddings times the scale; plain embeddings for softmax.
        place: [n] Where the labelled rows are in the walk.
        sample: [n] Which sample each of them belongs to; a sample occurs at most once.
        others: What changes the logits of the other classes, for each micro-batch; empty where nothing does.
    """

    query_BD: paddle.Tensor
    place: np.ndarray
    sample: np.ndarray
    others: tuple[OtherLogits, ...] = ()

    def other_logits(self, product_CB: paddle.Tensor) -> tuple[paddle.Tensor, Optional[paddle.Tensor]]:
        """Returns the logits and their derivative; where nothing changes them, the products themselves and None."""
        if len(self.others) < 2:
            return self.others[0].of(product_CB) if self.others else (product_CB, None)
        sizes = [int(others.target_1B.shape[1]) for others in self.others]
        changed = [others.of(part) for others, part in zip(self.others, paddle.split(product_CB, sizes, axis=1))]
        values, slopes = zip(*changed)
        return paddle.concat(values, axis=1), paddle.concat(slopes, axis=1)


def join_queries(micro_batches: Sequence[Queries]) -> Queries:
    """Puts the queries of several micro-batches one after the other."""
    if len(micro_batches) == 1:
        return micro_batches[0]
    first_sample = np.cumsum([0, *(int(one.query_BD.shape[0]) for one in micro_batches[:-1])])
    return Queries(
        query_BD=paddle.concat([one.query_BD for one in micro_batches]),
        place=np.concatenate([one.place for one in micro_batches]),
        sample=np.concatenate([one.sample + first for one, first in zip(micro_batches, first_sample)]),
        others=tuple(others for one in micro_batches for others in one.others),
    )
