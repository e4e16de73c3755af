"""Convolutions on CPUs: by oneDNN where it is faster than Paddle's own, which unfold images for a matrix product.

Paddle's functions and layers look up their operators in `paddle._C_ops` at each call (2.6 to 3.3). There this module
puts functions that use oneDNN inside of `fast_convolutions`, and Paddle's operators everywhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, Optional

import paddle
from paddle import Tensor

from plsc.layers.gradients import HAS_GRADIENTS, contiguous, empty, need_gradients, refusing_a_second_pass
from plsc.layers.kernels import is_switched_off
from plsc.machine import onednn
from plsc.machine.onednn import Convolution, Geometry

_SHAPES = 256  # Geometries whose kernels are kept.
_FEWEST_CHANNELS = 8  # In and out of a group. With fewer, as in images, the kernels leave most of a register empty.
# With fewer multiplications, calling oneDNN takes longer than it saves. Paddle's depthwise ones are slower.
_FEWEST_PRODUCTS, _FEWEST_PRODUCTS_DEPTHWISE = 1 << 24, 1 << 18
_FEWEST_PLACES = 256  # Of outputs; with fewer, converting the weight takes too large a share.
_installing = threading.Lock()
_of_thread = threading.local()


@contextlib.contextmanager
def fast_convolutions() -> Iterator[None]:
    """Lets the convolutions that this thread computes while the block runs use oneDNN where it is faster.

    The choice depends on shapes alone, so that repeated runs give the same bits. With `PLSC_ONEDNN=0` in the
    environment (or off, no, false), on a GPU, in other dtypes than float32, in static graphs, and where Paddle has no
    oneDNN, nothing changes. With Paddle 2.6, convolutions that need gradients stay Paddle's. Gradients of any order are
    correct. A second `backward` through the same convolution raises RuntimeError; see `refusing_a_second_pass`.
    """
    if is_switched_off() or onednn.library() is None:
        yield
        return
    _install()
    before = getattr(_of_thread, "is_fast", False)
    _of_thread.is_fast = True
    try:
        yield
    finally:
        _of_thread.is_fast = before


def _install() -> None:
    with _installing:
        for name, groups_first in (("conv2d", False), ("depthwise_conv2d", True)):
            original = getattr(paddle._C_ops, name)
            if not isinstance(original, _Operator):
                setattr(paddle._C_ops, name, _Operator(original, groups_first))


class _Operator:
    """An operator of Paddle, which uses oneDNN where that is faster.

    Args:
        original: Paddle's operator.
        groups_first: Whether its groups come before its dilations.
    """

    def __init__(self, original: Callable[..., Tensor], groups_first: bool = False) -> None:
        self._original, self._groups_first = original, groups_first

    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        """Computes the convolution."""
        is_usual = len(arguments) == 8 and not options and getattr(_of_thread, "is_fast", False)
        if not is_usual or not all(map(_is_eligible, arguments[:2])):
            return self._original(*arguments, **options)
        x, weight, strides, paddings, algorithm, *middle, data_format = arguments
        if not HAS_GRADIENTS and need_gradients(x, weight):
            return self._original(*arguments)
        groups, dilations = middle if self._groups_first else reversed(middle)
        convolution = _convolution(
            tuple(x.shape),
            tuple(weight.shape),
            strides=tuple(strides),
            padding=(algorithm, *paddings),
            dilations=tuple(dilations),
            groups=groups,
            channels_last=data_format == "NHWC",
            threads=onednn.library().threads(),  # type: ignore[union-attr]
        )
        if convolution is None:
            return self._original(*arguments)
        return _output(contiguous(x), contiguous(weight), convolution)


def _is_eligible(tensor: Any) -> bool:
    """Returns whether a tensor holds float32 values in the memory of the CPU, rather than standing for some."""
    is_value = isinstance(tensor, paddle.Tensor) and paddle.in_dynamic_mode() and tensor.ndim == 4
    return is_value and tensor.dtype == paddle.float32 and tensor.place.is_cpu_place()


@functools.lru_cache(maxsize=_SHAPES)
def _convolution(
    source: tuple[int, ...], weight: tuple[int, ...], *, padding: tuple[Any, ...], channels_last: bool, **others: Any
) -> Optional[Convolution]:
    """Returns the convolution by oneDNN; None where Paddle's own is faster, or must refuse the arguments."""
    if channels_last:
        source = (source[0], source[3], source[1], source[2])
    before, after = _paddings(source, weight, padding, others["strides"])
    if padding[0] == "SAME":
        others["dilations"] = (1, 1)  # as in Paddle
    geometry = Geometry(source, weight, before=before, after=after, channels_last=channels_last, **others)
    if not _is_valid(geometry) or not _pays(geometry):
        return None
    try:
        return Convolution(onednn.library(), geometry)  # type: ignore[arg-type]
    except NotImplementedError:
        return None


