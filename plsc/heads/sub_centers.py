"""Sub-centres: a class has k rows of W, and an embedding's cosine with the class is that with the nearest of them.

Wrong and hard images of a class gather at rows of their own, so that the main one is not drawn to them (Deng et al.,
"Sub-center ArcFace: Boosting Face Recognition by Large-scale Noisy Web Faces", ECCV 2020, equation 3). The gradient
goes to the nearest row alone; of rows that are equally near, the first is the nearest.

Shapes: B samples, K classes of a chunk, C = K k rows of a chunk, n samples whose class this rank holds, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import paddle

from plsc.heads.rows import inverse_norms


@dataclass(frozen=True)
class Nearest:
    """The rows of a chunk that are nearest to each sample.

    Attributes:
        product_CB: row . query of all rows.
        product_KB: The largest product of each class; the same tensor where a class has one row.
        higher: [K, B] For each row of a class but the first, 1 where it is nearer than all before it, and else 0.
    """

    product_CB: paddle.Tensor
    product_KB: paddle.Tensor
    higher: tuple[paddle.Tensor, ...] = ()

    def spread(self, values_KB: paddle.Tensor) -> paddle.Tensor:
        """Returns values of the classes at their nearest rows [C, B], and 0 at the other rows."""
        if not self.higher:
            return values_KB
        parts, rest_KB = [], values_KB
        for higher_KB in reversed(self.higher):  # the last that is nearer than all before it is the nearest
            parts.append(rest_KB * higher_KB)
            rest_KB = rest_KB - parts[-1]
        return paddle.stack([rest_KB, *reversed(parts)], axis=1).reshape(self.product_CB.shape)


def nearest_of(product_CB: paddle.Tensor, sub_centers: int) -> Nearest:
    """Finds the nearest row of each class.

    Args:
        product_CB: row . query, where the `sub_centers` rows of a class follow each other.
        sub_centers: k.
    """
    if sub_centers == 1:
        return Nearest(product_CB, product_CB)
    rows, batch = product_CB.shape
    parts = paddle.unbind(product_CB.reshape([rows // sub_centers, sub_centers, batch]), axis=1)
    largest_KB, higher = parts[0], []
    for part_KB in parts[1:]:
        higher.append((part_KB > largest_KB).astype(part_KB.dtype))
        largest_KB = paddle.maximum(largest_KB, part_KB)
    return Nearest(product_CB, largest_KB, tuple(higher))


def nearest_rows(rows_nkD: paddle.Tensor, direction_nD: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Finds the nearest of k rows for each sample.

    Args:
        rows_nkD: The rows of the sample's class.
        direction_nD: The sample.

    Returns:
        The nearest row [n, D], and which of the k it is [n] int64.
    """
    inverse_nk = inverse_norms(rows_nkD.reshape([-1, rows_nkD.shape[-1]])).reshape(rows_nkD.shape[:2])
    cosine_nk = (rows_nkD * direction_nD.unsqueeze(1)).sum(axis=2) * inverse_nk
    is_nearest_nk = cosine_nk == cosine_nk.max(axis=1, keepdim=True)
    number_1k = paddle.arange(cosine_nk.shape[1]).unsqueeze(0)
    # `argmax` does not say which of several equal elements it takes.
    last = paddle.full_like(number_1k, cosine_nk.shape[1] - 1)
    nearest_n = paddle.where(is_nearest_nk, number_1k, last).min(axis=1)
    first_n = paddle.arange(rows_nkD.shape[0]) * cosine_nk.shape[1]
    return paddle.gather(rows_nkD.reshape([-1, rows_nkD.shape[-1]]), first_n + nearest_n), nearest_n
