"""Optimizers that hold others, such as LookAhead."""

from __future__ import annotations

from collections.abc import Iterable

import paddle

CREATED = "_already_create_accumul"  # how the name of that attribute begins; Paddle 2.6 spells the rest differently


def chain_of(optimizer: paddle.optimizer.Optimizer) -> list[paddle.optimizer.Optimizer]:
    """Returns an optimizer, the one that it wraps, the one that this wraps, and so on."""
    chain = [optimizer]
    while isinstance(inner := getattr(chain[-1], "inner_optimizer", None), paddle.optimizer.Optimizer):
        chain.append(inner)
    return chain


def innermost(optimizer: paddle.optimizer.Optimizer) -> paddle.optimizer.Optimizer:
    """Returns the optimizer that moves the weights by their gradients."""
    return chain_of(optimizer)[-1]


def groups_of(optimizer: paddle.optimizer.Optimizer) -> list[dict]:
    """Returns the parameter groups of an optimizer; none if it has one plain list."""
    groups = optimizer._param_groups or []
    return [group for group in groups if isinstance(group, dict)]


def parameters_of(optimizer: paddle.optimizer.Optimizer) -> list[paddle.Tensor]:
    """Returns all parameters that an optimizer lists."""
    inner = innermost(optimizer)
    groups = groups_of(inner)
    return [p for group in groups for p in group["params"]] if groups else list(inner._parameter_list or [])


def set_list(optimizer: paddle.optimizer.Optimizer, parameters: Iterable[paddle.Tensor]) -> None:
    """Gives an optimizer another plain list of parameters; Paddle (2.6 and 3.3 alike) has no public way to do so."""
    optimizer._parameter_list = list(parameters)
    optimizer._param_groups = optimizer._parameter_list
