"""What the tensors of other programs are called in the networks of plsc, and which network they are of."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Optional

import numpy as np

from plsc.models.resnet import DEPTHS, WIDTHS
from plsc.weights.source import Weights

_PREFIXES = ("module.", "backbone.", "state_dict_backbone.", "state_dict.", "model.", "net.")
_UNUSED = re.compile(r"(^|\.)num_batches_tracked$|^head\.|^state_(optimizer|lr_scheduler|dict_softmax_fc)\b")
_STATISTICS = {"running_mean": "_mean", "running_var": "_variance"}
_IN_BLOCK = {
    "bn1": "residual.0", "conv1": "residual.1", "bn2": "residual.2", "prelu": "residual.3", "conv2": "residual.4",
    "bn3": "residual.5", "downsample.0": "shortcut.0", "downsample.1": "shortcut.1",
}  # fmt: skip
_OUTSIDE = {"conv1": "stem.0", "bn1": "stem.1", "prelu": "stem.2", "bn2": "norm"}
_BLOCK = re.compile(r"layer([1-4])\.(\d{1,4})\.(.+)")


class Origin(NamedTuple):
    """Where a tensor of a network comes from.

    Attributes:
        name: Its name in the file.
        transposed: Whether the file has its two axes the other way round.
    """

    name: str
    transposed: bool


class Matching(NamedTuple):
    """How the tensors of a file and of a network belong together.

    Attributes:
        found: Where each tensor of the network comes from, by its name.
        missing: Why a tensor of the network does not come from the file, by its name.
        unused: Tensors of the file that the network does not have.
    """

    found: dict[str, Origin]
    missing: dict[str, str]
    unused: list[str]


class Network(NamedTuple):
    """A built-in network.

    Attributes:
        name: Its name, for `set_model_name`.
        emb_dim: Size of an embedding.
        side: Height and width of its images.
    """

    name: str
    emb_dim: int
    side: int


def match(weights: Weights, shapes: Mapping[str, tuple[int, ...]]) -> Matching:
    """Matches the tensors of a file with those of a network by name and shape.

    Args:
        weights: The file. Its names are those of plsc, of arcface_torch or of PLSC 2, with or without a prefix.
        shapes: Shape of each tensor of the network by its name.
    """
    found: dict[str, Origin] = {}
    missing = dict.fromkeys(shapes, "the file does not have it")
    unused = []
    same = [name for name in weights if name in shapes]
    if len(same) > len(shapes) / 2:  # a network of the user's own, whose names may begin with anything
        theirs = {name: name for name in same}
        unused += [name for name in weights if name not in shapes and not _is_no_weight(name)]
    else:
        theirs = _names_in(weights)
    depths = _depths_of(theirs)
    for name, full_name in theirs.items():
        own = next((one for one in _own_names(name, depths) if one in shapes), None)
        if own is None:
            unused.append(full_name)
            continue
        shape, wanted = weights.shapes[full_name], tuple(shapes[own])
        is_linear = len(shape) == 2
        transposed = is_linear and weights.of_torch
        if (shape[::-1] if transposed else shape) == wanted:
            found[own] = Origin(full_name, transposed)
            missing.pop(own, None)
        else:
            missing[own] = f"the file has {list(shape[::-1] if transposed else shape)} instead of {list(wanted)}"
    return Matching(found, missing, unused)


def read_own(weights: Weights, origin: Origin) -> np.ndarray:
    """Reads a tensor in the form in which the network has it."""
    values = weights.read(origin.name)
    return np.ascontiguousarray(values.T) if origin.transposed else values


def network_of(weights: Weights) -> Optional[Network]:
    """Returns which network of arcface_torch or of PLSC 2 a file holds; None if it cannot be told."""
    shapes = {name: weights.shapes[full_name] for name, full_name in _names_in(weights).items()}
    depths = _depths_of(shapes)
    layers = next((layers for layers, one in DEPTHS.items() if one == depths), None)
    if layers is not None and len(shapes.get("fc.weight", ())) == 2 and len(shapes.get("fc.bias", ())) == 1:
        (emb_dim,) = shapes["fc.bias"]
        pixels = math.prod(shapes["fc.weight"]) // max(1, emb_dim) // WIDTHS[-1]
        return Network(f"IResNet{layers}", emb_dim, 16 * math.isqrt(pixels))
    first, last = shapes.get("layers.0.layers.0.weight", ()), shapes.get("features.layers.0.layers.0.weight", ())
    bias = shapes.get("features.layers.3.bias", ())
    if len(first) == len(last) == 4 and len(bias) == 1 and first[0] in (128, 256):
        name = "MobileFaceNet_base" if first[0] == 128 else "MobileFaceNet_large"
        return Network(name, bias[0], 16 * last[2])
    return None


def _is_no_weight(name: str) -> bool:
    """Returns whether a name is of a count, of an optimizer or of a head, and not of a network."""
    return _UNUSED.search(name) is not None


def _names_in(weights: Weights) -> dict[str, str]:
    """Returns the names of the network's tensors in a file, by what remains of them without their common prefix."""
    names = [name for name in weights if not _is_no_weight(name)]
    prefix = ""
    while longer := next((one for one in _PREFIXES if all(name.startswith(prefix + one) for name in names)), ""):
        if not names:
            break
        prefix += longer
    return {name.removeprefix(prefix): name for name in names}


def _own_names(name: str, depths: Sequence[int]) -> list[str]:
    """Returns what a tensor may be called in the networks of plsc.

    Args:
        name: Its name in the file, without the prefix.
        depths: Number of blocks of each stage of a residual network.
    """
    layer, _, kind = name.rpartition(".")
    kind = _STATISTICS.get(kind, kind)
    block = _BLOCK.fullmatch(layer)
    if block is not None and block[3] in _IN_BLOCK:
        layer = f"blocks.{sum(depths[: int(block[1]) - 1]) + int(block[2])}.{_IN_BLOCK[block[3]]}"
    elif any(depths):
        layer = _OUTSIDE.get(layer, layer)
    names = [name, f"{layer}.{kind}"]
    if kind == "weight":
        names.append(f"{layer}._weight")  # of a PReLU
    if (layer, kind) == ("features", "bias"):
        names.append("features_bias")
    return names


def _depths_of(names: Iterable[str]) -> tuple[int, ...]:
    """Returns the number of blocks of each stage of a residual network, 0 if the names are of another network."""
    depths = [0, 0, 0, 0]
    for block in filter(None, map(_BLOCK.match, names)):
        stage = int(block[1]) - 1
        depths[stage] = max(depths[stage], int(block[2]) + 1)
    return tuple(depths)
