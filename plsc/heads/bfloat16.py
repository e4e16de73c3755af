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
from typing import Any, Union

import numpy as np
import paddle

from plsc import parallel
from plsc.machine.bfloat16 import bfloat16_of

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

    In each step, numbers of 16 bits are drawn for `PERIOD` rows. Classes whose numbers differ by a multiple of it share
    a row, but round other values by it. W and the matrices of an optimizer begin at different rows. So the numbers of a
    class depend on the seed, the step, the class and the column alone, not on chunks, threads or ranks.

    Args:
        seed: Seed of the head.
        step: Number of the step.
        rows: The largest number of rows that are rounded at a time.
        emb_dim: D.
    """

    PERIOD = 1024

    def __init__(self, seed: int, step: int, rows: int, emb_dim: int) -> None:
        self._key, self._rows, self._emb_dim = (seed, step, 0, 16), rows, emb_dim  # no other draw has such a key
        self._numbers = paddle.empty([0, emb_dim], "int32")

    @classmethod
    def repeated_rows(cls, rows: int) -> int:
        """Returns for how many rows numbers are held where up to `rows` are rounded at a time."""
        return cls.PERIOD * (2 + (rows - 1) // cls.PERIOD)

    def prepare(self) -> None:
        """Draws the numbers, before several threads ask for them."""
        drawn = np.frombuffer(np.random.default_rng(self._key).bytes(2 * self.PERIOD * self._emb_dim), "<u2")
        numbers = paddle.to_tensor(drawn.astype("int32").reshape(self.PERIOD, self._emb_dim))
        # Repeated, so that the numbers of any chunk are a part of them, and need no copy.
        self._numbers = paddle.tile(numbers, [self.repeated_rows(self._rows) // self.PERIOD, 1])

    def round(self, values_CD: paddle.Tensor, first: Union[int, paddle.Tensor], matrix: int) -> paddle.Tensor:
        """Returns float32 rows in bfloat16; their memory is overwritten.

        Args:
            values_CD: The rows.
            first: The class of the first of them, if they are consecutive; otherwise the class of each, int64 [C].
            matrix: Which matrix they belong to: 0 is W, and the others are what an optimizer keeps for it.
        """
        rows, emb_dim = values_CD.shape
        begin = (first + matrix * self.PERIOD // 8) % self.PERIOD
        if isinstance(begin, int):
            numbers_CD = self._numbers[begin : begin + rows]
        else:
            numbers_CD = paddle.gather(self._numbers, begin)
        halves = values_CD.view("int32").add_(numbers_CD).view("int16").reshape([-1])
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
