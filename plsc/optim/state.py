"""The tensors that an optimizer keeps for each parameter, and how a step uses and clears gradients."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Optional

import paddle
from paddle.base.layer_helper import LayerHelper

from plsc.errors import ConfigError, reason_of
from plsc.optim.wrapped import CREATED, chain_of, parameters_of, set_list


def step(optimizer: paddle.optimizer.Optimizer) -> None:
    """Moves the parameters that the optimizer still has; Paddle itself fails when none of them has a gradient.

    Raises:
        ConfigError: Paddle cannot take such a step on this device.
    """
    if all(parameter.grad is None for parameter in parameters_of(optimizer)):
        return
    with step_errors(optimizer):
        optimizer.step()


@contextlib.contextmanager
def step_errors(optimizer: paddle.optimizer.Optimizer) -> Iterator[None]:
    """Names the optimizer if Paddle cannot take its step on this device.

    Raises:
        ConfigError: Paddle cannot.
    """
    try:
        yield
    except NotImplementedError as problem:
        raise ConfigError(
            f"set_optimizer: {type(optimizer).__name__} cannot take a step on {paddle.get_device()}: "
            f"{reason_of(problem)}"
        ) from None


def clear_grad(parameters: Iterable[Any]) -> None:
    """Clears the gradients of parameters, including those that the optimizer does not move."""
    for parameter in parameters:
        parameter.clear_gradient()


def first_not_finite(parameters: Iterable[tuple[str, Any]]) -> Optional[str]:
    """Returns the name of the first parameter whose gradient is not finite, or None; it reads the device once."""
    return _first_not_finite([(name, p.grad) for name, p in parameters if p.grad is not None])


def first_tensor_not_finite(tensors: Iterable[tuple[str, Any]]) -> Optional[str]:
    """Returns the name of the first tensor of floating point numbers that is not finite, or None."""
    return _first_not_finite([(name, tensor) for name, tensor in tensors if tensor.is_floating_point()])


def _first_not_finite(tensors: list[tuple[str, paddle.Tensor]]) -> Optional[str]:
    if not tensors:
        return None
    finite = paddle.stack([paddle.isfinite(tensor).all() for _, tensor in tensors]).numpy()
    return None if finite.all() else tensors[int(finite.argmin())][0]


def create_state(optimizer: paddle.optimizer.Optimizer, parameters: Iterable[Any]) -> None:
    """Creates the accumulators of `parameters`, which an optimizer otherwise creates at its first step."""
    wanted = {id(parameter) for parameter in parameters}
    block = paddle.static.default_main_program().global_block()
    for one in chain_of(optimizer):
        # This is what the first step of an optimizer does (2.6 and 3.3 alike); there is no public way.
        one.helper = LayerHelper(type(one).__name__)
        for group in one._param_groups:
            if isinstance(group, dict):
                own = {**group, "params": [p for p in group["params"] if id(p) in wanted]}
                one._create_accumulators(block, own)
            elif id(group) in wanted:
                one._create_accumulators(block, [group])


def optimizer_state(
    optimizer: paddle.optimizer.Optimizer, names: dict[str, str]
) -> dict[str, dict[str, paddle.Tensor]]:
    """Returns the accumulators of an optimizer: {structured parameter name: {accumulator name: tensor}}.

    Args:
        optimizer: The optimizer; the accumulators of one that it wraps are in the same table.
        names: Structured names of the parameters, by Paddle's names; others are left out.
    """
    state: dict[str, dict[str, paddle.Tensor]] = {}
    for one in chain_of(optimizer):
        for accumulator, tensors in one._accumulators.items():
            for name, tensor in tensors.items():
                if name in names:
                    state.setdefault(names[name], {})[accumulator] = tensor
    return state


def copies_of_state(optimizer: paddle.optimizer.Optimizer) -> Optional[float]:
    """Measures the state of an optimizer by creating that of a small matrix, and leaves the optimizer unchanged.

    Returns:
        The size of its state as a multiple of the size of the parameters; None for an optimizer of another maker that
        keeps its state elsewhere than in Paddle's accumulators, or cannot create it in advance.
    """
    with paddle.utils.unique_name.guard():
        matrix = paddle.create_parameter([16, 16], "float32", default_initializer=paddle.nn.initializer.Constant(0.0))
        chain = chain_of(fresh_copy(optimizer, matrix))
        try:
            create_state(chain[0], [matrix])
        except Exception:  # noqa: BLE001 - whatever a subclass raises, its state is not known, and training can start
            return None
    tensors = [t for one in chain for by_name in one._accumulators.values() for t in by_name.values()]
    size = sum(math.prod(t.shape) * t.element_size() for t in tensors if math.prod(t.shape) >= matrix.size)
    is_paddles = all(type(one).__module__.startswith("paddle.") for one in chain)
    return None if not tensors and not is_paddles else size / (matrix.size * matrix.element_size())


def fresh_copy(optimizer: paddle.optimizer.Optimizer, parameter: paddle.Tensor) -> paddle.optimizer.Optimizer:
    """Returns a copy of an optimizer, and of those that it wraps, without state and over one other parameter."""
    chain = [copy.copy(one) for one in chain_of(optimizer)]
    for one in chain:
        one._accumulators, one._accumulators_holder, one._opti_name_list = defaultdict(dict), {}, []
        for name in vars(one):
            if name.startswith(CREATED):
                setattr(one, name, set())
        set_list(one, [parameter])
    for outer, inner in zip(chain, chain[1:]):
        outer.inner_optimizer = inner
    return chain[0]
