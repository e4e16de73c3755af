"""Convolutions by oneDNN, the library that Paddle's wheels carry and that Paddle uses in some static graphs alone.

Its C interface (oneDNN 3, include/oneapi/dnnl/dnnl.h) is called through ctypes. Tensors come and go in Paddle's plain
layouts; where oneDNN computes in a layout of its own, it converts them to and from buffers that live for one call.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import threading
from collections.abc import Mapping
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

logger = logging.getLogger("plsc")

# Values of dnnl_types.h, which are the same in all versions 3.
_CPU, _IN_ORDER, _FLOAT32, _ANY_LAYOUT, _USER_SCRATCHPAD, _FORWARD, _DIRECT = 1, 1, 3, 1, 1, 64, 1
_OUT_OF_MEMORY = 1
_SOURCE, _OUTPUT, _WEIGHT, _SCRATCHPAD, _SOURCE_GRADIENT, _OUTPUT_GRADIENT, _WEIGHT_GRADIENT = (
    1,
    17,
    33,
    80,
    129,
    145,
    161,
)
_QUERY_IMPLEMENTATION = 8
_LAYOUT_QUERIES = {
    _SOURCE: 129, _SOURCE_GRADIENT: 130, _WEIGHT: 131, _WEIGHT_GRADIENT: 132, _OUTPUT: 133, _OUTPUT_GRADIENT: 134,
    _SCRATCHPAD: 136,
}  # fmt: skip
_ALIGNMENT = 64
_MANY_CHANNELS = 256  # From here on im2col and a product give the weight's gradient faster than the AVX2 kernel does.


class Geometry(NamedTuple):
    """What a convolution is, but for its values.

    Attributes:
        source: Shape of the input, [N, C, H, W], whatever its layout in memory.
        weight: Shape of the weight, [O, C / groups, KH, KW].
        strides: Strides along H and W.
        before: Padding above and to the left.
        after: Padding below and to the right.
        dilations: Distances between the places that neighbouring elements of the weight multiply.
        groups: Number of groups.
        channels_last: Whether input and output lie in memory as [N, H, W, C].
        threads: Threads for which the kernels are made.
    """

    source: tuple[int, ...]
    weight: tuple[int, ...]
    strides: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    channels_last: bool = False
    threads: int = 1

    @property
    def output(self) -> tuple[int, ...]:
        """Shape of the output, [N, O, H', W']."""
        sides = zip(self.source[2:], self.before, self.after, self.dilations, self.weight[2:], self.strides)
        return (
            self.source[0],
            self.weight[0],
            *((side + a + b - d * (size - 1) - 1) // stride + 1 for side, a, b, d, size, stride in sides),
        )


@functools.lru_cache(maxsize=1)
def library() -> Optional[Library]:
    """Returns oneDNN, or None where Paddle carries none that can be used. Paddle must have been imported before.

    Paddle loads the library too. If it came first here, it would bind to another OpenMP library than Paddle does.
    """
    paddle = importlib.util.find_spec("paddle")
    if paddle is None or paddle.origin is None:
        return None
    try:
        return Library(Path(paddle.origin).parent / "libs")
    except (OSError, AttributeError, RuntimeError) as problem:
        logger.debug("convolutions are Paddle's own, because its oneDNN cannot be used: %s", problem)
        return None


class Convolution:
    """A convolution of one geometry and its two gradients, as functions of addresses of float32 tensors.

    The same arguments give the same bits. Several threads may use one instance at a time.

    Attributes:
        source_shape, weight_shape, output_shape: Shapes of the tensors; where the geometry has the channels last, those
            of source and output have them so.

    Args:
        library: What `library` returns.
        geometry: The geometry. Its output must not be empty.

    Raises:
        NotImplementedError: oneDNN has no kernel for it that is compiled for this processor.
    """

    def __init__(self, library: Library, geometry: Geometry) -> None:
        self._library, self._geometry = library, geometry
        g, groups = geometry, geometry.groups
        self.source_shape, self.output_shape = (_as_in_memory(shape, g.channels_last) for shape in (g.source, g.output))
        self.weight_shape = g.weight
        weight = g.weight if groups == 1 else (groups, g.weight[0] // groups, *g.weight[1:])
        self._plain = (
            library.plain_layout(g.source, g.channels_last),
            library.plain_layout(weight),
            library.plain_layout(g.output, g.channels_last),
        )
        self._any = tuple(library.any_layout(shape) for shape in (g.source, weight, g.output))
        self._windows = [_numbers(sizes) for sizes in (g.strides, [d - 1 for d in g.dilations], g.before, g.after)]
        forward = self._descriptor("forward", self._any)
        self._source_gradient = self._descriptor("backward_data", self._any, forward)
        self._weight_gradient = self._descriptor("backward_weights", self._any, forward)
        gradients = (self._source_gradient, self._weight_gradient)
        is_slow = any(library.implementation(gradient).endswith(":any") for gradient in gradients)
        if is_slow or not library.implementation(forward).startswith(("jit", "brg")):
            raise NotImplementedError(f"oneDNN has no kernels of this processor for {geometry}")
        source, weight_layout, output = self._plain
        self._output = _Operation(library, forward, {_SOURCE: source, _WEIGHT: weight_layout}, (_OUTPUT, output))

    def output(self, source: int, weight: int, output: int) -> None:
        """Writes the convolution of the source with the weight to `output`."""
        self._output({_SOURCE: source, _WEIGHT: weight}, output, {})

    def gradients(
        self, tensors: tuple[Optional[int], Optional[int], int], of_source: Optional[int], of_weight: Optional[int]
    ) -> None:
        """Writes the gradients of the source and of the weight.

        Args:
            tensors: Addresses of the source, of the weight and of the gradient of the output. The gradient of the
                source does not depend on the source, nor that of the weight on the weight.
            of_source: Address for the gradient of the source; None if it is not wanted.
            of_weight: Address for the gradient of the weight; None if it is not wanted.
        """
        source, weight, output_gradient = tensors
        converted: dict[int, _Buffer] = {}
        if of_weight is not None:
            assert source is not None
            self._of_weight({_SOURCE: source, _OUTPUT_GRADIENT: output_gradient}, of_weight, converted)
        if of_source is not None:
            assert weight is not None
            self._of_source({_OUTPUT_GRADIENT: output_gradient, _WEIGHT: weight}, of_source, converted)

    @functools.cached_property
    def _of_source(self) -> _Operation:
        source, weight, output = self._plain
        inputs = {_OUTPUT_GRADIENT: output, _WEIGHT: weight}
        return _Operation(self._library, self._source_gradient, inputs, (_SOURCE_GRADIENT, source))

    @functools.cached_property
    def _of_weight(self) -> _Operation:
        source, weight, output = self._plain
        descriptor = self._weight_gradient
        is_slow = self._geometry.groups == 1 and self._geometry.weight[1] >= _MANY_CHANNELS
        if is_slow and self._library.implementation(descriptor) == "jit:avx2" and not self._geometry.channels_last:
            forward = self._descriptor("forward", self._plain)
            descriptor = self._descriptor("backward_weights", self._plain, forward)
        inputs = {_SOURCE: source, _OUTPUT_GRADIENT: output}
        return _Operation(self._library, descriptor, inputs, (_WEIGHT_GRADIENT, weight))

    def _descriptor(self, kind: str, layouts: tuple[Handle, ...], forward: Optional[Handle] = None) -> Handle:
        source, weight, output = (layout.pointer for layout in layouts)
        begin = [_FORWARD] if forward is None else []
        tensors = [source, weight, output] if kind == "backward_data" else [source, weight, None, output]
        end = [] if forward is None else [forward.pointer]
        arguments = [*begin, _DIRECT, *tensors, *self._windows, *end, self._library.attributes.pointer]
        return self._library.descriptor(f"dnnl_convolution_{kind}_primitive_desc_create", *arguments)


class Handle:
    """An object of the library. It either has a destructor, and is destroyed with this one, or is part of an owner."""

    def __init__(self, pointer: c_void_p, destroy: Any = None, owner: Optional[Handle] = None) -> None:
        self.pointer, self._destroy, self._owner = pointer, destroy, owner

    def __del__(self) -> None:
        if self._destroy is not None:
            self._destroy(self.pointer)


class _Buffer(NamedTuple):
    """Memory that oneDNN computes in, with the layout of what it holds."""

    layout: Handle
    address: int
    owner: np.ndarray


class _Argument(ctypes.Structure):
    _fields_ = [("number", c_int), ("memory", c_void_p)]


class _Version(ctypes.Structure):
    _fields_ = [("major", c_int), ("minor", c_int), ("patch", c_int), ("rest", c_void_p * 4)]


class Library:
    """The functions of oneDNN, with an engine for the CPU.

    Args:
        folder: Folder of the shared libraries of Paddle.

    Raises:
        OSError: The library is missing, or cannot be loaded.
        AttributeError: It lacks a function.
        RuntimeError: It is another version, or refuses to work.
    """

    def __init__(self, folder: Path) -> None:
        self._dnnl = ctypes.CDLL(str(folder / "libdnnl.so.3"))
        openmp = folder / "libiomp5.so"
        self._openmp = ctypes.CDLL(str(openmp)) if openmp.exists() else None
        self._dnnl.dnnl_version.restype = POINTER(_Version)
        if self._dnnl.dnnl_version().contents.major != 3:
            raise RuntimeError("it is not version 3")
        self._dnnl.dnnl_primitive_desc_query_md.restype = c_void_p
        self._dnnl.dnnl_memory_desc_get_size.restype = c_size_t
        self._engine = self._new("dnnl_engine_create", "dnnl_engine_destroy", _CPU, c_size_t(0))
        self.attributes = self._new("dnnl_primitive_attr_create", "dnnl_primitive_attr_destroy")
        # By default, primitives share a scratchpad that belongs to the thread which has created them.
        _check(self._dnnl.dnnl_primitive_attr_set_scratchpad_mode(self.attributes.pointer, _USER_SCRATCHPAD))
        self._create_memory, self._destroy_memory = self._dnnl.dnnl_memory_create, self._dnnl.dnnl_memory_destroy
        self._of_thread = threading.local()

    def threads(self) -> int:
        """Returns the threads with which this thread computes, as OpenMP has them; 0 where they are not known."""
        return 0 if self._openmp is None else int(self._openmp.omp_get_max_threads())

    def plain_layout(self, shape: tuple[int, ...], channels_last: bool = False) -> Handle:
        """Returns the layout of a tensor without gaps; its shape is [N, C, H, W] even where the channels lie last."""
        order = (0, 2, 3, 1) if channels_last else range(len(shape))
        strides, stride = [0] * len(shape), 1
        for axis in reversed(order):
            strides[axis], stride = stride, stride * shape[axis]
        arguments = (len(shape), _numbers(shape), _FLOAT32, _numbers(strides))
        return self._new("dnnl_memory_desc_create_with_strides", "dnnl_memory_desc_destroy", *arguments)

    def any_layout(self, shape: tuple[int, ...]) -> Handle:
        """Returns the layout that leaves the choice to oneDNN."""
        arguments = (len(shape), _numbers(shape), _FLOAT32, _ANY_LAYOUT)
        return self._new("dnnl_memory_desc_create_with_tag", "dnnl_memory_desc_destroy", *arguments)

    def descriptor(self, function: str, *arguments: Any) -> Handle:
        """Returns the descriptor of a primitive.

        Raises:
            NotImplementedError: oneDNN has no such primitive.
        """
        return self._new(function, "dnnl_primitive_desc_destroy", self._engine.pointer, *arguments)

    def conversion(self, before: Handle, after: Handle) -> Primitive:
        """Returns the primitive that converts a tensor to another layout."""
        engine = self._engine.pointer
        arguments = (before.pointer, engine, after.pointer, engine, self.attributes.pointer)
        new = self._new("dnnl_reorder_primitive_desc_create", "dnnl_primitive_desc_destroy", *arguments)
        return Primitive(self, new)

    def primitive(self, descriptor: Handle) -> Handle:
        """Returns the primitive that a descriptor describes."""
        return self._new("dnnl_primitive_create", "dnnl_primitive_destroy", descriptor.pointer)

    def implementation(self, descriptor: Handle) -> str:
        """Returns the name of the kernels of a primitive, such as 'jit:avx2'."""
        name = c_char_p()
        _check(self._dnnl.dnnl_primitive_desc_query(descriptor.pointer, _QUERY_IMPLEMENTATION, 0, byref(name)))
        return (name.value or b"").decode()

    def layout_of(self, descriptor: Handle, argument: int) -> Handle:
        """Returns the layout in which a primitive has one of its arguments."""
        query = self._dnnl.dnnl_primitive_desc_query_md
        return Handle(c_void_p(query(descriptor.pointer, _LAYOUT_QUERIES[argument], 0)), owner=descriptor)

    def is_equal(self, layout: Handle, other: Handle) -> bool:
        """Returns whether two layouts are the same."""
        return bool(self._dnnl.dnnl_memory_desc_equal(layout.pointer, other.pointer))

    def size(self, layout: Handle) -> int:
        """Returns the size of a tensor of this layout, in bytes."""
        return int(self._dnnl.dnnl_memory_desc_get_size(layout.pointer))

    def run(self, primitive: Handle, tensors: Mapping[int, tuple[Handle, int]]) -> None:
        """Runs a primitive on tensors: their layouts and addresses, by argument."""
        if not hasattr(self._of_thread, "stream"):
            engine = self._engine.pointer
            self._of_thread.stream = self._new("dnnl_stream_create", "dnnl_stream_destroy", engine, _IN_ORDER)
        memories = {number: self._memory(layout, address) for number, (layout, address) in tensors.items()}
        arguments = (_Argument * len(memories))()
        for argument, (number, memory) in zip(arguments, memories.items()):
            argument.number, argument.memory = number, memory.pointer
        stream = self._of_thread.stream.pointer
        _check(self._dnnl.dnnl_primitive_execute(primitive.pointer, stream, len(arguments), arguments))

    def _memory(self, layout: Handle, address: int) -> Handle:
        pointer = c_void_p()
        _check(self._create_memory(byref(pointer), layout.pointer, self._engine.pointer, c_void_p(address)))
        return Handle(pointer, self._destroy_memory)

    def _new(self, function: str, destructor: str, *arguments: Any) -> Handle:
        pointer = c_void_p()
        _check(getattr(self._dnnl, function)(byref(pointer), *arguments))
        return Handle(pointer, getattr(self._dnnl, destructor))


class Primitive:
    """A function from tensors to a tensor, with kernels for one geometry.

    Args:
        library: The library.
        descriptor: Its descriptor.
    """

    def __init__(self, library: Library, descriptor: Handle) -> None:
        self._library, self._primitive = library, library.primitive(descriptor)
        self._scratchpad = library.layout_of(descriptor, _SCRATCHPAD)
        self._scratchpad_size = library.size(self._scratchpad)

    def __call__(self, tensors: dict[int, tuple[Handle, int]]) -> None:
        """Runs on tensors: their layouts and addresses, by argument."""
        if self._scratchpad_size:
            scratchpad = _buffer(self._scratchpad, self._scratchpad_size)
            tensors = {**tensors, _SCRATCHPAD: scratchpad[:2]}
        self._library.run(self._primitive, tensors)


class _Operation:
    """A primitive between tensors of plain layouts.

    Args:
        library: The library.
        descriptor: Descriptor of the primitive.
        inputs: Plain layouts of the inputs, by argument.
        output: The argument of the output, and its plain layout.
    """

    def __init__(
        self, library: Library, descriptor: Handle, inputs: Mapping[int, Handle], output: tuple[int, Handle]
    ) -> None:
        self._library, self._primitive = library, Primitive(library, descriptor)
        self._last = output[0]
        self._plain = {**inputs, self._last: output[1]}
        self._layouts = {number: library.layout_of(descriptor, number) for number in self._plain}
        self._sizes = {number: library.size(layout) for number, layout in self._layouts.items()}
        self._conversions = {}
        for number, layout in self._layouts.items():
            if not library.is_equal(layout, self._plain[number]):
                ends = (layout, self._plain[number])
                self._conversions[number] = library.conversion(*(ends if number == self._last else reversed(ends)))

    def __call__(self, inputs: Mapping[int, int], output: int, converted: dict[int, _Buffer]) -> None:
        """Computes the output.

        Args:
            inputs: Addresses of the inputs, by argument.
            output: Address of the output.
            converted: What operations on the same inputs have converted, by address; this one adds to it.
        """
        last = self._last
        tensors = {number: self._converted(number, address, converted) for number, address in inputs.items()}
        plain = (self._plain[last], output)
        if last not in self._conversions:
            self._primitive({**tensors, last: plain})
            return
        buffer = _buffer(self._layouts[last], self._sizes[last])
        self._primitive({**tensors, last: buffer[:2]})
        self._conversions[last]({_SOURCE: buffer[:2], _OUTPUT: plain})

    def _converted(self, number: int, address: int, converted: dict[int, _Buffer]) -> tuple[Handle, int]:
        layout = self._layouts[number]
        if number not in self._conversions:
            return layout, address
        earlier = converted.get(address)
        if earlier is None or not self._library.is_equal(earlier.layout, layout):
            earlier = converted[address] = _buffer(layout, self._sizes[number])
            self._conversions[number]({_SOURCE: (self._plain[number], address), _OUTPUT: earlier[:2]})
        return earlier[:2]


def _as_in_memory(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1]) if channels_last else shape


def _buffer(layout: Handle, size: int) -> _Buffer:
    owner = np.empty(size + _ALIGNMENT, np.uint8)
    address = owner.__array_interface__["data"][0]
    return _Buffer(layout, -(-address // _ALIGNMENT) * _ALIGNMENT, owner)


def _numbers(values: Any) -> Any:
    return (c_int64 * len(values))(*values)


def _check(status: int) -> None:
    if status == _OUT_OF_MEMORY:
        raise MemoryError("oneDNN is out of memory")
    if status:
        raise NotImplementedError(f"oneDNN returned status {status}")
