"""Optimizers, with their names, order and defaults of Paddle 1.x.

Each gives Paddle's own optimizer. Without `parameter_list` it waits for the parameters of `Entry.set_optimizer`.
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
    """`kind` with the arguments of one of the functions below, under today's names."""
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
    """Gradient descent."""
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
    """velocity = momentum * velocity + gradient; weight -= learning_rate * velocity."""
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
    """Adagrad (Duchi et al., JMLR 2011)."""
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
    """Adam (Kingma and Ba, ICLR 2015)."""
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
    """Adamax, of the same paper as Adam."""
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
    """Adadelta (Zeiler, arXiv 1212.5701)."""
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
    """RMSProp (Hinton's lecture 6)."""
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
    """LAMB (You et al., ICLR 2020)."""
    if regularization is not None:
        raise ValueError("fluid.optimizer.Lamb: regularization cannot be added; lamb_weight_decay is its decay")
    return _made(paddle.optimizer.Lamb, locals())


SGDOptimizer, MomentumOptimizer, AdagradOptimizer = SGD, Momentum, Adagrad
AdamOptimizer, AdamaxOptimizer, AdadeltaOptimizer = Adam, Adamax, Adadelta
RMSPropOptimizer, LambOptimizer = RMSProp, Lamb


def __getattr__(name: str) -> Any:
    raise not_here("fluid.optimizer", name, {}, "use Momentum or Adam, or give set_optimizer one of paddle.optimizer")
