"""What can be changed in the loss of any head: a filter of other classes, label smoothing, numbers for each class.

    Z_i = sum over the classes j that take part of exp(z_ij), without the other classes with cos(theta_ij) > t
    l_i = log Z_i - (1 - e) z_iy - e / K sum_j z_ij
    loss = sum_i w_y l_i / sum_i w_y, over the samples i of the global batch, with labels y

Here z are the logits, with the margin at the label, which may differ between classes, and K is the number of classes
that take part in the step: all of them, or those that are drawn. With t = 1, e = 0 and equal w, this is the mean cross
entropy. `plsc.heads.reference` computes it as it stands; the walks in `plsc.heads.walk` and the stages in
`plsc.heads.step` ask a `LossTerms`, and do nothing more than before where a term is off.

Shapes: B samples, C rows of a chunk, D embedding, N classes of the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union

import numpy as np
import paddle

_SLACK = 0.01  # by which rounding may lift a logit above the logarithm of the sum that it is part of


@dataclass(frozen=True, eq=False)
class LossTerms:
    """What is changed in the loss of a head; by default nothing.

    Attributes:
        interclass_filter: t. A class that is not the label leaves the sum Z of a sample if its cosine is above t: it
            probably is the same identity under another label. 0 keeps all. This is `interclass_filtering_threshold` of
            arcface_torch, which leaves exp(0) in the sum for such a class. The gradient does not flow through the
            comparison.
        label_smoothing: e, in [0, 1). The label is asked for a probability of 1 - e + e / K, and every other class that
            takes part, filtered or not, for e / K (Szegedy et al., Rethinking the Inception Architecture, CVPR 2016,
            section 7).
        class_weights: w, float32 [N], at least 0; None weighs all classes the same.
        class_margins: The margin of each class in place of that of the loss, float32 [N]; None without.
    """

    interclass_filter: float = 0.0
    label_smoothing: float = 0.0
    class_weights: Optional[np.ndarray] = None
    class_margins: Optional[np.ndarray] = None

    def weight_of(self, labels: np.ndarray) -> Union[int, float]:
        """Returns the sum of the weights of samples, by their labels: the number of samples without class weights."""
        return len(labels) if self.class_weights is None else float(self.class_weights[labels].sum(dtype="float64"))

    def weights_at(self, labels: np.ndarray, dtype: paddle.dtype) -> Optional[paddle.Tensor]:
        """Returns the weights of samples, by their labels, [B]; None without class weights."""
        return None if self.class_weights is None else paddle.to_tensor(self.class_weights[labels]).astype(dtype)

    def margins_at(self, labels: np.ndarray, dtype: paddle.dtype) -> Optional[paddle.Tensor]:
        """Returns the margins of samples, by their labels, [B]; None without class margins."""
        return None if self.class_margins is None else paddle.to_tensor(self.class_margins[labels]).astype(dtype)


PLAIN_LOSS = LossTerms()


def class_balanced_weights(counts: np.ndarray, beta: float) -> np.ndarray:
    """Returns a weight for each class: 1 / the effective number of its images, (1 - beta) / (1 - beta^n).

    beta = 0 weighs all classes the same, and beta towards 1 by 1 / n (Cui et al., Class-Balanced Loss Based on
    Effective Number of Samples, CVPR 2019, sections 3 and 4). A class without images counts as one with one image.

    Args:
        counts: n, the number of images of each class, int64 [N].
        beta: In [0, 1).

    Returns:
        float32 [N].
    """
    effective = -np.expm1(np.maximum(counts, 1) * np.log(beta)) / (1.0 - beta) if beta else np.ones(len(counts))
    return (1.0 / effective).astype("float32")


def ldam_margins(counts: np.ndarray, largest: float) -> np.ndarray:
    """Returns a margin for each class that falls with its images n, as n^(-1/4).

    The rarest class has the largest margin (Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware
    Margin Loss, NeurIPS 2019, section 3). A class without images has that of the rarest.

    Args:
        counts: n, the number of images of each class, int64 [N].
        largest: The margin of the rarest class.

    Returns:
        float32 [N].
    """
    rarest = counts[counts > 0].min(initial=np.iinfo("int64").max)
    return (largest * (rarest / np.maximum(counts, rarest)) ** 0.25).astype("float32")


def unfiltered(
    product_CB: paddle.Tensor, limit: float, logits_CB: paddle.Tensor, log_total_1B: Optional[paddle.Tensor]
) -> paddle.Tensor:
    """Returns 1 for the classes that stay in the sum of a sample, and 0 for those that leave it.

    Args:
        product_CB: Cosines times the scale.
        limit: The filter's threshold times the scale.
        logits_CB: The logits.
        log_total_1B: [1, B] The logarithm of the whole sum in the second walk; None in the first, which finds it. What
            was in the sum cannot exceed it. So a class that was filtered stays so, if rounding differs between the
            walks: its exponential could be any multiple of the sum.
    """
    kept_CB = product_CB <= limit
    if log_total_1B is not None:
        kept_CB = paddle.logical_and(kept_CB, logits_CB <= log_total_1B + _SLACK)
    return kept_CB.astype(product_CB.dtype)


def sum_of_rows(weight_CD: paddle.Tensor, inverse_C1: Optional[paddle.Tensor]) -> paddle.Tensor:
    """Returns the sum of the rows of a chunk [1, D]; of the unit rows where there are inverse norms."""
    factor_C1 = paddle.ones([weight_CD.shape[0], 1], weight_CD.dtype) if inverse_C1 is None else inverse_C1
    return paddle.matmul(factor_C1, weight_CD, transpose_x=True)
