"""Rewrites ONNX networks in float16 or int8."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import numpy as np

from plsc.errors import ConfigError

PRECISIONS = ("float32", "float16", "int8")
_BATCH = 16


def check_precision(format: str, precision: str, has_calibration: bool) -> None:
    """Refuses a precision that cannot be made.

    Raises:
        ConfigError: The precision is unknown, or the tools of the format cannot make it, or int8 lacks images.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    if format == "paddle" and precision != "float32":
        raise ConfigError(
            f"format 'paddle', precision {precision!r}: Paddle's tools make no such network that runs on a CPU; choose "
            "the format onnx"
        )
    if precision == "int8" and not has_calibration:
        raise ConfigError(
            "precision 'int8' needs calibration images, which give the ranges of its numbers: name a folder or a label "
            "file with a few hundred images like those to embed"
        )


def reduce_precision(network: Path, precision: str, images: np.ndarray) -> None:
    """Rewrites an ONNX network in place; its input and output stay float32.

    Args:
        network: The ONNX file.
        precision: 'float16' or 'int8'.
        images: Normalised images [N, C, H, W], on which int8 measures the ranges of numbers.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with _quiet():
        # This folds batch normalisations and infers shapes. Symbolic inference would gain little, and needs another
        # package.
        quant_pre_process(str(network), str(network), skip_symbolic_shape=True)
        (_to_float16 if precision == "float16" else _to_int8)(network, images)


def _to_float16(network: Path, images: np.ndarray) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(str(network)), keep_io_types=True), str(network))


def _to_int8(network: Path, images: np.ndarray) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter([images[first : first + _BATCH] for first in range(0, len(images), _BATCH)])

        def get_next(self) -> Optional[dict[str, np.ndarray]]:
            batch = next(self._batches, None)
            return None if batch is None else {"images": batch}

    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    # x86 CPUs without VNNI add two products of bytes in 16 bits, which overflow unless weights have only 7 bits. An
    # export may be run on any CPU. The lost bit moves the mean cosine by 1e-4 where nothing overflows.
    quantize_static(str(network), str(network), Batches(), per_channel=True, reduce_range=True, **types)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the tools, which print, warn, and log through functions that would add a handler to the root logger."""
    root, handler = logging.getLogger(), logging.NullHandler()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
