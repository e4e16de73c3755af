"""Convolutions on CPUs: by oneDNN where it is faster than Paddle's own, which unfold images for a matrix product.

Paddle's functions and layers look up their operators in `paddle._C_ops` at each call (2.6 to 3.3). There this module
puts functions that use oneDNN inside of `fast_convolutions`, and Paddle's operators everywhere else.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional

import paddle
from paddle import Tensor

from plsc.layers.gradients import HAS_GRADIENTS, Function, apply, contiguous, empty, need_gradients
from plsc.layers.kernels import addresses, is_switched_off
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
    correct. A second `backward` through the same convolution raises RuntimeError; see `plsc.layers.gradients.apply`.
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
        return apply(_Convolved(convolution), contiguous(x), contiguous(weight))


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


class _Bilinear(Function):
    """A convolution or one of its two gradients.

    Each is linear in two of three tensors, the input, the weight and the output, and the gradients of each are others.
    """

    def __init__(self, kernels: Convolution) -> None:
        self._kernels = kernels


class _Convolved(_Bilinear):
    """The convolution of x [N, C, H, W] with a weight [O, C / groups, KH, KW]; channels may lie last in x."""

    def output(self, *tensors: Tensor) -> tuple[Tensor, None]:
        x, weight = addresses(tensors)
        y = empty(self._kernels.output_shape)
        self._kernels.output(x, weight, y.data_ptr())
        return y, None

    def gradients(
        self, tensors: Sequence[Tensor], kept: None, gradient: Tensor, wanted: Sequence[bool]
    ) -> Sequence[Optional[Tensor]]:
        x, weight = tensors
        if paddle.is_grad_enabled():
            of_x = apply(_OfInput(self._kernels), weight, gradient) if wanted[0] else None
            return of_x, apply(_OfWeight(self._kernels), x, gradient) if wanted[1] else None
        results = [empty(tensor.shape) if is_wanted else None for tensor, is_wanted in zip(tensors, wanted)]
        of_source, of_weight = (None if result is None else result.data_ptr() for result in results)
        self._kernels.gradients((x.data_ptr(), weight.data_ptr(), gradient.data_ptr()), of_source, of_weight)
        return results


class _OfInput(_Bilinear):
    """The gradient of the input as a function of the weight and of the gradient of the output."""

    def output(self, *tensors: Tensor) -> tuple[Tensor, None]:
        weight, gradient = addresses(tensors)
        of_x = empty(self._kernels.source_shape)
        self._kernels.gradients((None, weight, gradient), of_x.data_ptr(), None)
        return of_x, None

    def gradients(
        self, tensors: Sequence[Tensor], kept: None, gradient: Tensor, wanted: Sequence[bool]
    ) -> Sequence[Optional[Tensor]]:
        weight, output_gradient = tensors
        of_weight = apply(_OfWeight(self._kernels), gradient, output_gradient) if wanted[0] else None
        return of_weight, apply(_Convolved(self._kernels), gradient, weight) if wanted[1] else None


class _OfWeight(_Bilinear):
    """The gradient of the weight as a function of the input and of the gradient of the output."""

    def output(self, *tensors: Tensor) -> tuple[Tensor, None]:
        x, gradient = addresses(tensors)
        of_weight = empty(self._kernels.weight_shape)
        self._kernels.gradients((x, None, gradient), None, of_weight.data_ptr())
        return of_weight, None

    def gradients(
        self, tensors: Sequence[Tensor], kept: None, gradient: Tensor, wanted: Sequence[bool]
    ) -> Sequence[Optional[Tensor]]:
        x, output_gradient = tensors
        of_x = apply(_OfInput(self._kernels), gradient, output_gradient) if wanted[0] else None
        return of_x, apply(_Convolved(self._kernels), x, gradient) if wanted[1] else None