def _paddings(
    source: tuple[int, ...], weight: tuple[int, ...], padding: tuple[Any, ...], strides: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the padding above and to the left, and the padding below and to the right."""
    algorithm, *sizes = padding
    if algorithm == "VALID":
        return (0, 0), (0, 0)
    if algorithm == "SAME":
        sides = zip(source[2:], weight[2:], strides)
        sums = [max((-(-side // stride) - 1) * stride + size - side, 0) for side, size, stride in sides]
        return tuple(total // 2 for total in sums), tuple(total - total // 2 for total in sums)
    return (tuple(sizes), tuple(sizes)) if len(sizes) == 2 else (tuple(sizes[::2]), tuple(sizes[1::2]))


def _is_valid(geometry: Geometry) -> bool:
    source, weight, groups = geometry.source, geometry.weight, geometry.groups
    if groups < 1 or min(*source, *weight, *geometry.strides, *geometry.dilations) < 1:
        return False
    return source[1] == weight[1] * groups and weight[0] % groups == 0 and min(geometry.output) > 0


def _pays(geometry: Geometry) -> bool:
    """Returns whether oneDNN is faster, as measured on a processor with AVX2 (`tests/benchmarks/convolutions.py`).

    A 1x1 convolution is a matrix product as it is, so Paddle's need not unfold the image.
    """
    outputs, channels, *window = geometry.weight
    if math.prod(window) == 1:
        return False
    output = geometry.output
    products = math.prod(output) * math.prod(geometry.weight[1:])
    if channels == 1 and outputs == geometry.groups > 1:
        return products >= _FEWEST_PRODUCTS_DEPTHWISE
    has_width = min(channels, outputs // geometry.groups) >= _FEWEST_CHANNELS
    return has_width and products >= _FEWEST_PRODUCTS and output[0] * output[2] * output[3] >= _FEWEST_PLACES


@dataclasses.dataclass(frozen=True)
class _Call:
    """A convolution and its tensors. Being no tuple, it hides them from PyLayer, which would take them for inputs."""

    convolution: Convolution
    x: Tensor
    weight: Tensor
    output_gradient: Optional[Tensor] = None

    def tensors(self) -> list[Tensor]:
        """Returns the tensors that need gradients."""
        every = (self.x, self.weight, self.output_gradient)
        return [tensor for tensor in every if tensor is not None and not tensor.stop_gradient]

    def versions(self) -> tuple[int, int]:
        """Returns numbers that grow when something changes the tensors in place."""
        return self.x.inplace_version, self.weight.inplace_version

    def check(self, versions: tuple[int, int]) -> None:
        """Refuses gradients of values that are gone.

        Raises:
            RuntimeError: Something has changed the tensors in place since they had these versions.
        """
        if self.versions() != versions:
            raise RuntimeError("the input or the weight of a convolution was changed in place before its backward pass")


class _Output(paddle.autograd.PyLayer):
    """The convolution as a function of the tensors that need gradients.

    They are one argument: paddle.grad would refuse the gradient of one argument if only another one's is asked for.
    """

    @staticmethod
    def forward(context: Any, trained: list[Tensor], call: _Call) -> Tensor:
        context.call, context.versions = call, call.versions()
        return _computed_output(call)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> list[Tensor]:
        context.call.check(context.versions)
        call = dataclasses.replace(context.call, output_gradient=contiguous(gradient))
        return _gradients(call, not call.x.stop_gradient, not call.weight.stop_gradient)


class _Gradients(paddle.autograd.PyLayer):
    """The gradients of the input and of the weight, which are linear in two of three tensors each, with their own."""

    @staticmethod
    def forward(context: Any, trained: list[Tensor], call: _Call, *wanted: bool) -> tuple[Tensor, ...]:
        context.call, context.wanted, context.versions = call, wanted, call.versions()
        return tuple(_computed_gradients(call, *wanted))

    @staticmethod
    def backward(context: Any, *seconds: Tensor) -> list[Tensor]:
        context.call.check(context.versions)
        call = context.call
        x, weight, gradient = call.x, call.weight, call.output_gradient
        remaining = iter(seconds)
        of_x, of_weight = (contiguous(next(remaining)) if wanted else None for wanted in context.wanted)
        pair = (x if of_x is None else of_x, weight if of_weight is None else of_weight)
        swapped, result = _Call(call.convolution, *pair, gradient), []
        if not x.stop_gradient:
            result += [paddle.zeros_like(x)] if of_weight is None else _gradients(swapped, True, False)
        if not weight.stop_gradient:
            result += [paddle.zeros_like(weight)] if of_x is None else _gradients(swapped, False, True)
        if not gradient.stop_gradient:
            terms = [] if of_x is None else [_output(of_x, weight, call.convolution)]
            terms += [] if of_weight is None else [_output(x, of_weight, call.convolution)]
            result.append(paddle.add_n(terms))
        return result


def _output(x: Tensor, weight: Tensor, convolution: Convolution) -> Tensor:
    call = _Call(convolution, x, weight)
    trained = call.tensors() if paddle.is_grad_enabled() else []
    return refusing_a_second_pass(_Output.apply(trained, call), call) if trained else _computed_output(call)


def _gradients(call: _Call, of_x: bool, of_weight: bool) -> list[Tensor]:
    trained = call.tensors() if paddle.is_grad_enabled() else []
    if not trained:
        return _computed_gradients(call, of_x, of_weight)
    results = refusing_a_second_pass(_Gradients.apply(trained, call, of_x, of_weight), call)
    return list(results) if isinstance(results, (tuple, list)) else [results]


def _computed_output(call: _Call) -> Tensor:
    output = empty(call.convolution.output_shape)
    call.convolution.output(call.x.data_ptr(), call.weight.data_ptr(), output.data_ptr())
    return output


def _computed_gradients(call: _Call, of_x: bool, of_weight: bool) -> list[Tensor]:
    pairs = ((call.x, of_x), (call.weight, of_weight))
    results = [empty(tensor.shape) if wanted else None for tensor, wanted in pairs]
    tensors: Any = (call.x, call.weight, call.output_gradient)
    of_source, of_weight_address = (None if result is None else result.data_ptr() for result in results)
    x, weight, gradient = (tensor.data_ptr() for tensor in tensors)
    call.convolution.gradients((x, weight, gradient), of_source, of_weight_address)
    return [result for result in results if result is not None]
