"""The backbone as several ranks train it: each on its own images, with the mean of all gradients."""

from __future__ import annotations

import contextlib
import hashlib
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

import paddle
from paddle import distributed
from paddle.distributed import fleet

from plsc.errors import ConfigError
from plsc.parallel.action import meet
from plsc.parallel.agreement import check_same
from plsc.parallel.ranks import world_size
from plsc.parallel.start import initialise_fleet
from plsc.parallel.strategy import Averaging, averaging_of


@dataclass
class _Wrapped:
    """The wrappers of a model that is trained on several ranks.

    Attributes:
        averaging: How all of them average gradients.
        by_trained: The wrappers, by the names of the parameters that are trained.
        current: The one in use; None where nothing is trained.
    """

    averaging: Averaging
    by_trained: dict[tuple[str, ...], paddle.DataParallel] = field(default_factory=dict)
    current: Optional[paddle.DataParallel] = None


# Paddle's wrappers are kept until the process ends: the hooks they leave on the parameters would crash without them.
_wrapped: weakref.WeakKeyDictionary[paddle.nn.Layer, _Wrapped] = weakref.WeakKeyDictionary()


def distributed_model(
    model: paddle.nn.Layer, find_unused_parameters: bool, strategy: Optional[fleet.DistributedStrategy] = None
) -> paddle.nn.Layer:
    """Returns a wrapper of `model` that averages its gradients over the ranks during the backward pass.

    Every rank then holds the weights of rank 0. With one rank, or when all parameters are frozen, the model itself is
    returned. When other parameters are trained from now on, it must be called again: each choice of parameters has a
    wrapper, which averages their gradients and waits for no others.

    The optimizer has no such wrapper. `fleet.distributed_optimizer` averages nothing in data parallelism: its `step`
    is that of the optimizer it wraps. What it does in other kinds of parallelism cannot serve here, because the walk
    over the classes moves most rows of the head, and plsc itself clips over all shards, scales losses and skips steps.

    Args:
        model: The model; wrapping it again with the same parameters trained returns the same wrapper.
        find_unused_parameters: Whether the model may hold parameters that a forward pass does not use.
        strategy: A strategy that `check_strategy` has accepted; None is plsc's own.

    Raises:
        ConfigError: The ranks differ in what they train or in their strategies; or the model was wrapped before, with
            another strategy.
    """
    if world_size() == 1:
        return model
    meet("the model, with its weights")
    trained = tuple(name for name, parameter in model.named_parameters() if not parameter.stop_gradient)
    averaging = averaging_of(strategy, find_unused_parameters)
    _check_ranks(model, averaging)
    wrapped = _wrapped.get(model)
    if wrapped is not None:
        _check_unchanged(type(model).__name__, wrapped, averaging)
        if wrapped.current is not wrapped.by_trained.get(trained):
            _retire(model, wrapped)
    if not trained:
        distributed.parallel.sync_params_buffers(model)
        return model
    if wrapped is None:
        wrapped = _wrapped[model] = _Wrapped(averaging)
    if trained in wrapped.by_trained:
        distributed.parallel.sync_params_buffers(model)
    else:
        initialise_fleet(averaging)
        wrapped.by_trained[trained] = fleet.distributed_model(model)
    wrapped.current = wrapped.by_trained[trained]
    return wrapped.current


def _check_ranks(model: paddle.nn.Layer, averaging: Averaging) -> None:
    """Checks that all ranks have the same tensors and average alike: otherwise sums would mix tensors, or hang."""
    tensors = [f"{name} {list(t.shape)} {t.dtype} {t.stop_gradient}" for name, t in sorted(model.state_dict().items())]
    values = {
        "the parameters and statistics of the model": hashlib.sha256("\n".join(tensors).encode()).hexdigest(),
        "the strategy": str(averaging),
    }
    check_same(values, "give all ranks the same model and set_strategy")


def _retire(model: paddle.nn.Layer, wrapped: _Wrapped) -> None:
    """Has the hooks of the wrapper in use do nothing.

    After a forward pass without a backward pass, as in a step that is skipped, they wait for gradients, and would send
    those of another wrapper's parameters too. A backward pass that averages zeros ends this.
    """
    if wrapped.current is None:
        return
    names = next(trained for trained, wrapper in wrapped.by_trained.items() if wrapper is wrapped.current)
    parameters = [parameter for name, parameter in model.named_parameters() if name in names]
    frozen = [parameter for parameter in parameters if parameter.stop_gradient]
    for parameter in frozen:
        parameter.stop_gradient = False
    zero = paddle.add_n([parameter.sum() * 0.0 for parameter in parameters])
    wrapped.current._reducer.prepare_for_backward([zero])
    zero.backward()
    for parameter in parameters:
        parameter.clear_gradient(False)
    for parameter in frozen:
        parameter.stop_gradient = True
    wrapped.current = None


def _check_unchanged(name: str, first: _Wrapped, averaging: Averaging) -> None:
    """Checks that a model is trained as it was first trained; what Paddle has prepared for that stays as it is."""
    if averaging != first.averaging:
        raise ConfigError(
            f"{name}: this process first trained it with {first.averaging}, and set_strategy now gives {averaging}; "
            "train a copy.deepcopy of it, or start a new process"
        )


def without_gradient_sync(model: paddle.nn.Layer) -> contextlib.AbstractContextManager:
    """Returns a context in which a backward pass adds to this rank's gradients alone.

    The first backward pass after it averages the sums over the ranks.
    """
    return model.no_sync() if isinstance(model, paddle.DataParallel) else contextlib.nullcontext()


def broadcast_statistics(statistics: Mapping[str, paddle.Tensor]) -> None:
    """Gives every rank the statistics of rank 0, such as BatchNorm's running mean and variance.

    Args:
        statistics: The tensors, by name; the names are the same on every rank.
    """
    broadcast([tensor for _, tensor in sorted(statistics.items())], "the running statistics of the model")


def broadcast(tensors: Sequence[paddle.Tensor], purpose: str) -> None:
    """Gives every rank the values that tensors have on rank 0.

    Args:
        tensors: The tensors, of the same shapes and in the same order on every rank.
        purpose: What they are, for messages about late ranks.
    """
    if world_size() == 1:
        return
    meet(purpose)
    for tensor in tensors:
        distributed.broadcast(tensor, src=0)
