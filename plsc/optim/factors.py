"""Factors on the learning rate of single parameters, and parameters that join a training later."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle.incubate.optimizer import DistributedFusedLamb

from plsc.errors import ConfigError
from plsc.optim.state import fresh_copy
from plsc.optim.wrapped import chain_of, innermost


def scale_rates(optimizer: paddle.optimizer.Optimizer, factors: Sequence[tuple[paddle.Tensor, float]]) -> None:
    """Multiplies the learning rates of single parameters, which a `ParamAttr` or a parameter group may have set.

    Args:
        optimizer: The optimizer of the parameters.
        factors: Parameters, each at most once, with their factors.

    Raises:
        ConfigError: The optimizer does not heed such rates.
    """
    if _moves_all_alike(optimizer) or not _heeds_rates(optimizer):
        raise ConfigError(
            f"set_rate_factors: {_named(optimizer)} moves all its parameters with the same learning rate; use another "
            "optimizer, such as Momentum or AdamW, or leave the factors out"
        )
    for parameter, factor in factors:
        # A dict of its own, so that the one of the model stays as it is.
        rate = parameter.optimize_attr["learning_rate"] * factor
        parameter.optimize_attr = {**parameter.optimize_attr, "learning_rate": rate}


def check_joining(optimizer: paddle.optimizer.Optimizer) -> None:
    """Checks that parameters without a gradient in the first steps can have one later, when they are unfrozen.

    Raises:
        ConfigError: The optimizer would leave them where they are, or pull them to wrong values.
    """
    if _moves_all_alike(optimizer) or len(chain_of(optimizer)) > 1:
        raise ConfigError(
            f"set_trainable: {_named(optimizer)} takes all its parameters at the first step, so none can be unfrozen "
            "at a later epoch; use another optimizer, such as Momentum or AdamW, or train in two runs, the second with "
            "set_checkpoint_dir"
        )


def _named(optimizer: paddle.optimizer.Optimizer) -> str:
    fused = " with use_multi_tensor" if getattr(innermost(optimizer), "_use_multi_tensor", None) else ""
    return f"{type(optimizer).__name__}{fused}"


def _moves_all_alike(optimizer: paddle.optimizer.Optimizer) -> bool:
    """Returns whether an optimizer moves its parameters as one piece, as it found them at its first step."""
    inner = innermost(optimizer)
    return isinstance(inner, DistributedFusedLamb) or bool(getattr(inner, "_use_multi_tensor", None))


def _heeds_rates(optimizer: paddle.optimizer.Optimizer) -> bool:
    """Tries on a parameter of its own whether an optimizer moves nothing whose rate has the factor 0."""
    with paddle.utils.unique_name.guard():
        zero = paddle.nn.initializer.Constant(0.0)
        parameter = paddle.create_parameter([4], "float32", default_initializer=zero)
        parameter.optimize_attr = {"learning_rate": 0.0}
        tried = fresh_copy(optimizer, parameter)
        for one in chain_of(tried):
            one._learning_rate, one._learning_rate_map = 0.1, {}
        parameter.sum().backward()
        try:
            tried.step()
        except Exception:  # noqa: BLE001 - a subclass may raise anything for a parameter that it does not know
            return all(type(one).__module__.startswith("paddle.") for one in chain_of(optimizer))
        return not bool(parameter.any())
