"""The backbone as several ranks train it: each on its own images, with the mean of all gradients."""

from __future__ import annotations

import contextlib
import weakref

import paddle
from paddle import distributed

from plsc.errors import ConfigError
from plsc.parallel.action import meet
from plsc.parallel.ranks import world_size

# Paddle's wrappers are kept until the process ends: the hooks they leave on the parameters would crash without them.
_wrapped: weakref.WeakKeyDictionary[paddle.nn.Layer, tuple[paddle.nn.Layer, tuple[str, ...]]] = (
    weakref.WeakKeyDictionary()
)


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
    meet("the model, with its weights")
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


def broadcast_statistics(model: paddle.nn.Layer) -> None:
    """Gives every rank the untrained state of rank 0, such as BatchNorm's running mean and variance."""
    if world_size() == 1:
        return
    meet("the running statistics of the model")
    state = [tensor for _, tensor in sorted(model.state_dict().items()) if tensor.stop_gradient]
    for tensor in state:
        distributed.broadcast(tensor, src=0)
