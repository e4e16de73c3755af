"""Measures how far the embeddings of an exported network are from those of the trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import numpy as np

from plsc.data.collection import open_collection
from plsc.data.pixels import NEWEST, PixelRule
from plsc.data.transforms import normalize
from plsc.errors import ConfigError

_MOST_IMAGES = 256
_RANDOM_IMAGES = 16
# What the cosines of an export have to reach. In float32 only the order of additions differs, which moves a cosine by
# 1e-6 or less. float16 rounds to 2**-11: over 100 layers that adds up to some 1e-5, unless numbers overflow. int8
# rounds weights of 7 bits by up to 1/126 of the largest; single images with rare numbers lose more, hence the mean.
_BOUNDS = {"float32": ("lowest", 0.9999), "float16": ("lowest", 0.999), "int8": ("mean", 0.99)}


def images_for_check(
    calibration: Optional[Path], image_shape: tuple[int, int, int], rule: PixelRule = NEWEST
) -> np.ndarray:
    """Returns images to compare the networks on, normalised, [N, C, H, W] float32.

    Args:
        calibration: A folder, a label file or base64 parts, of which up to 256 images are used, evenly spaced. None
            gives 16 images of noise.
        image_shape: Shape of one image, (C, H, W).
        rule: What the pixels of image files mean.

    Raises:
        DataError: There are no images, or one cannot be read.
    """
    if calibration is None:
        channels, height, width = image_shape
        noise = np.random.default_rng(0).integers(0, 256, (_RANDOM_IMAGES, height, width, channels), dtype=np.uint8)
        return normalize(noise)
    images = open_collection(calibration)
    drawn = np.linspace(0, images.num_images - 1, min(images.num_images, _MOST_IMAGES)).round().astype(int)
    return normalize(np.stack([images.pixels(index, image_shape, rule) for index in drawn.tolist()]))


def cosines(found: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    """Returns the `mean` and the `lowest` cosine between the rows of two arrays [N, D]; 1 where both rows are zero.

    Raises:
        ConfigError: `found`, the embeddings of the exported network, are not finite or have another shape.
    """
    if found.shape != wanted.shape:
        raise ConfigError(
            f"the exported network gives embeddings {list(found.shape)} instead of {list(wanted.shape)}; the network "
            "must treat each image of a batch by itself"
        )
    if not np.isfinite(found).all():
        raise ConfigError(
            "the exported network gives embeddings that are not finite; export it in another format, or in float32"
        )
    found, wanted = found.astype("float64"), wanted.astype("float64")
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    each = np.where(lengths > 0, (found * wanted).sum(1) / np.where(lengths > 0, lengths, 1), (found == wanted).all(1))
    return {"mean": round(float(each.mean()), 6), "lowest": round(float(each.min()), 6)}


def disagreement(precision: str, found: dict[str, Any]) -> Optional[str]:
    """Returns what is wrong with the `cosines` of an export of that precision; None if they are good enough."""
    which, bound = _BOUNDS[precision]
    if found[which] >= bound:
        return None
    return f"the {which} cosine is {found[which]:.5f}, and {precision} needs at least {bound}"
