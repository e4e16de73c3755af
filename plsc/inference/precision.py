"""ONNX networks in float16 or int8, and how far an exported network's embeddings are from the trained one's."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import numpy as np

from plsc.data.collection import open_collection
from plsc.data.transforms import normalize
from plsc.errors import ConfigError

PRECISIONS = ("float32", "float16", "int8")
_MOST_IMAGES = 256  # for calibration
_RANDOM_IMAGES = 16
_BATCH = 16


def check_precision(format: str, precision: str, has_calibration: bool) -> None:
    """Refuses what cannot be made.

    Raises:
        ConfigError: an unknown precision, one the format's tools cannot make, or int8 without images.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    if format == "paddle" and precision != "float32":
        raise ConfigError(
            f"format 'paddle', precision {precision!r}: Paddle's tools make none that runs on a CPU; choose the format onnx"
        )
    if precision == "int8" and not has_calibration:
        raise ConfigError(
            "precision 'int8' needs calibration images, whose ranges it keeps: name a folder or a label file of a few hundred "
            "like those to embed"
        )


def images_for_check(calibration: Optional[Path], image_shape: tuple[int, int, int]) -> np.ndarray:
    """Normalised images [N, C, H, W] float32: up to 256, evenly drawn from a folder, a label file or base64 parts, or 16 of noise.

    Raises:
        DataError: there are no images, or one cannot be read.
    """
    if calibration is None:
        channels, height, width = image_shape
        noise = np.random.default_rng(0).integers(0, 256, (_RANDOM_IMAGES, height, width, channels), dtype=np.uint8)
        return normalize(noise)
    images = open_collection(calibration)
    drawn = np.linspace(0, images.num_images - 1, min(images.num_images, _MOST_IMAGES)).round().astype(int)
    return normalize(np.stack([images.pixels(index, image_shape) for index in drawn.tolist()]))


def reduce_precision(network: Path, precision: str, images: np.ndarray) -> None:
    """Rewrites an ONNX network in float16, or in int8 with the ranges that `images` [N, C, H, W] give; inputs stay float32."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with _quiet():
        # Folds batch normalisations, and knows the shapes; symbolic inference would need one more package for little.
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
    quantize_static(str(network), str(network), Batches(), per_channel=True, **types)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tools print, warn, and log by functions that would give the root logger a handler for good."""
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


def cosines(found: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    """`mean` and `lowest` cosine of the rows of two [N, D]; 1 where both are zero.

    Raises:
        ConfigError: `found` is not finite.
    """
    if not np.isfinite(found).all():
        raise ConfigError("the exported network gives embeddings that are not finite; export it in float32")
    found, wanted = found.astype("float64"), wanted.astype("float64")
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    each = np.where(lengths > 0, (found * wanted).sum(1) / np.where(lengths > 0, lengths, 1), (found == wanted).all(1))
    return {"mean": round(float(each.mean()), 6), "lowest": round(float(each.min()), 6)}
