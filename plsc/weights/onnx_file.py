"""Reads the weights of ONNX files, whose exporters fold batch normalisation into convolutions and drop names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import paddle

from plsc.errors import ConfigError, reason_of
from plsc.layers.slopes import PReLU
from plsc.weights.names import Network
from plsc.weights.source import Weights, damaged, open_file

# Number of convolutions of each network of arcface_torch.
_CONVOLUTIONS = {
    21: "IResNet18", 37: "IResNet34", 53: "IResNet50", 103: "IResNet100", 201: "IResNet200",
    49: "MobileFaceNet_base", 90: "MobileFaceNet_large",
}  # fmt: skip
_NORMS = (paddle.nn.BatchNorm1D, paddle.nn.BatchNorm2D)
_KIND_OF_OP = {"Conv": paddle.nn.Conv2D, "BatchNormalization": _NORMS, "PRelu": PReLU, "Gemm": paddle.nn.Linear}


class _Operator(NamedTuple):
    """An operator with weights.

    Attributes:
        kind: Its name in ONNX.
        inputs: Names of its weights; '' for one that it leaves out.
        transposed: Whether the first of them is [out, in].
    """

    kind: str
    inputs: list[str]
    transposed: bool


class OnnxFile(Weights):
    """The weights of an ONNX file, under the names that the file gives them.

    Args:
        path: The file.

    Raises:
        ConfigError: It is no such file, or the package onnx is missing.
    """

    of_torch = True

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            import onnx
        except ImportError:
            raise ConfigError(f"{path}: ONNX files need onnx; run pip install '.[onnx]' in the plsc clone") from None
        try:
            with open_file(path) as file:
                graph = onnx.load_model_from_string(file.read()).graph
        except ConfigError:
            raise
        except Exception as problem:  # protobuf raises its own types
            raise damaged(path, reason_of(problem)) from None
        if any(one.data_location == onnx.TensorProto.EXTERNAL for one in graph.initializer):
            raise ConfigError(
                f"{path}: keeps its weights in another file; save it as one file with onnx.save_model(onnx.load(...), "
                "..., save_as_external_data=False)"
            )
        self._renamed: dict[str, np.ndarray] = {}
        self._to_array = onnx.numpy_helper.to_array
        self._tensors = {one.name: one for one in graph.initializer}
        self.shapes = {name: tuple(one.dims) for name, one in self._tensors.items()}
        self._operators = [
            _operator_of(node)
            for node in graph.node
            if (node.op_type in _KIND_OF_OP or node.op_type == "MatMul") and set(node.input[1:]) <= set(self._tensors)
        ]

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor; see `Weights.read`."""
        if name in self._renamed:
            return self._renamed[name]
        try:
            return np.asarray(self._to_array(self._tensors[name]))
        except Exception as problem:  # of damaged tensors, and of names that the file does not have
            raise damaged(self.path, reason_of(problem)) from None

    def network(self) -> Optional[Network]:
        """Returns which network of arcface_torch the file seems to hold; None if it cannot be told."""
        count = sum(one.kind == "Conv" for one in self._operators)
        linear = [one for one in self._operators if one.kind == "Gemm"]
        if count not in _CONVOLUTIONS or len(linear) != 1:
            return None
        sizes = self.shapes.get(linear[0].inputs[0], (0, 0))
        emb_dim, features = sizes if linear[0].transposed else sizes[::-1]
        name = _CONVOLUTIONS[count]
        last = [self.shapes.get(one.inputs[0], ()) for one in self._operators if one.kind == "Conv"][-1]
        side = last[-1] if name.startswith("Mobile") and last else math.isqrt(features // 512)
        return Network(name, emb_dim, 16 * side)

    def rename_by_order(self, backbone: paddle.nn.Layer) -> None:
        """Gives the weights the names that they have in a network whose layers run in the order of their names.

        A batch normalisation that has been folded into the convolution before it becomes a shift. In a test it computes
        the same; in training it takes the statistics of the batch, as it would have.

        Raises:
            ConfigError: The operators of the file are not those of the network.
        """
        operators = iter(self._operators)
        state: dict[str, np.ndarray] = {}
        ahead, shift = next(operators, None), None
        for name, layer in backbone.named_sublayers():
            kind = next((op for op, kinds in _KIND_OF_OP.items() if isinstance(layer, kinds)), None)
            if kind is None:
                continue
            if shift is not None and kind == "BatchNormalization":
                state |= {f"{name}.{part}": values for part, values in _folded(shift, layer)}
                shift = None
            elif ahead is not None and ahead.kind == kind:
                state |= {f"{name}.{part}": values for part, values in self._parts(ahead, layer)}
                shift = self._shift(ahead)
                ahead = next(operators, None)
            else:
                raise ConfigError(
                    f"{self.path}: has {'no more operators' if ahead is None else ahead.kind} where the network has "
                    f"{name} ({type(layer).__name__}); name the network that it was exported from"
                )
        if ahead is not None:
            raise ConfigError(f"{self.path}: has more layers than the network; name the network that it was made from")
        own = backbone.state_dict()
        state = {name if name in own else name.replace(".bias", "_bias"): values for name, values in state.items()}
        self._renamed, self.of_torch = state, False
        self.shapes = {name: values.shape for name, values in state.items()}

    def _shift(self, operator: _Operator) -> Optional[np.ndarray]:
        is_folded = operator.kind == "Conv" and len(operator.inputs) > 1
        return self.read(operator.inputs[1]) if is_folded else None

    def _parts(self, operator: _Operator, layer: paddle.nn.Layer) -> Iterator[tuple[str, np.ndarray]]:
        values = [self.read(name) for name in operator.inputs]
        if operator.kind == "Gemm":
            yield "weight", np.ascontiguousarray(values[0].T) if operator.transposed else values[0]
            if getattr(layer, "bias", None) is not None and len(values) > 1:
                yield "bias", values[1]
        elif operator.kind == "PRelu":
            yield "_weight", values[0].reshape(-1)
        elif operator.kind == "Conv":
            yield "weight", values[0]
        else:
            yield from zip(("weight", "bias", "_mean", "_variance"), values)


def _folded(shift: np.ndarray, layer: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a batch normalisation that adds `shift`."""
    ones = np.ones_like(shift)
    yield "weight", ones * np.float32(math.sqrt(1 + layer._epsilon))
    yield "bias", shift
    yield "_mean", np.zeros_like(shift)
    yield "_variance", ones


def _operator_of(node: Any) -> _Operator:
    values = {one.name: one.i for one in node.attribute}
    kind = "Gemm" if node.op_type == "MatMul" else node.op_type
    return _Operator(kind, list(node.input)[1:], bool(values.get("transB", 0)))
