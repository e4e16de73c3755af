"""What a teacher asks of a student's embeddings: two losses and their exact gradients, without autograd.

docs/finetune.md says when to use which. plsc/heads/reference.py computes the same numbers in the plainest way.

Shapes: B samples of all ranks, b samples of this rank, D the student's embedding, E the teacher's embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import paddle

from plsc import parallel
from plsc.heads.step import normalised, through_normalisation


class Lesson(NamedTuple):
    """What a teacher asks of this rank's samples of one micro-batch.

    Attributes:
        loss_b: The loss of each sample.
        embedding_grad: [b, D] d(the sum of the losses of the samples of all ranks)/d(embedding).
    """

    loss_b: paddle.Tensor
    embedding_grad: paddle.Tensor


def cosine(embedding: paddle.Tensor, target: paddle.Tensor, counts: Sequence[int]) -> Lesson:
    """Asks each embedding to point where the teacher's does: the loss of a sample is 1 - cos(student, teacher).

    Args:
        embedding: [b, D] The student's embeddings of this rank.
        target: [b, D] The teacher's embeddings of the same images.
        counts: The number of samples of each rank.
    """
    unit_bD, inverse_b1, _ = normalised(embedding)
    target_bD, _, _ = normalised(target)
    loss_b = 1.0 - (unit_bD * target_bD).sum(axis=1)
    return Lesson(loss_b, through_normalisation(-target_bD, unit_bD, inverse_b1))


def relation(embedding: paddle.Tensor, target: paddle.Tensor, counts: Sequence[int]) -> Lesson:
    """Asks the cosines between the samples of all ranks to be those between the teacher's embeddings.

    The loss of a sample is the mean, over the other samples, of (cosine of the student - cosine of the teacher)^2. It
    compares relations, like the distance-wise loss of "Relational Knowledge Distillation" (Park et al., CVPR 2019), in
    the form of "Similarity-Preserving Knowledge Distillation" (Tung and Mori, ICCV 2019, equation 4): the squared
    difference of two matrices of similarities. Theirs are of activations, and rows have unit length; here they are
    cosines of embeddings, so student and teacher may differ in their sizes.

    Args:
        embedding: [b, D] The student's embeddings of this rank.
        target: [b, E] The teacher's embeddings of the same images.
        counts: The number of samples of each rank.
    """
    unit_bD, inverse_b1, _ = normalised(embedding)
    target_bE, _, _ = normalised(target)
    unit_BD, target_BE = (parallel.all_gather_rows(one, list(counts)) for one in (unit_bD, target_bE))
    first, others = sum(counts[: parallel.rank()]), max(1, sum(counts) - 1)
    excess_bB = paddle.matmul(unit_bD, unit_BD, transpose_y=True)
    excess_bB = excess_bB - paddle.matmul(target_bE, target_BE, transpose_y=True)
    # A sample is not compared with itself.
    number_b1 = paddle.arange(first, first + embedding.shape[0]).unsqueeze(1)
    is_itself = number_b1 == paddle.arange(sum(counts)).unsqueeze(0)
    excess_bB = paddle.where(is_itself, paddle.zeros_like(excess_bB), excess_bB)
    loss_b = (excess_bB * excess_bB).sum(axis=1) / others
    # Each cosine is in the loss of two samples, hence 4 and not 2.
    by_unit_bD = paddle.matmul(excess_bB, unit_BD) * (4.0 / others)
    return Lesson(loss_b, through_normalisation(by_unit_bD, unit_bD, inverse_b1))


LESSONS: dict[str, Callable[[paddle.Tensor, paddle.Tensor, Sequence[int]], Lesson]] = {
    "cosine": cosine,
    "relation": relation,
}
