"""Functions of tensors whose gradients plsc computes by itself, where those of Paddle are slow on a CPU."""

from __future__ import annotations

import abc
import dataclasses
import weakref
from collections.abc import Sequence
from typing import Any, Optional

import paddle
from paddle import Tensor

# With Paddle 2.6, a PyLayer whose inputs are a list gets wrong gradients; one whose inputs are not breaks paddle.grad.
HAS_GRADIENTS = int(paddle.__version__.partition(".")[0]) >= 3
_CPU = paddle.CPUPlace()


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
    """Returns whether `apply` may compute this: what `is_plain` says, unless Paddle 2.6 needs gradients."""
    return is_plain(*tensors, operators=operators) and (HAS_GRADIENTS or not need_gradients(*tensors))


def need_gradients(*tensors: Optional[Tensor]) -> bool:
    """Returns whether the gradient of one of these tensors is needed."""
    return paddle.is_grad_enabled() and not all(one is None or one.stop_gradient for one in tensors)


def is_plain(*tensors: Optional[Tensor], operators: dict[str, Any]) -> bool:
    """Returns whether this is a computation on a CPU in float32, rather than an export or a simulated precision.

    Args:
        tensors: The tensors of the computation; None for one that is missing, without which it is not for us.
        operators: Paddle's operators for it, by name, as they were when plsc was imported; `plsc.amp` replaces those
            whose numbers are to be rounded.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    return (
        paddle.in_dynamic_mode()
        and len(present) == len(tensors)
        and all(one.dtype == paddle.float32 and one.place.is_cpu_place() and 0 not in one.shape for one in present)
        and all(getattr(paddle._C_ops, name, None) is operator for name, operator in operators.items())
    )


def empty(shape: Sequence[int]) -> Tensor:
    """Returns a tensor on the CPU for a result, float32 of this shape, whose values are not set.

    `paddle.empty` would place it on a GPU, where there is one.
    """
    return paddle._C_ops.empty(list(shape), paddle.float32, _CPU)


def contiguous(tensor: Tensor) -> Tensor:
    """Returns a tensor whose elements lie in memory in their order: this one if they do, otherwise a copy."""
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def operators_of(*names: str) -> dict[str, Any]:
    """Returns operators of Paddle by name; None for those that this version lacks."""
    return {name: getattr(paddle._C_ops, name, None) for name in names}


def apply(function: Function, *tensors: Tensor) -> Tensor:
    """Returns the output of a function, with gradients for the tensors that need them.

    Gradients of any order are those of `Function.gradients`, and `paddle.grad` works. A second `backward` raises
    RuntimeError; see `refusing_a_second_pass`.
    """
    trained = [one for one in tensors if not one.stop_gradient] if paddle.is_grad_enabled() else []
    if not trained:
        return function.output(*tensors)[0]
    call = _Call(function, tensors)
    return refusing_a_second_pass(_Node.apply(trained, call), call)


def refusing_a_second_pass(output: Any, call: Any) -> Any:
    """Has a second `backward` through the output of a PyLayer raise RuntimeError, which Paddle wraps in OSError.

    Without it, the process would end with a segmentation fault: Paddle (2.6 to 3.3) gives a PyLayer's context up in the
    first pass, in spite of `retain_graph=True`, and uses it in the second. `paddle.grad` uses a copy of the graph.

    Args:
        output: What `PyLayer.apply` has returned.
        call: An object that nothing but the context holds from now on, so that it dies with it.

    Returns:
        The output.
    """
    held = weakref.ref(call)

    def check(_: Tensor) -> None:
        if held() is None:
            raise RuntimeError(
                "backward has already run through this output of a layer, and cannot run through it again; call the "
                "layer again, or compute all but the last gradients with paddle.grad(..., retain_graph=True)"
            )

    first = output[0] if isinstance(output, (tuple, list)) else output
    first.register_hook(check)  # Paddle calls hooks before it uses the context.
    return output


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
        found = call.function.gradients(call.tensors, context.kept, contiguous(gradient), wanted)
        return [one for one, is_wanted in zip(found, wanted) if is_wanted]
