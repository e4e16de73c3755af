"""Class centres in bfloat16: widened to float32 chunk by chunk, and rounded back at random.

An update is often smaller than half the gap between two neighbouring bfloat16 numbers, which is 1/256 to 1/128 of a
value. Rounded to the nearest, it would be lost each time. Rounded up with the probability that is its share of the gap,
the mean of the result is the value itself (Gupta et al., Deep Learning with Limited Numerical Precision, ICML 2015).

bfloat16 is the upper half of the bits of a float32. To add a random number of 16 bits to the bits and to drop the lower
half is to round so. NumPy does that on a CPU, in the memory of Paddle's tensors and several times as fast as Paddle,
which computes with integers on every device. The results are the same.

A finite value above the largest bfloat16 number, 3.39e38, may become infinite, as it is rounded up.

Shapes: C rows of a chunk, D embedding.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, Optional, Union

import numpy as np
import paddle

from plsc import parallel
from plsc.machine.bfloat16 import bfloat16_of

_BITS = 16  # of the half that is dropped


def widened(rows: paddle.Tensor) -> paddle.Tensor:
    """Returns bfloat16 rows in float32, and rows of another dtype as they are."""
    if rows.dtype != paddle.bfloat16:
        return rows
    if not parallel.on_cpu():
        return rows.view("int16").astype("int32").scale_(1 << _BITS).view("float32")
    values = paddle.empty(rows.shape, "float32")
    bits = _in_memory(values, "uint32")
    np.copyto(bits, _in_memory(rows, "uint16"))
    np.left_shift(bits, _BITS, out=bits)
    return values


def tensor_like(values: np.ndarray, dtype: Any) -> paddle.Tensor:
    """Returns values as a tensor of a dtype; values that are rounded to bfloat16 become the nearest."""
    if dtype != paddle.bfloat16:
        return paddle.to_tensor(values).astype(dtype)
    # Paddle 2.6 cuts off where it casts. It takes uint16 for bfloat16.
    return paddle.to_tensor(bfloat16_of(values).view(np.uint16))


class Rounding:
    """The random numbers with which the matrices of a head are rounded in one step.

    In each step, numbers of 16 bits are drawn for `PERIOD` rows. Rows whose numbers differ by a multiple of it share
    them, but round other values by them. W and the matrices of an optimizer begin at different rows. So the numbers of
    a row depend on the seed, the step, the row and the column alone, not on chunks, threads or ranks.

    Args:
        seed: Seed of the head.
        step: Number of the step.
        emb_dim: D.
    """

    PERIOD = 256

    def __init__(self, seed: int, step: int, emb_dim: int) -> None:
        self._key, self._emb_dim = (seed, step, 0, 16), emb_dim  # no other draw has such a key
        self._numbers: Any = None

    @classmethod
    def rows_of_numbers(cls, chunk: int, threads: int, on_cpu: bool) -> int:
        """Returns for how many rows numbers of 4 bytes are in memory, where so many threads round chunks."""
        return cls.PERIOD * (2 + threads) if on_cpu else cls.PERIOD + 3 * chunk

    def prepare(self) -> None:
        """Draws the numbers, before several threads ask for them."""
        drawn = np.frombuffer(np.random.default_rng(self._key).bytes(2 * self.PERIOD * self._emb_dim), "<u2")
        drawn = drawn.reshape(self.PERIOD, self._emb_dim)
        if parallel.on_cpu():  # twice, so that those of any rows that follow each other are a part of them
            self._numbers = np.concatenate([drawn, drawn]).astype("uint32")
        else:
            self._numbers = paddle.to_tensor(drawn.astype("int32"))

    def round(
        self,
        values_CD: paddle.Tensor,
        first: Union[int, paddle.Tensor],
        matrix: int,
        out: Optional[paddle.Tensor] = None,
    ) -> paddle.Tensor:
        """Returns float32 rows in bfloat16; their memory is overwritten.

        Args:
            values_CD: The rows.
            first: The number of the first of them in the whole matrix, if they are consecutive; otherwise the number of
                each, int64 [C].
            matrix: Which matrix they belong to: 0 is W, and the others are what an optimizer keeps for it.
            out: A contiguous tensor of as many numbers, to which they are written; None makes one.
        """
        rows, emb_dim = values_CD.shape
        out = paddle.empty([rows, emb_dim], "bfloat16") if out is None else out
        begin = (first + matrix * self.PERIOD // 8) % self.PERIOD
        if not parallel.on_cpu():
            self._round_by_paddle(values_CD, begin, out)
            return out
        values, rounded = _in_memory(values_CD, "uint32"), _in_memory(out, "uint16").reshape(rows, emb_dim)
        for row in range(0, rows, self.PERIOD):
            part = slice(row, min(row + self.PERIOD, rows))
            if isinstance(begin, int):
                numbers = self._numbers[begin : begin + part.stop - row]
            else:
                numbers = self._numbers.take(begin[part].numpy(), axis=0)
            _round_bits(values[part], numbers, rounded[part])
        return out

    def _round_by_paddle(self, values_CD: paddle.Tensor, begin: Union[int, paddle.Tensor], out: paddle.Tensor) -> None:
        if isinstance(begin, int):
            begin = paddle.arange(begin, begin + values_CD.shape[0]) % self.PERIOD
        # A GPU sets all bits of the mantissa of a NaN, so that a sum with them would be -0.
        numbers_CD = paddle.gather(self._numbers, begin) * paddle.isfinite(values_CD).astype("int32")
        halves = values_CD.view("int32").add_(numbers_CD).view("int16").reshape([-1])
        paddle.assign(halves[1::2].contiguous().reshape(out.shape).view("bfloat16"), out)


def _round_bits(bits: np.ndarray, numbers: np.ndarray, out: np.ndarray) -> None:
    np.add(bits, numbers, out=bits)
    np.right_shift(bits, _BITS, out=bits)  # a cast of whole numbers is twice as fast as a copy of every second half
    np.copyto(out, bits, casting="unsafe")


def put_rows(matrix: paddle.Tensor, places: paddle.Tensor, values: paddle.Tensor) -> None:
    """Writes rows of the same dtype to some places of a contiguous matrix, int64 [C].

    Args:
        matrix: [N, D], or [N, k, D] with sub-centres.
        places: The places of the rows.
        values: [C, D] or [C, k, D].
    """
    if matrix.dtype == paddle.bfloat16 and parallel.on_cpu():  # Paddle has this operation on GPUs alone
        _in_memory(matrix, "uint16")[places.numpy()] = _in_memory(values, "uint16")
    else:
        matrix.scatter_(places, values)


def _in_memory(tensor: paddle.Tensor, dtype: str) -> np.ndarray:
    """Returns the bits of a contiguous tensor on the CPU, as an array that is valid while the tensor is.

    Paddle shares memory with NumPy only to read.
    """
    shape, kind = tuple(tensor.shape), np.dtype(dtype)
    if not all(shape):
        return np.empty(shape, kind)
    memory = (ctypes.c_char * (kind.itemsize * math.prod(shape))).from_address(tensor.data_ptr())
    return np.frombuffer(memory, kind).reshape(shape)
