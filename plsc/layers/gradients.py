"""Functions of tensors whose gradients plsc computes by itself, where those of Paddle are slow on a CPU."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, Optional

import paddle
from paddle import Tensor

from plsc.layers.convolution import HAS_GRADIENTS


class Function(abc.ABC):
    """A function of tensors, with its gradients."""

    @abc.abstractmethod
    def output(self, *tensors: Tensor) -> tuple[Tensor, Any]:
        """Returns the output, and what `gradients` is to get as `kept`."""

    @abc.abstractmethod
    def gradients(
        self, tensors: Sequence[Tensor], kept: Any, gradient: Tensor, wanted: Sequence[bool]
    ) -> Sequence[Optional[Tensor]]:
        """Returns the gradients of the tensors.

        Where Paddle records gradients, which it does for derivatives of higher order, it must be able to differentiate
        how they are computed.

        Args:
            tensors: What `output` got.
            kept: What `output` returned to be kept.
            gradient: Gradient of the output.
            wanted: Whether the gradient of each tensor is needed; the others may be None.
        """


def is_for_us(*tensors: Optional[Tensor], operators: dict[str, Any]) -> bool:
    """Returns whether this is a computation on a CPU in float32, rather than an export or a simulated precision.

    Args:
        tensors: The tensors of the computation; None for one that is missing, without which it is not for us.
        operators: Paddle's operators for it, by name, as they were when plsc was imported; `plsc.amp` replaces those
            whose numbers are to be rounded.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    if not paddle.in_dynamic_mode() or len(present) < len(tensors):
        return False
    has_gradients = paddle.is_grad_enabled() and not all(tensor.stop_gradient for tensor in present)
    return (
        all(one.dtype == paddle.float32 and one.place.is_cpu_place() and 0 not in one.shape for one in present)
        and (HAS_GRADIENTS or not has_gradients)
        and all(getattr(paddle._C_ops, name, None) is operator for name, operator in operators.items())
    )


def operators_of(*names: str) -> dict[str, Any]:
    """Returns operators of Paddle by name; None for those that this version lacks."""
    return {name: getattr(paddle._C_ops, name, None) for name in names}


def apply(function: Function, *tensors: Tensor) -> Tensor:
    """Returns the output of a function, with gradients for the tensors that need them.

    Gradients of any order are those of `Function.gradients`, and `paddle.grad` works. But Paddle crashes if `backward`
    runs a second time through the same output.
    """
    trained = [one for one in tensors if not one.stop_gradient] if paddle.is_grad_enabled() else []
    return _Node.apply(trained, _Call(function, tensors)) if trained else function.output(*tensors)[0]


@dataclasses.dataclass(frozen=True)
class _Call:
    """A function and its tensors. Being no tuple, it hides them from PyLayer, which gets those that need gradients.

    If they were arguments of their own, paddle.grad would refuse the gradient of one of them alone.
    """

    function: Function
    tensors: tuple[Tensor, ...]

    def versions(self) -> list[int]:
        """Returns numbers that grow when something changes the tensors in place."""
        return [tensor.inplace_version for tensor in self.tensors]


class _Node(paddle.autograd.PyLayer):
    @staticmethod
    def forward(context: Any, trained: list[Tensor], call: _Call) -> Tensor:
        output, context.kept = call.function.output(*call.tensors)
        context.call, context.versions = call, call.versions()
        return output

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> list[Tensor]:
        call = context.call
        if call.versions() != context.versions:
            raise RuntimeError("an input or a weight of a layer was changed in place before its backward pass")
        wanted = [not tensor.stop_gradient for tensor in call.tensors]
        gradient = gradient if gradient.is_contiguous() else gradient.contiguous()
        found = call.function.gradients(call.tensors, context.kept, gradient, wanted)
        return [one for one, is_wanted in zip(found, wanted) if is_wanted]
