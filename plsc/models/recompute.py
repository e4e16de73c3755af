"""Recomputes activations: parts of a network keep only their input, and are computed again in the backward pass.

See Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv:1604.06174. Paddle's own function for this
is `fleet.utils.recompute`. It moves the running statistics of BatchNorm twice, and hides the parameters of a part from
the ranks, which must average their gradients.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional

import numpy as np
import paddle
from paddle import Tensor, nn

from plsc.errors import ConfigError
from plsc.layers.gradients import HAS_GRADIENTS, refusing_a_second_pass
from plsc.layers.scope import current_pass
from plsc.models.freezing import is_statistic

_FEWEST_LAYERS = 4  # of a part that is made of simple layers

Function = Callable[..., Any]
Context = Callable[[], contextlib.AbstractContextManager]
# Runs a part: its function, the layers that hold its parameters (None where only a call tells them), and the arguments.
Runner = Callable[..., Any]


class _Current(threading.local):
    run: Optional[Runner] = None


_current = _Current()


def part(function: Function, input: Tensor, *others: Any) -> Any:
    """Returns `function(input, *others)`. A training with `set_recompute(True)` computes that again in backward.

    It is for define-by-run networks: all parameters of the function must be those of `plsc.layers`.
    """
    return function(input, *others) if _current.run is None else _current.run(function, None, input, *others)


class Recompute:
    """The parts of a model that are computed again: what its Sequentials hold, or what it calls with `part`.

    Args:
        model: The model, with all its layers made.
        conditions: Returns the context in which the model computes, for instance its precision.

    Raises:
        ConfigError: The model has no such parts.
    """

    def __init__(self, model: nn.Layer, conditions: Context = contextlib.nullcontext) -> None:
        self._name, self._conditions = type(model).__name__, conditions
        self._sequences = {layer: _parts_of(layer) for layer in _sequences_in(model)}
        if not self._sequences and not getattr(model, "calls_parts", False):
            raise ConfigError(
                f"set_recompute(True): {self._name} has no paddle.nn.Sequential, and the layers of one are what can be "
                "computed again; put the blocks of the model into an nn.Sequential and call that, or leave "
                "set_recompute out"
            )

    @contextlib.contextmanager
    def active(self, runner: Optional[Runner] = None) -> Iterator[None]:
        """Has the forward passes in the block keep only the inputs of the parts.

        Args:
            runner: Replaces what runs a part, to observe it.

        Raises:
            ConfigError: The model does not call its Sequentials.
        """
        called = []

        def run(function: Function, layers: Optional[Sequence[nn.Layer]], *inputs: Any) -> Any:
            called.append(True)
            if not paddle.is_grad_enabled():  # as in the dry run of a model whose layers have not been made
                return function(*inputs)
            return (runner or self._recomputed)(function, layers, *inputs)

        _current.run = run
        for layer, parts in self._sequences.items():
            object.__setattr__(layer, "forward", functools.partial(_in_parts, parts, run))
        try:
            yield
        finally:
            _current.run = None
            for layer in self._sequences:
                object.__delattr__(layer, "forward")
        if not called:
            raise ConfigError(
                f"set_recompute(True): {self._name} holds an nn.Sequential, but its forward calls the layers in it one "
                "by one; have it call the Sequential itself, or leave set_recompute out"
            )

    def _recomputed(self, function: Function, layers: Optional[Sequence[nn.Layer]], *inputs: Any) -> Any:
        call = _Call(function, layers, inputs, self._conditions)
        output = call.output = call.first()
        if not isinstance(output, Tensor) or not isinstance(inputs[0], Tensor) or call.has_changed_input():
            raise ConfigError(
                f"set_recompute(True): a part of an nn.Sequential of {self._name} does not turn one tensor into "
                "another, or changes it in place, and cannot be computed again; leave set_recompute out"
            )
        trained = call.trained()
        return refusing_a_second_pass(_Recomputed.apply(call, *trained), call) if trained else output


class _Call:
    """A part of a network that has been computed for some input, and what it takes to compute it again."""

    def __init__(
        self, function: Function, layers: Optional[Sequence[nn.Layer]], inputs: Sequence[Any], conditions: Context
    ) -> None:
        self._function, self._inputs, self._conditions = function, inputs, conditions
        self._layers = list(layers or ())
        self._version = getattr(inputs[0], "inplace_version", 0)
        # A part of a define-by-run network is computed again from the same place in the order of its layers.
        self._pass = current_pass()
        self._again = contextlib.nullcontext() if self._pass is None else self._pass.copy()
        self.output: Any = None  # until the function of Paddle has it; an argument would count as an input
        self._random, self._statistics = _random_state(), _statistics_of(self._layers)

    def first(self) -> Any:
        """Computes the part without keeping what its backward pass needs."""
        known = 0 if self._pass is None else len(self._pass.found)
        # With Paddle 2.6, oneDNN computes where no gradients are needed, and rounds differently.
        with paddle.set_grad_enabled(not HAS_GRADIENTS):
            output = self._function(*self._inputs)
        if self._pass is not None:
            self._layers += self._pass.found[known:]
        return output.detach() if isinstance(output, Tensor) else output

    def has_changed_input(self) -> bool:
        """Returns whether something has changed the input in place."""
        return bool(self._inputs[0].inplace_version != self._version)

    def trained(self) -> list[Tensor]:
        """Returns the tensors that need gradients: the input, and the parameters."""
        parameters = {id(p): p for layer in self._layers for p in layer.parameters() if not p.stop_gradient}
        first = self._inputs[0]
        return [*([] if first.stop_gradient else [first]), *parameters.values()]

    def gradients(self, gradient: Tensor) -> list[Optional[Tensor]]:
        """Computes the part again, and returns the gradients of what `trained` returned.

        The random numbers are those of the first time. So are the statistics, which afterwards are as before.
        """
        if self.has_changed_input():
            raise RuntimeError("the input of a part of the network was changed in place before its backward pass")
        first, *others = self._inputs
        source, trained = first.detach(), self.trained()
        source.stop_gradient = first.stop_gradient
        if not first.stop_gradient:
            trained[0] = source
        random_now, statistics_now = _random_state(), _statistics_of(self._layers)
        _restore(self._statistics)
        _set_random_state(self._random)
        with self._again, self._conditions(), paddle.enable_grad():
            output = self._function(source, *others)
        gradients = paddle.grad([output], trained, [gradient], retain_graph=False, allow_unused=True)
        _restore(statistics_now)  # The gradients need those of the forward pass, unchanged.
        _set_random_state(random_now)
        return gradients


class _Recomputed(paddle.autograd.PyLayer):
    """A part as a function of its input and its parameters, so that the ranks know what it has gradients for."""

    @staticmethod
    def forward(context: Any, call: _Call, *trained: Tensor) -> Any:
        context.call, output = call, call.output
        call.output = None
        return output

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        call, context.call = context.call, None  # The input is not needed any more.
        return tuple(call.gradients(gradient))


def _sequences_in(layer: nn.Layer) -> Iterator[nn.Sequential]:
    """Yields the Sequentials whose layers are computed again: the outermost ones, or those inside of these."""
    if type(layer).forward is nn.Sequential.forward:
        yield layer  # type: ignore[misc]
        inner = [child for child in layer.children() if _is_sequence_of_blocks(child)]
    else:
        inner = list(layer.children())
    for child in inner:
        yield from _sequences_in(child)


def _is_sequence_of_blocks(layer: nn.Layer) -> bool:
    return type(layer).forward is nn.Sequential.forward and any(map(_is_block, layer.children()))


def _is_block(layer: nn.Layer) -> bool:
    return bool(layer.sublayers())


def _parts_of(sequence: nn.Sequential) -> list[list[nn.Layer]]:
    """Divides the layers of a Sequential into parts: each block, and the simple layers between the blocks.

    Of many simple layers in a row, each part gets about as many as there are parts.
    """
    parts: list[list[nn.Layer]] = []
    for is_block, group in itertools.groupby(sequence.children(), _is_block):
        layers = list(group)
        size = 1 if is_block else max(_FEWEST_LAYERS, math.isqrt(len(layers)))
        parts += [layers[begin : begin + size] for begin in range(0, len(layers), size)]
    return parts


def _in_parts(parts: Sequence[Sequence[nn.Layer]], run: Runner, input: Any) -> Any:
    """Does what the forward of a Sequential does."""
    for layers in parts:
        if len(layers) == 1 and _is_sequence_of_blocks(layers[0]):
            input = layers[0](input)
        else:
            input = run(functools.partial(_in_turn, layers), layers, input)
    return input


def _in_turn(layers: Sequence[nn.Layer], input: Any) -> Any:
    for layer in layers:
        input = layer(input)
    return input


def _statistics_of(layers: Sequence[nn.Layer]) -> list[tuple[Tensor, Tensor]]:
    """Returns what a forward pass may change, buffers and the running statistics of BatchNorm, with copies."""
    found = {}
    for layer in layers:
        found.update({id(tensor): tensor for tensor in layer.buffers()})
        named = layer.named_parameters()
        found.update({id(p): p for name, p in named if p.stop_gradient and is_statistic(name)})
    return [(tensor, tensor.clone()) for tensor in found.values()]


@paddle.no_grad()
def _restore(statistics: Sequence[tuple[Tensor, Tensor]]) -> None:
    for tensor, kept in statistics:
        paddle.assign(kept, tensor)


def _random_state() -> tuple[Any, Any, Any]:
    return paddle.get_rng_state(), random.getstate(), np.random.get_state()


def _set_random_state(state: tuple[Any, Any, Any]) -> None:
    paddle.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])
