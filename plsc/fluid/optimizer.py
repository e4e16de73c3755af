"""Optimizers with the names, argument order and defaults of Paddle 1.x.

Each function returns Paddle's own optimizer. Without `parameter_list` the optimizer waits for the parameters, which
`Entry.set_optimizer` provides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional, Union

import paddle

from plsc.layers.missing import not_here
from plsc.optim import deferred

# fmt: off
__all__ = [
    "SGD", "Momentum", "Adagrad", "Adam", "Adamax", "Adadelta", "RMSProp", "Lamb", "SGDOptimizer",
    "MomentumOptimizer", "AdagradOptimizer", "AdamOptimizer", "AdamaxOptimizer", "AdadeltaOptimizer",
    "RMSPropOptimizer", "LambOptimizer",
]
# fmt: on

Rate = Union[float, "paddle.optimizer.lr.LRScheduler"]
Parameters = Optional[Sequence[Any]]


def _made(kind: Any, given: dict[str, Any]) -> Any:
    """Creates an optimizer from the arguments of one of the functions below, which it gives their names of today."""
    settings = dict(given)
    parameters, decay = settings.pop("parameter_list"), settings.pop("regularization")
    if decay is not None:
        settings["weight_decay"] = decay
    return kind(parameters=deferred() if parameters is None else list(parameters), **settings)


def SGD(
    learning_rate: Rate,
    parameter_list: Parameters = None,
    regularization: Any = None,
    grad_clip: Any = None,
    name: Optional[str] = None,
) -> paddle.optimizer.SGD:
    """Returns plain gradient descent."""
    return _made(paddle.optimizer.SGD, locals())


def Momentum(
    learning_rate: Rate,
    momentum: float,
    parameter_list: Parameters = None,
    use_nesterov: bool = False,
    regularization: Any = None,
    grad_clip: Any = None,
    name: Optional[str] = None,
) -> paddle.optimizer.Momentum:
    """Returns gradient descent with momentum.

    velocity = momentum * velocity + gradient; weight -= learning_rate * velocity.
    """
    return _made(paddle.optimizer.Momentum, locals())


def Adagrad(
    learning_rate: Rate,
    epsilon: float = 1e-6,
    parameter_list: Parameters = None,
    regularization: Any = None,
    grad_clip: Any = None,
    name: Optional[str] = None,
    initial_accumulator_value: float = 0.0,
) -> paddle.optimizer.Adagrad:
    """Returns Adagrad (Duchi et al., JMLR 2011)."""
    return _made(paddle.optimizer.Adagrad, locals())


def Adam(
    learning_rate: Rate = 0.001,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    parameter_list: Parameters = None,
    regularization: Any = None,
    grad_clip: Any = None,
    name: Optional[str] = None,
    lazy_mode: bool = False,
) -> paddle.optimizer.Adam:
    """Returns Adam (Kingma and Ba, ICLR 2015)."""
    return _made(paddle.optimizer.Adam, locals())


def Adamax(
    learning_rate: Rate = 0.001,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    parameter_list: Parameters = None,
    regularization: Any = None,
    grad_clip: Any = None,
    name: Optional[str] = None,
) -> paddle.optimizer.Adamax:
    """Returns Adamax, from the paper on Adam."""
    return _made(paddle.optimizer.Adamax, locals())


def Adadelta(
    learning_rate: Rate,
    epsilon: float = 1e-6,
    rho: float = 0.95,
    parameter_list: Parameters = None,
    regularization: Any = None,
    grad_clip: Any = None,
    name: Optional[str] = None,
) -> paddle.optimizer.Adadelta:
    """Returns Adadelta (Zeiler, arXiv 1212.5701)."""
    return _made(paddle.optimizer.Adadelta, locals())


def RMSProp(
    learning_rate: Rate,
    rho: float = 0.95,
    epsilon: float = 1e-6,
    momentum: float = 0.0,
    centered: bool = False,
    parameter_list: Parameters = None,
    regularization: Any = None,
    grad_clip: Any = None,
    name: Optional[str] = None,
) -> paddle.optimizer.RMSProp:
    """Returns RMSProp (Hinton's lecture 6)."""
    return _made(paddle.optimizer.RMSProp, locals())


def Lamb(
    learning_rate: Rate = 0.001,
    lamb_weight_decay: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    parameter_list: Parameters = None,
    regularization: Any = None,
    grad_clip: Any = None,
    exclude_from_weight_decay_fn: Optional[Callable[[Any], bool]] = None,
    name: Optional[str] = None,
) -> paddle.optimizer.Lamb:
    """Returns LAMB (You et al., ICLR 2020)."""
    if regularization is not None:
        raise ValueError("fluid.optimizer.Lamb: regularization is not supported; use lamb_weight_decay")
    return _made(paddle.optimizer.Lamb, locals())


SGDOptimizer, MomentumOptimizer, AdagradOptimizer = SGD, Momentum, Adagrad
AdamOptimizer, AdamaxOptimizer, AdadeltaOptimizer = Adam, Adamax, Adadelta
RMSPropOptimizer, LambOptimizer = RMSProp, Lamb


def __getattr__(name: str) -> Any:
    raise not_here("fluid.optimizer", name, {}, "use Momentum or Adam, or give set_optimizer one of paddle.optimizer")
