"""Ranks and collectives: the only module that speaks to paddle.distributed. With one rank every call is local."""

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
# Paddle's wrappers stay as long as the process: the hooks they leave on the parameters outlive them and would crash.
_wrapped: weakref.WeakKeyDictionary[paddle.nn.Layer, tuple[paddle.nn.Layer, tuple[str, ...]]] = (
    weakref.WeakKeyDictionary()
)


def rank() -> int:
    """This process's rank in [0, world_size())."""
    return int(os.environ.get("PADDLE_TRAINER_ID", 0)) if world_size() > 1 else 0


def world_size() -> int:
    """Number of ranks the launcher started; 1 without a launcher."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", 1))


def restarted() -> Optional[float]:
    """When `plsc run --restarts` first started this run (seconds since 1970), if it has started it again after a failure."""
    first = os.environ.get("PLSC_RESTART")
    return None if first is None else float(first)


def on_cpu() -> bool:
    """Whether this process computes on a CPU, where Paddle has no half-precision arithmetic."""
    return str(paddle.get_device()) == "cpu"


def initialise() -> None:
    """Joins the ranks of this run (once per process)."""
    global _initialised
    if _initialised:
        return
    if not paddle.is_compiled_with_cuda():
        os.environ.setdefault("PADDLE_DISTRI_BACKEND", "gloo")
    if world_size() > 1:
        # Not fleet.init: it adds groups for pipelines and the like, which plsc does not use, and on gloo their making
        # fails at random with "Connection refused" (3 of 5 starts of 4 ranks, Paddle 3.3.1; 0 of 5 this way).
        distributed.init_parallel_env()
    _initialised = True


def distributed_model(model: paddle.nn.Layer, find_unused_parameters: bool) -> paddle.nn.Layer:
    """Wraps `model` so that its gradients are averaged over the ranks while backward runs, and begins with rank 0's weights.

    Raises:
        ConfigError: it was wrapped before, and other parameters are trained now.
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
            f"{type(model).__name__}: other parameters are frozen than when it was first trained on several ranks in this "
            "process, which Paddle cannot do; train a copy.deepcopy of it, or start again"
        )
    return wrapper


def without_gradient_sync(model: paddle.nn.Layer) -> contextlib.AbstractContextManager:
    """While it lasts, backward adds to this rank's gradients only; the first backward after it averages their sum."""
    return model.no_sync() if world_size() > 1 else contextlib.nullcontext()


def all_reduce_sum(tensor: paddle.Tensor) -> paddle.Tensor:
    """Sum over the ranks, in place; the same bits on every rank."""
    if world_size() > 1:
        distributed.all_reduce(tensor, op=distributed.ReduceOp.SUM)
    return tensor


def sum_number(value: float) -> float:
    """Sum of a number over the ranks, in float64."""
    return all_reduce_sum(paddle.to_tensor([value], dtype="float64")).item()


class Pending:
    """The result of a collective that may still run: on nccl it overlaps what is computed until `wait`; gloo ends it
    before it returns.

    Args:
        result: what `wait` gives: a tensor, or a list of tensors to be stacked.
        task: the running collective, or None.
    """

    def __init__(self, result: Union[paddle.Tensor, list[paddle.Tensor]], task: Any = None) -> None:
        self._result, self._task = result, task

    def wait(self) -> paddle.Tensor:
        """The result, complete."""
        if self._task is not None:
            self._task.wait()
        return paddle.stack(self._result) if isinstance(self._result, list) else self._result


def start_all_reduce_sum(tensor: paddle.Tensor) -> Pending:
    """`all_reduce_sum` without waiting."""
    if world_size() == 1:
        return Pending(tensor)
    return Pending(tensor, distributed.all_reduce(tensor, op=distributed.ReduceOp.SUM, sync_op=False))


def start_all_gather(tensor: paddle.Tensor) -> Pending:
    """Tensors of one shape from every rank, in rank order: [...] -> [world_size, ...], without waiting."""
    if world_size() == 1:
        return Pending(tensor.unsqueeze(0))
    parts: list[paddle.Tensor] = []
    return Pending(parts, distributed.all_gather(parts, tensor.contiguous(), sync_op=False))


def all_gather_rows(tensor: paddle.Tensor, counts: list[int]) -> paddle.Tensor:
    """Rows of every rank, one rank after the other: [n_r, ...] -> [sum(n_r), ...]. `counts` holds every n_r."""
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
    """`value` of every rank, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = []
    distributed.all_gather_object(values, value)
    return values


def together(action: Callable[[], T]) -> T:
    """What `action` gives on this rank. Where it raises a PlscError all ranks raise the first one, so none waits in vain."""
    result, error = None, None
    try:
        result = action()
    except PlscError as problem:
        error = problem
    if any_rank(error is not None):
        raise next(filter(None, all_gather_object(error)))
    return result  # type: ignore[return-value]


def from_rank_0(action: Callable[[], T]) -> T:
    """What `action` gives on rank 0, which alone does it; all raise its PlscError."""
    return all_gather_object(together(lambda: action() if rank() == 0 else None))[0]


def any_rank(flag: bool) -> bool:
    """True on all ranks when `flag` is true on at least one."""
    if world_size() == 1:
        return flag
    return all_reduce_sum(paddle.to_tensor([int(flag)], dtype="int64")).item() > 0


def broadcast_statistics(model: paddle.nn.Layer) -> None:
    """Gives every rank rank 0's untrained state (BatchNorm's running mean and variance)."""
    if world_size() == 1:
        return
    state = [tensor for _, tensor in sorted(model.state_dict().items()) if tensor.stop_gradient]
    for tensor in state:
        distributed.broadcast(tensor, src=0)


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        # A sum every rank must read, rather than distributed.barrier(), behaves the same on gloo and nccl.
        np.asarray(all_reduce_sum(paddle.zeros([1], dtype="int64")))
