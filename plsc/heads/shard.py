"""The shard of a head that one rank holds: which classes, which parameters, and how they are computed with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Optional

import numpy as np
import paddle

from plsc.heads.bfloat16 import tensor_like
from plsc.heads.margins import Margin
from plsc.heads.terms import PLAIN_LOSS, LossTerms
from plsc.heads.workers import Workers
from plsc.machine.threads import computing_threads

_ROWS_PER_DRAW = 4096
_ROWS_PER_CHECK = 1 << 16


def shard_bounds(num_classes: int, num_ranks: int, rank: int) -> tuple[int, int]:
    """Returns the half-open range of classes that a rank holds; it is empty if there are fewer classes than ranks."""
    quotient, remainder = divmod(num_classes, num_ranks)
    start = rank * quotient + min(rank, remainder)
    return start, start + quotient + (rank < remainder)


@dataclass(frozen=True)
class Shard:
    """What a rank holds of a head, and how it computes with it. `ClassifierHead` explains the settings.

    Attributes:
        weight: Rows [lower, upper) of W, [C, D], or [C, k, D] with sub-centres; perhaps in bfloat16. None if there are
            none.
        bias: The same entries of the bias; None without one.
        lower: The first class of this rank.
        upper: One past the last class of this rank.
        emb_dim: D.
        margin: None for softmax.
        scale: The factor on the cosines; 1 without a margin.
        sharded: Whether the other ranks hold other rows, so that every rank computes logits for the global batch.
        bounded: Whether the exponentials of the logits, and their sums, are known to fit in the dtype.
        chunk: Rows in a chunk, as the user chose; 0 chooses for each step.
        sub_centers: k, the number of rows of a class.
        precision: The dtype of the products.
        simulate: Whether a CPU rounds the products as `precision` would.
        workers: The threads that walk over the rows.
        terms: What is changed in the loss.
        class_names: Names of all classes, for messages; empty if they are unknown.
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
    sub_centers: int
    precision: str
    simulate: bool
    workers: Workers
    terms: LossTerms = PLAIN_LOSS
    class_names: Sequence[str] = ()


def initialise_rows(weight: paddle.Tensor, lower: int, seed: int) -> None:
    """Fills the rows of W from class `lower` on with normal(0, 0.01); all threads of the process draw.

    The numbers are drawn in fixed blocks of the whole W, so that they do not depend on the sharding.
    """
    rows, *a_class = (int(side) for side in weight.shape)
    a_draw = max(1, _ROWS_PER_DRAW // math.prod(a_class[:-1]))  # in classes

    def draw(block: int) -> None:
        first = block * a_draw
        drawn = np.random.default_rng((seed, block)).standard_normal((a_draw, *a_class), dtype="float32")
        drawn *= np.float32(0.01)
        begin, end = max(lower, first), min(lower + rows, first + a_draw)
        values = tensor_like(drawn[begin - first : end - first], weight.dtype)
        with paddle.no_grad():
            paddle.assign(values, weight[begin - lower : end - lower])

    with ThreadPoolExecutor(computing_threads(), "plsc-draw") as pool:
        for _ in pool.map(draw, range(lower // a_draw, (lower + rows - 1) // a_draw + 1)):
            pass


def first_row_not_finite(weight: Optional[paddle.Tensor]) -> Optional[int]:
    """Returns the position of the first row that holds an infinity or NaN; None if all rows are finite."""
    for first in range(0, 0 if weight is None else int(weight.shape[0]), _ROWS_PER_CHECK):
        assert weight is not None
        bad = paddle.logical_not(paddle.isfinite(weight[first : first + _ROWS_PER_CHECK]).flatten(1).all(axis=1))
        if bool(bad.any()):
            return first + int(bad.astype("int64").argmax())
    return None
