"""The rows' side of a walk: which rows of a shard take part in a step, and how they are cut into chunks.

Shapes: N classes walked over, C rows of a chunk, D embedding. A class has one row, or k with sub-centres; these follow
each other, and are always in the same chunk.
"""

from __future__ import annotations

from typing import Optional, Union

import numpy as np
import paddle

from plsc.heads.bfloat16 import Rounding, put_rows, widened
from plsc.heads.shard import Shard


class Rows:
    """The rows of a shard that take part in a step, cut into chunks.

    With a margin they count as unit vectors. A row shorter than 1e-9 counts as a zero row: its cosines are 0, and it
    has no gradient.

    Args:
        shard: What this rank holds; it has at least one row.
        selected: [N] Positions in the shard of the classes that take part, ascending; None for all classes.
        chunk: The number of classes in a chunk (the last may have fewer).
        keeping: The fraction of the chunks whose products the first walk leaves to the second, if any.
        rounding: How bfloat16 rows are rounded; None where the rows are not in bfloat16, or do not move.

    Attributes:
        count: N.
        sub_centers: k, the number of rows of a class.
        chunks: The number of chunks.
        kept: The products row . query [C, B] of some chunks, by number, which every later walk of the step reads.
    """

    def __init__(
        self,
        shard: Shard,
        selected: Optional[np.ndarray],
        chunk: int,
        keeping: float = 0.0,
        rounding: Optional[Rounding] = None,
    ) -> None:
        assert shard.weight is not None
        self.shard, self.selected, self.chunk = shard, selected, chunk
        self.weight, self.bias, self.sub_centers = shard.weight, shard.bias, shard.sub_centers
        self.count = int(self.weight.shape[0]) if selected is None else len(selected)
        self.chunks = -(-self.count // chunk)
        self._index = None if selected is None else paddle.to_tensor(selected)
        self.kept: dict[int, paddle.Tensor] = {}
        self._keeping, self._rounding = keeping, rounding
        self._inverse_norms: list[Optional[paddle.Tensor]] = [None] * self.chunks

    def places(self, shard_rows: np.ndarray) -> np.ndarray:
        """Returns where these rows of the shard are in the walk; all of them take part."""
        return shard_rows if self.selected is None else np.searchsorted(self.selected, shard_rows)

    def classes(self, number: int) -> paddle.Tensor:
        """Returns the classes of a chunk, int64; they are made on the device."""
        (first, last), lower = self._bounds(number), self.shard.lower
        if self._index is None:
            return paddle.arange(lower + first, lower + last, dtype="int64")
        return self._index[first:last] + lower

    def size(self, number: int) -> int:
        """Returns how many rows a chunk has."""
        first, last = self._bounds(number)
        return (last - first) * self.sub_centers

    def of(self, matrix: paddle.Tensor, number: int) -> paddle.Tensor:
        """Returns a chunk of a matrix of the shard [C, D]: a view, or a copy where rows are selected or in bfloat16.

        A copy of bfloat16 rows is in float32.
        """
        first, last = self._bounds(number)
        chunk = matrix[first:last] if self._index is None else paddle.gather(matrix, self._index[first:last])
        return widened(chunk if self.sub_centers == 1 else chunk.reshape([-1, matrix.shape[-1]]))

    def prepare_rounding(self) -> None:
        """Prepares `put_back`, before several threads call it."""
        if self._rounding is not None:
            self._rounding.prepare()

    def put_back(self, matrix: paddle.Tensor, number: int, values: paddle.Tensor, place: int = 0) -> None:
        """Writes what `of` copied back into the matrix; a view needs no writing back.

        Args:
            matrix: The matrix.
            number: The number of the chunk.
            values: The rows. The memory of rows that are rounded to bfloat16 is overwritten.
            place: 0 for W, and the numbers from 1 on for the buffers of a sink.
        """
        first, last = self._bounds(number)
        if matrix.dtype == paddle.bfloat16:
            assert self._rounding is not None
            out = matrix[first:last] if self._index is None else None  # selected rows lie apart
            values = self._rounding.round(values, self._row_numbers(number), place, out)
        if self._index is not None:
            if self.sub_centers > 1:
                values = values.reshape([-1, *matrix.shape[1:]])
            put_rows(matrix, self._index[first:last], values)

    def all_of(self, vector: paddle.Tensor) -> paddle.Tensor:
        """Returns the entries of a vector of the shard that take part [N]: a view, or a copy of the selected ones."""
        return vector[:] if self._index is None else paddle.gather(vector, self._index)

    def put_all_back(self, vector: paddle.Tensor, values: paddle.Tensor) -> None:
        """Writes what `all_of` copied back into the vector."""
        if self._index is not None:
            vector.scatter_(self._index, values)

    def inverse_norms(self, number: int, weight_CD: paddle.Tensor) -> Optional[paddle.Tensor]:
        """Returns 1 / |row| of a chunk [C, 1], computed once a step; None where rows are not normalised."""
        if self.shard.margin is not None and self._inverse_norms[number] is None:
            self._inverse_norms[number] = inverse_norms(weight_CD)
        return self._inverse_norms[number]

    def keep(self, number: int, product_CB: paddle.Tensor) -> bool:
        """Keeps the products of a chunk, if it is one of those that are kept; they must not be changed then."""
        # Spread over all chunks, so that every thread has as much to do.
        is_kept = int((number + 1) * self._keeping) > int(number * self._keeping)
        if is_kept:
            self.kept[number] = product_CB
        return is_kept

    def _row_numbers(self, number: int) -> Union[int, paddle.Tensor]:
        """Returns the number in W of the first row of a chunk, or of each row where rows are selected."""
        if self._index is None:
            return (self.shard.lower + self._bounds(number)[0]) * self.sub_centers
        first_K = self.classes(number) * self.sub_centers
        return first_K if self.sub_centers == 1 else (first_K.unsqueeze(1) + paddle.arange(self.sub_centers)).flatten()

    def _bounds(self, number: int) -> tuple[int, int]:
        return number * self.chunk, min((number + 1) * self.chunk, self.count)


def inverse_norms(rows_CD: paddle.Tensor) -> paddle.Tensor:
    """Returns 1 / |row| [C, 1]; 0 for rows shorter than 1e-9 (1e-100 in float64) or whose square is infinite."""
    smallest = 1e-18 if rows_CD.dtype == paddle.float32 else 1e-200
    # A product with ones adds up a row several times as fast as `sum`.
    square_C1 = paddle.matmul(paddle.square(rows_CD), paddle.ones([rows_CD.shape[1], 1], rows_CD.dtype))
    return paddle.rsqrt(paddle.clip(square_C1, min=smallest)) * (square_C1 >= smallest).astype(rows_CD.dtype)
