"""Class centres in bfloat16: widened to float32 chunk by chunk, and rounded back at random.

An update is often smaller than half the gap between two neighbouring bfloat16 numbers, which is 1/256 to 1/128 of a
value. Rounded to the nearest, it would be lost each time. Rounded up with the probability that is its share of the gap,
the mean of the result is the value itself (Gupta et al., Deep Learning with Limited Numerical Precision, ICML 2015).

bfloat16 is the upper half of the bits of a float32. To add a random number of 16 bits to the bits and to drop the lower
half is to round so. Paddle computes with integers on every device, and with bfloat16 on GPUs alone.

Shapes: C rows of a chunk, D embedding.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import paddle

from plsc import parallel
from plsc.machine.bfloat16 import bfloat16_of

_PRIME = (1 << 31) - 1
_HALF = 1 << 16


def widened(rows_CD: paddle.Tensor) -> paddle.Tensor:
    """Returns bfloat16 rows in float32, and rows of another dtype as they are."""
    if rows_CD.dtype != paddle.bfloat16:
        return rows_CD
    # A cast to float32 takes twice as long, and twenty times as long in Paddle 2.6.
    return rows_CD.view("int16").astype("int32").scale_(_HALF).view("float32")


def tensor_like(values: np.ndarray, dtype: Any) -> paddle.Tensor:
    """Returns values as a tensor of a dtype; values that are rounded to bfloat16 become the nearest."""
    if dtype != paddle.bfloat16:
        return paddle.to_tensor(values).astype(dtype)
    # Paddle 2.6 cuts off where it casts. It takes uint16 for bfloat16.
    return paddle.to_tensor(bfloat16_of(values).view(np.uint16))


class Rounding:
    """The random numbers with which the matrices of a head are rounded in one step.

    Row r and column j of a matrix have the number `a(r) xor c(j)` of 16 bits. The numbers c(j) are drawn for each
    matrix and step, and a(r) = (A r + B) mod (2^31 - 1), with A and B drawn too. So each number is uniform, and any two
    of them are independent: the mean and the variance of sums of rounding errors are those of independent draws. They
    depend on the seed, the step, the class and the column alone, not on chunks, threads or ranks.

    Args:
        seed: Seed of the head.
        step: Number of the step.
        rows: The largest number of rows that are rounded at a time.
        emb_dim: D.
    """

    def __init__(self, seed: int, step: int, rows: int, emb_dim: int) -> None:
        self._key, self._rows, self._emb_dim = (seed, step), rows, emb_dim
        self._drawn: dict[int, tuple[int, int, paddle.Tensor]] = {}

    def prepare(self, matrices: int) -> None:
        """Draws the numbers of the first matrices, before several threads ask for them."""
        for matrix in range(matrices):
            rng = np.random.default_rng((*self._key, matrix, _PRIME))  # no other draw has a key of this length
            factor, offset = int(rng.integers(1, _PRIME)), int(rng.integers(_PRIME))
            columns = paddle.to_tensor(rng.integers(_HALF, size=(1, self._emb_dim), dtype="int32"))
            self._drawn[matrix] = factor, offset, paddle.tile(columns, [self._rows, 1])

    def round(self, values_CD: paddle.Tensor, classes: paddle.Tensor, matrix: int) -> paddle.Tensor:
        """Returns float32 rows in bfloat16; their memory is overwritten.

        Args:
            values_CD: The rows.
            classes: [C] The class of each, int64.
            matrix: Which matrix they belong to: 0 is W, and the others are what an optimizer keeps for it.
        """
        factor, offset, columns = self._drawn[matrix]
        rows, emb_dim = values_CD.shape
        of_row = ((classes * factor + offset) % _PRIME % _HALF).astype("int32")
        # The same in one broadcast operation takes ten times as long on a CPU.
        numbers_CD = paddle.tile(of_row.unsqueeze(1), [1, emb_dim]).bitwise_xor_(columns[:rows])
        halves = numbers_CD.add_(values_CD.view("int32")).view("int16").reshape([-1])
        return halves[1::2].contiguous().reshape([rows, emb_dim]).view("bfloat16")


def put_rows(matrix: paddle.Tensor, places: paddle.Tensor, values_CD: paddle.Tensor) -> None:
    """Writes rows of the same dtype to some places of a contiguous matrix [N, D], int64 [C]."""
    if matrix.dtype == paddle.bfloat16 and parallel.on_cpu():  # Paddle has this operation on GPUs alone
        _rows_in_memory(matrix)[places.numpy()] = _rows_in_memory(values_CD)
    else:
        matrix.scatter_(places, values_CD)


def _rows_in_memory(matrix: paddle.Tensor) -> np.ndarray:
    """Returns the rows of a bfloat16 matrix on the CPU, as an array that is valid while the matrix is.

    Paddle shares memory with NumPy only to read.
    """
    rows, emb_dim = matrix.shape
    memory = (ctypes.c_char * (2 * rows * emb_dim)).from_address(matrix.data_ptr())
    return np.frombuffer(memory, f"V{2 * emb_dim}")
