"""Ranks and collectives. No other module calls paddle.distributed; with one rank every function works locally."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable
from typing import Any, Optional, TypeVar, Union

import numpy as np
import paddle
from paddle import distributed

from plsc.errors import ConfigError, PlscError

T = TypeVar("T")

_initialised = False
# Paddle's wrappers are kept until the process ends: the hooks they leave on the parameters would crash without them.
_wrapped: weakref.WeakKeyDictionary[paddle.nn.Layer, tuple[paddle.nn.Layer, tuple[str, ...]]] = (
    weakref.WeakKeyDictionary()
)


def rank() -> int:
    """Returns the rank of this process, in [0, world_size())."""
    return int(os.environ.get("PADDLE_TRAINER_ID", 0)) if world_size() > 1 else 0


def world_size() -> int:
    """Returns the number of ranks that the launcher has started; 1 without a launcher."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", 1))


def restarted() -> Optional[float]:
    """Returns when `plsc run --restarts` first started this run, in seconds since 1970.

    It is None unless the run has failed and been started again.
    """
    first = os.environ.get("PLSC_RESTART")
    return None if first is None else float(first)


def on_cpu() -> bool:
    """Returns whether this process computes on a CPU, where Paddle has no half-precision arithmetic."""
    return str(paddle.get_device()) == "cpu"


def initialise() -> None:
    """Joins the ranks of this run; further calls in a process do nothing."""
    global _initialised
    if _initialised:
        return
    if not paddle.is_compiled_with_cuda():
        os.environ.setdefault("PADDLE_DISTRI_BACKEND", "gloo")
    if world_size() > 1:
        # fleet.init would add groups for pipelines and the like, which plsc does not use. On gloo, making them fails at
        # random with "Connection refused" (3 of 5 starts of 4 ranks, Paddle 3.3.1; 0 of 5 this way).
        distributed.init_parallel_env()
    _initialised = True


def distributed_model(model: paddle.nn.Layer, find_unused_parameters: bool) -> paddle.nn.Layer:
    """Returns a wrapper of `model` that averages its gradients over the ranks during the backward pass.

    Every rank then holds the weights of rank 0. With one rank the model itself is returned.

    Args:
        model: The model; wrapping it again returns the same wrapper.
        find_unused_parameters: Whether the model may hold parameters that a forward pass does not use.

    Raises:
        ConfigError: The model was wrapped before, and other parameters are trained now.
    """
    if world_size() == 1:
        return model
    trained = tuple(name for name, parameter in model.named_parameters() if not parameter.stop_gradient)
    if model not in _wrapped:
        _wrapped[model] = (paddle.DataParallel(model, find_unused_parameters=find_unused_parameters), trained)
    else:
        distributed.parallel.sync_params_buffers(model)
    wrapper, trained_then = _wrapped[model]
    if trained != trained_then:
        raise ConfigError(
            f"{type(model).__name__}: other parameters are frozen than when this process first trained it on several "
            "ranks, which Paddle does not support; train a copy.deepcopy of it, or start a new process"
        )
    return wrapper


def without_gradient_sync(model: paddle.nn.Layer) -> contextlib.AbstractContextManager:
    """Returns a context in which a backward pass adds to this rank's gradients alone.

    The first backward pass after it averages the sums over the ranks.
    """
    return model.no_sync() if world_size() > 1 else contextlib.nullcontext()


def all_reduce_sum(tensor: paddle.Tensor) -> paddle.Tensor:
    """Replaces `tensor` with its sum over the ranks and returns it; every rank gets the same bits."""
    if world_size() > 1:
        distributed.all_reduce(tensor, op=distributed.ReduceOp.SUM)
    return tensor


def sum_number(value: float) -> float:
    """Returns the sum of a number over the ranks, in float64."""
    return all_reduce_sum(paddle.to_tensor([value], dtype="float64")).item()


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


def all_gather_object(value: Any) -> list[Any]:
    """Returns the `value` of every rank, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = []
    distributed.all_gather_object(values, value)
    return values


def together(action: Callable[[], T]) -> T:
    """Calls `action` on every rank and returns its result on this rank.

    Raises:
        PlscError: The first one that `action` raised on any rank; all ranks raise it, so that none is left waiting.
    """
    result, error = None, None
    try:
        result = action()
    except PlscError as problem:
        error = problem
    if any_rank(error is not None):
        raise next(filter(None, all_gather_object(error)))
    return result  # type: ignore[return-value]


def from_rank_0(action: Callable[[], T]) -> T:
    """Calls `action` on rank 0 alone and returns its result on every rank.

    Raises:
        PlscError: The one that `action` raised; on every rank.
    """
    return all_gather_object(together(lambda: action() if rank() == 0 else None))[0]


def any_rank(flag: bool) -> bool:
    """Returns whether `flag` is true on at least one rank."""
    if world_size() == 1:
        return flag
    return all_reduce_sum(paddle.to_tensor([int(flag)], dtype="int64")).item() > 0


def broadcast_statistics(model: paddle.nn.Layer) -> None:
    """Gives every rank the untrained state of rank 0, such as BatchNorm's running mean and variance."""
    if world_size() == 1:
        return
    state = [tensor for _, tensor in sorted(model.state_dict().items()) if tensor.stop_gradient]
    for tensor in state:
        distributed.broadcast(tensor, src=0)


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        # Unlike distributed.barrier(), a sum that every rank must read behaves the same on gloo and nccl.
        np.asarray(all_reduce_sum(paddle.zeros([1], dtype="int64")))
