"""How the gradients of a step move the weights: unscale, clip, update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Optional, Union

import paddle

from plsc import optim, parallel
from plsc.config import Config
from plsc.errors import ConfigError
from plsc.heads import ClassifierHead, HeadGroup
from plsc.models.freezing import rate_factors_of


class Updates:
    """The updates of a backbone and a head, or a group of heads, by one optimizer.

    An optimizer whose rule treats each element by itself, such as Momentum or AdamW, moves the rows of the head in
    chunks, while their gradient is in cache, and then the backbone. Every other optimizer is given the whole gradient
    of the head, and so is each where the weight and the bias are not clipped together.

    Attributes:
        optimizer: The user's optimizer or the default one; it holds the schedule.
        of_rows: What moves the weight and bias of each head in chunks; empty where the optimizer moves them.
    """

    def __init__(
        self,
        config: Config,
        backbone: paddle.nn.Layer,
        head: Union[ClassifierHead, HeadGroup],
        steps_per_epoch: Optional[int],
    ) -> None:
        self._head = head
        self._is_split = head.sharded and parallel.world_size() > 1
        trained = {name: p for name, p in backbone.named_parameters() if not p.stop_gradient}
        self._head_parameters = {name: p for name, p in head.named_parameters() if not p.stop_gradient}
        self._backbone_parameters = list(trained.values())
        self._parameters = [*self._backbone_parameters, *self._head_parameters.values()]
        self.optimizer = optim.build_optimizer(config, self._parameters, steps_per_epoch or 0)
        optim.check_parameters(self.optimizer, trained, self._head_parameters, self._is_split)
        if len(config.trainable.stages) > 1:
            optim.check_joining(self.optimizer)
        if config.rate_factors:
            optim.scale_rates(self.optimizer, rate_factors_of(config.rate_factors, backbone, self._head_parameters))
        self._clips = optim.take_clips(
            config, self.optimizer, self._backbone_parameters, self._head_parameters, self._is_split
        )
        clips_of_head = [set(clip.head) for clip in self._clips if clip.head]
        is_one = all(names >= self._head_parameters.keys() for names in clips_of_head)
        self.of_rows = optim.take_rows(self.optimizer, self._head_parameters) if is_one else {}
        if config.head_dtype != "float32" and self._head_parameters and not self.of_rows:
            raise ConfigError(
                f"set_head_dtype({config.head_dtype!r}): {type(self.optimizer).__name__} needs the whole gradient of "
                "the class centres, as it is set; use Momentum, SGD, or another optimizer that moves each element by "
                "itself, and clip the class centres by value, with their bias, or not at all"
            )

    def unscale(self, loss_scale: float) -> None:
        """Takes the loss scale out of the gradients of the backbone; the head's never have it."""
        optim.scale_gradients(self._backbone_parameters, 1.0 / loss_scale)

    def clip_and_apply(self) -> None:
        """Clips the gradients, which are known to be finite, and moves the head and the backbone by them."""
        if self.of_rows:
            factors = self._clip(self._gradient_squares() if self._clips else {})
            factor = next(iter(factors.values()), 1.0)
            for prefix, _, head in self._head.parts:
                head.backward(self.of_rows.get(f"{prefix}weight"), self.of_rows.get(f"{prefix}bias"), factor)
        else:
            for part in self._head.parts:
                part.head.backward()
            squares = optim.squares_of(list(self._head_parameters.values())) if self._clips else []
            factors = self._clip(dict(zip(self._head_parameters, squares)))
            for name, factor in factors.items():
                optim.scale_gradients([self._head_parameters[name]], factor)
        optim.step(self.optimizer)

    def clear_grad(self) -> None:
        """Clears all gradients, also those of parameters that the optimizer leaves out."""
        optim.clear_grad(self._parameters)

    def _gradient_squares(self) -> dict[str, float]:
        """Returns the sums of squares of the gradients that this rank's heads will have, by name."""
        return {
            f"{prefix}{name}": square
            for prefix, _, head in self._head.parts
            for name, square in head.gradient_squares().items()
        }

    def _clip(self, own: Mapping[str, float]) -> dict[str, float]:
        """Clips the gradients of the backbone, and returns the factors on those of this rank's head, by name.

        Args:
            own: The sums of squares of this rank's gradients of the head, by name.
        """
        if not self._clips:
            return {}
        of_backbone = optim.squares_of(self._backbone_parameters)
        of_head = optim.head_squares(own, [clip.head for clip in self._clips], self._is_split)
        factors = {}
        for clip in self._clips:
            square_sum = of_head[clip.head] + math.fsum(of_backbone[number] for number in clip.backbone)
            factor = optim.clip_factor(clip.norm, square_sum)
            optim.scale_gradients([self._backbone_parameters[number] for number in clip.backbone], factor)
            factors.update({name: factor for name in clip.head if name in self._head_parameters})
        return factors
