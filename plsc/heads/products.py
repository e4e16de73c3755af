"""The matrix products of the head, in float32 or in a low precision whose range the values are scaled into.

Shapes: B samples, C rows of a chunk, D embedding.
"""

from __future__ import annotations

import math
from typing import Optional

import paddle


class Products:
    """The products of float32 matrices, computed in `dtype` and returned in float32.

    In float16 and bfloat16 the operands are rounded, and a GPU accumulates in float32. float16 reaches from 6e-8 to
    65504, so probabilities are first multiplied by the largest power of two that cannot overflow, and the product is
    divided by it.

    The methods take `inverse_CB`, the inverse norms of the rows, once for each sample: a CPU takes three times as long
    to broadcast [C, 1] as to multiply two matrices of one shape. None stands for rows that are not normalised.

    Args:
        dtype: 'float32', 'float16' or 'bfloat16' (or 'float64', in which all operands then are).
        terms: The largest number of terms in a sum.
        simulate: Whether to round the operands and the product to `dtype` but compute in float32, on devices without
            such arithmetic.
    """

    def __init__(self, dtype: str, terms: int, simulate: bool = False) -> None:
        self.low: Optional[str] = None if dtype in ("float32", "float64") else dtype
        self._simulate = simulate
        self._boost = 2.0 ** max(0, 14 - math.ceil(math.log2(max(terms, 1)))) if dtype == "float16" else 1.0

    def logits(
        self, weight_CD: paddle.Tensor, query_BD: paddle.Tensor, inverse_CB: Optional[paddle.Tensor]
    ) -> paddle.Tensor:
        """Returns row . query for every row and query [C, B], where a row is `inverse * weight`."""
        if self.low is not None:
            return self._rounded_product(_times(weight_CD, inverse_CB), query_BD, transpose_y=True)
        product_CB = paddle.matmul(weight_CD, query_BD, transpose_y=True)
        # The smaller of the two is scaled: the product, not the rows.
        return product_CB if inverse_CB is None else product_CB.multiply_(inverse_CB)

    def add_pull(
        self,
        pull_BD: paddle.Tensor,
        softmax_CB: paddle.Tensor,
        weight_CD: paddle.Tensor,
        inverse_CB: Optional[paddle.Tensor],
    ) -> None:
        """Adds softmax^T rows to `pull_BD`.

        The softmax need not be divided by its denominator, but in a low precision it must be in [0, 1]. It may be
        overwritten.
        """
        if self.low is None:
            if inverse_CB is not None:
                softmax_CB.multiply_(inverse_CB)
            pull_BD.add_(paddle.matmul(softmax_CB, weight_CD, transpose_x=True))
            return
        rows_CD = _times(weight_CD, inverse_CB)
        pull_BD.add_(self._rounded_product(softmax_CB * self._boost, rows_CD, transpose_x=True) * (1.0 / self._boost))

    def add_gradient(
        self,
        gradient_CD: paddle.Tensor,
        momentum: float,
        softmax_CB: paddle.Tensor,
        query_BD: paddle.Tensor,
        inverse_CB: Optional[paddle.Tensor],
    ) -> None:
        """Computes momentum * gradient + inverse * (softmax query) into `gradient_CD`.

        The softmax is as in `add_pull`.
        """
        if self.low is None:
            if inverse_CB is not None:
                softmax_CB.multiply_(inverse_CB)
            gradient_CD.addmm_(softmax_CB, query_BD, beta=momentum, alpha=1.0)
            return
        largest = paddle.clip(query_BD.abs().max(), min=1e-30)
        product_CD = self._rounded_product(softmax_CB * self._boost, query_BD / largest) * (largest / self._boost)
        gradient_CD.scale_(momentum).add_(_times(product_CD, inverse_CB))

    def _rounded_product(self, left: paddle.Tensor, right: paddle.Tensor, **transposes: bool) -> paddle.Tensor:
        left, right = left.astype(self.low), right.astype(self.low)
        if not self._simulate:
            return paddle.matmul(left, right, **transposes).astype("float32")
        return (
            paddle.matmul(left.astype("float32"), right.astype("float32"), **transposes)
            .astype(self.low)
            .astype("float32")
        )


def _times(matrix_CD: paddle.Tensor, factor_CB: Optional[paddle.Tensor]) -> paddle.Tensor:
    return matrix_CD if factor_CB is None else matrix_CD * factor_CB[:, :1]
