"""Measures how far the embeddings of an exported network are from those of the trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import numpy as np

from plsc.data.collection import open_collection
from plsc.data.transforms import normalize
from plsc.errors import ConfigError

_MOST_IMAGES = 256
_RANDOM_IMAGES = 16


def images_for_check(calibration: Optional[Path], image_shape: tuple[int, int, int]) -> np.ndarray:
    """Returns images to compare the networks on, normalised, [N, C, H, W] float32.

    Args:
        calibration: A folder, a label file or base64 parts, of which up to 256 images are used, evenly spaced. None
            gives 16 images of noise.
        image_shape: Shape of one image, (C, H, W).

    Raises:
        DataError: There are no images, or one cannot be read.
    """
    if calibration is None:
        channels, height, width = image_shape
        noise = np.random.default_rng(0).integers(0, 256, (_RANDOM_IMAGES, height, width, channels), dtype=np.uint8)
        return normalize(noise)
    images = open_collection(calibration)
    drawn = np.linspace(0, images.num_images - 1, min(images.num_images, _MOST_IMAGES)).round().astype(int)
    return normalize(np.stack([images.pixels(index, image_shape) for index in drawn.tolist()]))


def cosines(found: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    """Returns the `mean` and the `lowest` cosine between the rows of two arrays [N, D]; 1 where both rows are zero.

    Raises:
        ConfigError: `found`, the embeddings of the exported network, are not finite.
    """
    if not np.isfinite(found).all():
        raise ConfigError("the exported network gives embeddings that are not finite; export it in float32")
    found, wanted = found.astype("float64"), wanted.astype("float64")
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    each = np.where(lengths > 0, (found * wanted).sum(1) / np.where(lengths > 0, lengths, 1), (found == wanted).all(1))
    return {"mean": round(float(each.mean()), 6), "lowest": round(float(each.min()), 6)}
