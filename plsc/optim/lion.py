"""Lion, an optimizer that Paddle does not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional, Union

import paddle
from paddle.optimizer.lr import LRScheduler


class Lion(paddle.optimizer.Optimizer):
    """Moves every element by the same amount, in the direction of the sign of an interpolated momentum.

    With gradient g and momentum m, `x -= rate * (sign(beta1 * m + (1 - beta1) * g) + weight_decay * x)` and then
    `m = beta2 * m + (1 - beta2) * g` (Chen et al., Symbolic Discovery of Optimization Algorithms, 2023, algorithm 2).
    Because the sign is as large as it is, its authors use 3 to 10 times less rate and as many times more decay than
    with AdamW. It keeps one number for each element, as Momentum does.

    Args:
        learning_rate: The rate, or a schedule.
        beta1: Share of the momentum in the direction of a step.
        beta2: Share of the momentum that the next step keeps.
        weight_decay: Decay, decoupled from the gradient.
        parameters: What it moves, or parameter groups, which may have their own `beta1`, `beta2` and `weight_decay`.
        grad_clip: How gradients are clipped.
    """

    def __init__(
        self,
        learning_rate: Union[float, LRScheduler] = 1e-4,
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 0.0,
        parameters: Optional[Sequence[Any]] = None,
        grad_clip: Any = None,
    ) -> None:
        for name, beta in (("beta1", beta1), ("beta2", beta2)):
            if not 0 <= beta < 1:
                raise ValueError(f"Lion: {name} is {beta}; expected a number from 0 to below 1")
        self._rule = {"beta1": beta1, "beta2": beta2, "weight_decay": weight_decay}
        super().__init__(learning_rate, parameters, None, grad_clip)
        self._default_dict.update(self._rule)

    def _add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; Paddle itself would make its decay part of the gradient."""
        decay = param_group.get("weight_decay", self._rule["weight_decay"])
        super()._add_param_group({**param_group, "weight_decay": None})
        self._param_groups[-1]["weight_decay"] = decay

    def _create_accumulators(self, block: Any, parameters: Any) -> None:
        for parameter in parameters["params"] if isinstance(parameters, dict) else parameters:
            self._add_accumulator("momentum", parameter)

    def _append_optimize_op(self, block: Any, param_and_grad: Any) -> None:
        rule = self._rule
        if isinstance(param_and_grad, dict):
            rule = {name: param_and_grad.get(name, value) for name, value in rule.items()}
            param_and_grad = param_and_grad["params"]
        parameter, gradient = param_and_grad
        momentum, rate = self._get_accumulator("momentum", parameter), self._create_param_lr(param_and_grad)
        with paddle.no_grad():
            step = paddle.sign(momentum * rule["beta1"] + gradient * (1 - rule["beta1"]))
            if rule["weight_decay"]:
                step.add_(parameter * rule["weight_decay"])
            parameter.subtract_(step.multiply_(rate.astype(step.dtype)))
            momentum.scale_(rule["beta2"]).add_(gradient * (1 - rule["beta2"]))
