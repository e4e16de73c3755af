"""Brings weights from elsewhere into a network, or into a checkpoint that every command of plsc takes."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import paddle

from plsc.checkpoint.folder import BACKBONE, OPTIMIZER, head_file, publishing, write_meta
from plsc.checkpoint.tensor_file import Stream, write_tensors
from plsc.config import LARGEST_EMBEDDING, LARGEST_SIDE, Config, Pixels, check_int
from plsc.errors import ConfigError, counted
from plsc.machine.memory import out_of_memory_as
from plsc.models import MODEL_NAMES, build_model
from plsc.models.base_model import build
from plsc.version import __version__
from plsc.weights.kinds import TORCH_SUFFIXES, check_kind
from plsc.weights.names import Matching, Network, match, network_of, read_own
from plsc.weights.onnx_file import OnnxFile
from plsc.weights.paddle_file import PaddleFile
from plsc.weights.safetensors_file import SafetensorsFile
from plsc.weights.source import Weights
from plsc.weights.torch_file import TorchFile
from plsc.zoo import check_target

logger = logging.getLogger("plsc")

OWN_STD = 128.0  # plsc normalises pixels x as (x - 127.5) / 128
_READERS: dict[str, Callable[[Path], Weights]] = {
    **dict.fromkeys(TORCH_SUFFIXES, TorchFile),
    ".pdparams": PaddleFile,
    ".safetensors": SafetensorsFile,
    ".onnx": OnnxFile,
}
_NAMED = 3  # tensors that messages name


@dataclass(frozen=True)
class Report:
    """What an import found.

    Attributes:
        model: Name of the network.
        emb_dim: Size of an embedding.
        image_shape: Shape of an image, (C, H, W).
        classes: Number of class centres; 0 without a head.
        tensors: Number of tensors that were taken.
        missing: Why a tensor of the network did not come from the file, by its name.
        unused: Tensors of the file that the network does not have.
    """

    model: str
    emb_dim: int
    image_shape: tuple[int, int, int]
    classes: int
    tensors: int
    missing: Mapping[str, str]
    unused: Sequence[str]


def open_weights(path: Path) -> Weights:
    """Opens a file of weights, whose kind its suffix says.

    Raises:
        ConfigError: There is no such kind, or the file cannot be read.
    """
    check_kind(path)
    return _READERS[path.suffix.lower()](path)


def load_pretrained(path: Path, backbone: paddle.nn.Layer, pixels: Pixels, strict: bool = True) -> Matching:
    """Loads the weights of a file into a network.

    Args:
        path: The file; see `open_weights`.
        backbone: The network, with all its layers made.
        pixels: The images that the weights were trained on.
        strict: Whether every tensor must have its match.

    Returns:
        What was loaded, and what was not.

    Raises:
        ConfigError: The file cannot be read, nothing in it matches, or with `strict` something does not.
    """
    state = backbone.state_dict()
    with open_weights(path) as weights:
        matching = match(weights, {name: tuple(tensor.shape) for name, tensor in state.items()})
        if matching.missing and isinstance(weights, OnnxFile):
            weights.rename_by_order(backbone)
            matching = match(weights, {name: tuple(tensor.shape) for name, tensor in state.items()})
        _check(path, weights, matching, strict)
        first = _first_convolution(backbone)
        for name, origin in matching.found.items():
            values = read_own(weights, origin)
            if not np.isfinite(values).all():
                raise ConfigError(f"{path}: the values for {name} are not finite; use the weights of a sound training")
            if name == first:
                values = _for_own_pixels(values, pixels)
            state[name].set_value(paddle.to_tensor(values).astype(state[name].dtype).reshape(state[name].shape))
    return matching


def _check(path: Path, weights: Weights, matching: Matching, strict: bool) -> None:
    if not matching.found:
        known = _network_of(weights)
        advice = f"it seems to hold a {known.name}" if known else "choose the network that it was saved from"
        raise ConfigError(f"{path}: none of its {counted(len(weights.shapes), 'tensor')} fits the network; {advice}")
    if not strict or not (matching.missing or matching.unused):
        return
    wrong = [f"{name} ({why})" for name, why in matching.missing.items()]
    wrong += [f"{name} (the network does not have it)" for name in matching.unused]
    more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    known = _network_of(weights)
    seems = f"; the file seems to hold a {known.name} of embedding size {known.emb_dim}" if known else ""
    raise ConfigError(
        f"{path}: {counted(len(matching.found), 'tensor')} of the file can be used, and these do not fit the network: "
        f"{', '.join(wrong[:_NAMED])}{more}"
        f"{seems}; choose the network that it was saved from, with its embedding size and image shape"
    )


def _network_of(weights: Weights) -> Optional[Network]:
    """Returns which built-in network a file holds; None if it cannot be told."""
    return network_of(weights) or (weights.network() if isinstance(weights, OnnxFile) else None)


def _first_convolution(backbone: paddle.nn.Layer) -> Optional[str]:
    """Returns the name of the weight of the first convolution, which sees the pixels."""
    for name, layer in backbone.named_sublayers():
        if isinstance(layer, paddle.nn.Conv2D):
            return f"{name}.weight"
    return None


def _for_own_pixels(weight: np.ndarray, pixels: Pixels) -> np.ndarray:
    """Returns a first convolution that makes of plsc's pixels what `weight` makes of those it was trained on.

    Both subtract 127.5, so that the zeros at the border mean the same. The weights absorb the rest.
    """
    if pixels.order == "bgr":
        weight = weight[:, ::-1]
    return np.ascontiguousarray(weight * np.float32(OWN_STD / pixels.std))


def import_weights(
    source: Path,
    target: Path,
    model: Optional[str] = None,
    heads: Sequence[Path] = (),
    pixels: Optional[Pixels] = None,
    strict: bool = True,
    emb_dim: Optional[int] = None,
    image_shape: Optional[Sequence[int]] = None,
) -> Report:
    """Writes a checkpoint with the weights of a file.

    Args:
        source: The file; see `open_weights`.
        target: New folder of the checkpoint.
        model: Name of the built-in network; None recognises those of arcface_torch and PLSC 2.
        heads: Files with the class centres, in the order of their ranks.
        pixels: The images that the weights were trained on; None means those of arcface_torch.
        strict: Whether every tensor must have its match.
        emb_dim: Size of an embedding; None takes it from the file, or 512 for a network that is not recognised.
        image_shape: Shape of an image, (C, H, W); None takes it from the file, or (3, 112, 112).

    Raises:
        ConfigError: A file cannot be read, the network cannot be told, or something does not fit.
        CheckpointError: The checkpoint cannot be written.
    """
    check_target("import-weights", target)
    if target.exists():
        raise ConfigError(f"{target}: already exists; name a new folder")
    with open_weights(source) as weights:
        known = _network_of(weights)
    if known is None and model is None:
        raise ConfigError(
            f"{source}: plsc cannot tell which network it holds; name it with --model, one of {', '.join(MODEL_NAMES)}"
        )
    name = model or known.name  # type: ignore[union-attr]
    config = Config()
    side = known.side if known else config.image_shape[1]
    emb_dim = emb_dim or (known.emb_dim if known else config.emb_dim)
    check_int(f"{source}: the embedding size", emb_dim, 1, LARGEST_EMBEDDING)
    check_int(f"{source}: the side of an image", side, 1, LARGEST_SIDE)
    channels, height, width = image_shape or (3, side, side)
    shape = (channels, height, width)
    with out_of_memory_as("the file is damaged, or its network is too large for this machine"):
        backbone = build_model(name, emb_dim, shape)
        build(backbone, shape)
    matching = load_pretrained(source, backbone, pixels or Pixels(), strict)
    with Heads(heads, emb_dim) as centres:
        record = dataclasses.replace(config, image_shape=shape).image_record()
        meta = {
            "plsc": __version__,
            "written": time.time(),
            "step": 0,
            "num_classes": centres.count,
            "emb_dim": emb_dim,
            "loss_type": config.loss_type,
            "sharded": True,
            **record,
            "model": name,
            "ranks": 1,
            "dtype": "float32",
            "imported_from": source.name,
            "head_rows": [centres.count],
            "by_rows": ["weight"],
            "accumulators": {},
        }
        state = {key: tensor.numpy() for key, tensor in backbone.state_dict().items()}
        _write(target, state, Stream(np.dtype("float32"), (centres.count, emb_dim), centres.parts()), meta)
        count = centres.count
    return Report(
        model=name,
        emb_dim=emb_dim,
        image_shape=shape,
        classes=count,
        tensors=len(matching.found),
        missing=matching.missing,
        unused=matching.unused,
    )


def _write(target: Path, state: Mapping[str, np.ndarray], head: Stream, meta: Mapping[str, Any]) -> None:
    contents: dict[str, Mapping[str, Any]] = {BACKBONE: state, OPTIMIZER: {}, head_file(0): {"weight": head}}
    with publishing(target) as folder:
        files = {name: write_tensors(folder / name, tensors) for name, tensors in contents.items()}
        write_meta(folder, dict(meta), files)


class Heads:
    """Class centres in the files of the ranks of another program: one matrix each, [c, D] or in Paddle [D, c].

    Args:
        paths: The files, in the order of the ranks.
        emb_dim: Size of an embedding, D.

    Attributes:
        count: Number of classes of all files.

    Raises:
        ConfigError: A file cannot be read, or does not hold one such matrix.
    """

    def __init__(self, paths: Sequence[Path], emb_dim: int) -> None:
        self._files: list[tuple[Weights, str, bool]] = []
        self.count = 0
        try:
            for path in paths:
                self._add(path, emb_dim)
        except BaseException:
            self.close()
            raise

    def _add(self, path: Path, emb_dim: int) -> None:
        weights = open_weights(path)
        axis = 1 if weights.of_torch else 0
        fit = [name for name, shape in weights.shapes.items() if len(shape) == 2 and shape[axis] == emb_dim]
        preferred = [name for name in fit if name.endswith(("softmax_fc.weight", "head.weight"))]
        if len(preferred or fit) != 1:
            weights.close()
            raise ConfigError(
                f"{path}: expected one matrix of class centres of size {emb_dim}, found {len(fit)}; name files that "
                "hold the head alone"
            )
        (name,) = preferred or fit
        self._files.append((weights, name, not weights.of_torch))
        self.count += weights.shapes[name][1 - axis]
        if not weights.shapes[name][1 - axis]:
            raise ConfigError(f"{path}: {name} holds no class centres; name another file")

    def parts(self) -> Iterator[np.ndarray]:
        """Yields the centres [c, D] float32 of one file after another."""
        for weights, name, is_transposed in self._files:
            values = weights.read(name)
            if not np.isfinite(values).all():
                raise ConfigError(f"{weights.path}: its class centres are not finite; use those of a sound training")
            yield np.ascontiguousarray(values.T if is_transposed else values, np.float32)

    def close(self) -> None:
        """Closes the files."""
        for weights, _, _ in self._files:
            weights.close()

    def __enter__(self) -> Heads:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
