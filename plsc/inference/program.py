"""Translates a network into a program for Paddle's inference library: the files of an export, or a faster `embed`."""

from __future__ import annotations

import copy
import inspect
import logging
import tempfile
from pathlib import Path
from typing import Optional

import numpy as np
import paddle

from plsc import parallel
from plsc.errors import ConfigError
from plsc.inference import runtime
from plsc.inference.foreign import last_words
from plsc.layers.gradients import HAS_GRADIENTS
from plsc.layers.kernels import is_switched_off
from plsc.machine.names import utf8_path
from plsc.machine.streams import discarded_output

_NAME = "inference"
_TRIED = 4  # Images on which a program is compared with its network.
_TOLERANCE = 1e-5  # Of the largest element of their embeddings.

logger = logging.getLogger("plsc")


def for_program(backbone: paddle.nn.Layer) -> paddle.nn.Layer:
    """Returns a copy of a network in evaluation mode, which `save_program` can translate."""
    network = copy.deepcopy(backbone)
    network.eval()
    _complete_norms(network)
    return network


def faster_run(backbone: paddle.nn.Layer, image_shape: tuple[int, int, int]) -> Optional[runtime.Run]:
    """Returns a function that embeds images as the network does now, but with the program that an export would hold.

    Paddle's inference library folds batch normalisations into convolutions, and keeps the layout of oneDNN from one
    layer to the next. Later changes of the network have no effect on the function.

    Args:
        backbone: A built-in network.
        image_shape: Shape of one image, (C, H, W).

    Returns:
        The function; see `runtime.load`. None where the network should embed by itself: on a GPU, with Paddle 2, with
        `PLSC_ONEDNN=0`, or if the program cannot be made or gives other embeddings.
    """
    if not parallel.on_cpu() or is_switched_off() or not HAS_GRADIENTS:
        return None
    images = np.random.default_rng(0).uniform(-1, 1, (_TRIED, *image_shape)).astype("float32")
    try:
        # The guard keeps the names of parameters that are made later.
        with tempfile.TemporaryDirectory(prefix="plsc-") as folder, paddle.utils.unique_name.guard():
            network = for_program(backbone)
            with utf8_path(Path(folder)) as place, discarded_output(1, 2):
                run = runtime.load_paddle(*save_program(network, place, image_shape))
                found = run(images)
        with paddle.no_grad():
            wanted = network(paddle.to_tensor(images)).numpy()
        apart = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    except Exception as problem:  # Paddle raises exceptions of many types.
        logger.debug("the network embeds by itself, because it cannot be made a program: %s", problem)
        return None
    if not apart <= _TOLERANCE:  # NaN too
        logger.debug("the network embeds by itself, because its program differs by %.1e", apart)
        return None
    return run


class _Named(paddle.nn.Layer):
    """A network whose `forward` has the first parameter `self`, which `paddle.jit` knows by that name only."""

    def __init__(self, network: paddle.nn.Layer) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Embeds a batch, [B, C, H, W] -> [B, D]."""
        return self.network(images)


def save_program(network: paddle.nn.Layer, folder: Path, image_shape: tuple[int, int, int]) -> list[Path]:
    """Writes the network in Paddle's format; returns the files with its program and its parameters.

    Paddle reports no error if the disk is full. The files then cannot be converted or run, or hold zeros.
    """
    spec = paddle.static.InputSpec([None, *image_shape], "float32", "images")
    if next(iter(inspect.signature(type(network).forward).parameters), "self") != "self":
        network = _Named(network)
    try:
        paddle.jit.save(network, str(folder / _NAME), input_spec=[spec])
    except Exception as problem:  # Paddle raises exceptions of many types for layers that it cannot translate.
        words = last_words(str(problem), folder)
        raise ConfigError(
            f"paddle.jit.save cannot save the network ({words}); change "
            "that part of its forward, and define its classes in a file"
        ) from problem
    files = [folder / f"{_NAME}.json", folder / f"{_NAME}.pdmodel"]
    return [next(filter(Path.exists, files), files[0]), folder / f"{_NAME}.pdiparams"]


def _complete_norms(network: paddle.nn.Layer) -> None:
    """Gives batch normalisations without scale or bias a scale of 1 or a bias of 0.

    Paddle 3's inference library needs both on a CPU.
    """
    for layer in network.sublayers(include_self=True):
        if isinstance(layer, paddle.nn.layer.norm._BatchNormBase):
            for name, value in (("weight", 1.0), ("bias", 0.0)):
                if getattr(layer, name) is None:
                    fill = paddle.ParamAttr(initializer=paddle.nn.initializer.Constant(value), trainable=False)
                    setattr(layer, name, layer.create_parameter([layer._num_features], attr=fill))
