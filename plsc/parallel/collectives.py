"""Collectives over the ranks of the run; with one rank every function works locally.

Those of objects and flags wait for a rank that is late. Those of tensors do not: call `meet` before the first of them
that may follow long work of one rank.
"""

from __future__ import annotations

import math
from typing import Any, Union

import numpy as np
import paddle
from paddle import distributed

from plsc.parallel.action import meet
from plsc.parallel.ranks import world_size

_PIECE_BYTES = 32 << 20


def all_reduce_sum(tensor: paddle.Tensor) -> paddle.Tensor:
    """Replaces `tensor` with its sum over the ranks and returns it; every rank gets the same bits."""
    if world_size() > 1:
        distributed.all_reduce(tensor, op=distributed.ReduceOp.SUM)
    return tensor


class Pending:
    """The result of a collective that may still be running.

    With nccl it runs while this process computes something else, until `wait`; with gloo it is complete when it starts.

    Args:
        result: What `wait` returns: a tensor, or a list of tensors that it stacks.
        task: The running collective, or None.
    """

    def __init__(self, result: Union[paddle.Tensor, list[paddle.Tensor]], task: Any = None) -> None:
        self._result, self._task = result, task

    def wait(self) -> paddle.Tensor:
        """Waits for the collective and returns its result."""
        if self._task is not None:
            self._task.wait()
        return paddle.stack(self._result) if isinstance(self._result, list) else self._result


def start_all_reduce_sum(tensor: paddle.Tensor) -> Pending:
    """Starts `all_reduce_sum` and returns without waiting for it."""
    if world_size() == 1:
        return Pending(tensor)
    return Pending(tensor, distributed.all_reduce(tensor, op=distributed.ReduceOp.SUM, sync_op=False))


def start_all_gather(tensor: paddle.Tensor) -> Pending:
    """Starts to gather tensors of one shape from all ranks, in rank order: [...] -> [world_size, ...]."""
    if world_size() == 1:
        return Pending(tensor.unsqueeze(0))
    parts: list[paddle.Tensor] = []
    return Pending(parts, distributed.all_gather(parts, tensor.contiguous(), sync_op=False))


def all_gather_rows(tensor: paddle.Tensor, counts: list[int]) -> paddle.Tensor:
    """Returns the rows of all ranks, in rank order: [n_r, ...] -> [sum of all n_r, ...].

    Args:
        tensor: Rows of this rank.
        counts: Number of rows of every rank, n_r; it may be 0.
    """
    if world_size() == 1:
        return tensor
    most = max(counts)
    if most == 0:
        return tensor
    padded = tensor
    if tensor.shape[0] < most:
        padding = paddle.zeros([most - tensor.shape[0], *tensor.shape[1:]], dtype=tensor.dtype)
        padded = padding if tensor.shape[0] == 0 else paddle.concat([tensor, padding])
    parts = start_all_gather(padded).wait()
    return paddle.concat([part[:count] for part, count in zip(parts, counts) if count])


def all_gather_arrays(array: np.ndarray, what: str) -> list[np.ndarray]:
    """Returns the array of every rank, in rank order; they may differ in the size of the first axis.

    They travel as tensors, some rows at a time. As an object, the longest one would be held once for each rank on every
    device, whatever the size of the others.

    Args:
        array: The array of this rank.
        what: What late ranks are waited for; see `meet`.
    """
    if world_size() == 1:
        return [array]
    shapes = all_gather_object((array.shape, array.dtype.str), what)
    counts = [shape[0] for shape, _ in shapes]
    shape, dtype = shapes[int(np.argmax(counts))]  # a rank without rows may not know the others' shape
    own = array if len(array) else np.empty((0, *shape[1:]), dtype)
    step = max(1, _PIECE_BYTES // max(1, own.itemsize * math.prod(shape[1:])))
    pieces: list[list[np.ndarray]] = [[np.empty((0, *shape[1:]), dtype)] for _ in counts]
    for first in range(0, max(counts), step):
        sizes = [min(max(count - first, 0), step) for count in counts]
        rows = all_gather_rows(paddle.to_tensor(own[first : first + step]), sizes).numpy()
        for of_rank, piece in zip(pieces, np.split(rows, np.cumsum(sizes)[:-1])):
            of_rank.append(piece)
    return [np.concatenate(of_rank) for of_rank in pieces]


def all_gather_object(value: Any, what: str) -> list[Any]:
    """Returns the `value` of every rank, in rank order.

    Args:
        value: An object that can be pickled.
        what: What late ranks are waited for; see `meet`.
    """
    if world_size() == 1:
        return [value]
    meet(what)
    values: list[Any] = []
    distributed.all_gather_object(values, value)
    return values


def any_rank(flag: bool, what: str) -> bool:
    """Returns whether `flag` is true on at least one rank.

    Args:
        flag: The flag of this rank.
        what: What late ranks are waited for; see `meet`.
    """
    if world_size() == 1:
        return flag
    meet(what)
    return all_reduce_sum(paddle.to_tensor([int(flag)], dtype="int64")).item() > 0
