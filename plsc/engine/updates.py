"""How the gradients of a step move the weights: unscale, clip, update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import paddle

from plsc import optim, parallel
from plsc.config import Config
from plsc.heads import ClassifierHead


class Updates:
    """The updates of a backbone and a head, by one optimizer.

    SGD and Momentum move the rows of the head in chunks, while their gradient is in cache; the optimizer itself then
    moves the backbone alone. Every other optimizer is given the whole gradient of the head.

    Attributes:
        optimizer: The user's optimizer or the default one; it holds the schedule.
        of_rows: What moves the head's weight and bias in chunks; empty where the optimizer moves them.
    """

    def __init__(
        self, config: Config, backbone: paddle.nn.Layer, head: ClassifierHead, steps_per_epoch: Optional[int]
    ) -> None:
        self._head = head
        head_parameters = {name: p for name, p in head.named_parameters() if not p.stop_gradient}
        self._head_parameters = list(head_parameters.values())
        self._backbone_parameters = [p for p in backbone.parameters() if not p.stop_gradient]
        parameters = self._backbone_parameters + self._head_parameters
        self.optimizer = optim.build_optimizer(config, parameters, steps_per_epoch or 0)
        self._clip_norm = optim.clip_norm_of(config, self.optimizer)
        self.of_rows = optim.take_rows(self.optimizer, head_parameters)

    def unscale(self, loss_scale: float) -> None:
        """Takes the loss scale out of the gradients of the backbone; the head's never have it."""
        optim.scale_gradients(self._backbone_parameters, 1.0 / loss_scale)

    def clip_and_apply(self) -> None:
        """Clips the gradients, which are known to be finite, and moves the head and the backbone by them."""
        if self.of_rows:
            factor = self._clip_factor(self._head.gradient_square_sum)
            self._head.backward(self.of_rows.get("weight"), self.of_rows.get("bias"), factor)
        else:
            self._head.backward()
            factor = self._clip_factor(self._square_sum_of_head)
            optim.scale_gradients(self._head_parameters, factor)
        optim.scale_gradients(self._backbone_parameters, factor)
        optim.step(self.optimizer)

    def _clip_factor(self, square_sum_of_head: Callable[[], float]) -> float:
        """Returns the factor that clips all gradients together to the global norm; 1 without clipping."""
        if self._clip_norm is None:
            return 1.0
        return optim.clip_factor(self._clip_norm, square_sum_of_head() + optim.square_sum(self._backbone_parameters))

    def _square_sum_of_head(self) -> float:
        """Returns the sum of the squares of the head's whole gradients, over all shards."""
        own = optim.square_sum(self._head_parameters)
        return parallel.sum_number(own) if self._head.sharded else own
