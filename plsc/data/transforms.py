"""Decoding and augmentation of single images, and normalisation of batches."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from plsc.errors import DataError


@dataclass(frozen=True)
class Augmentation:
    """Random changes made to training images.

    ``mirror``: flip left-right with probability 1/2; ``rotate``: greatest angle in degrees;
    ``translate``: greatest shift as a fraction of the side.
    """

    mirror: bool = True
    rotate: float = 0.0
    translate: float = 0.0


def decode(data: bytes, image_shape: Sequence[int], where: str) -> np.ndarray:
    """Decode an encoded image to uint8 [H, W, C] for ``image_shape`` (C, H, W) with C 1 (grey) or 3 (RGB).

    An image of another size is resized (bilinear). ``where`` names the image in the DataError of a bad one.
    """
    mode = _mode(image_shape)
    try:
        with Image.open(io.BytesIO(data)) as image:
            converted = image.convert(mode)
    except Exception as error:  # Pillow's decoders raise many unrelated types for damaged files.
        raise DataError(
            f"{where}: cannot decode the image ({len(data)} bytes: {type(error).__name__}); "
            "replace the file or remove the sample"
        ) from error
    return _fit(converted, image_shape)


def decode_file(path: Path, image_shape: Sequence[int], where: str = "") -> np.ndarray:
    """Decode an image file: see `decode`. ``where`` is the path by default. Raises DataError for one that cannot be read, too."""
    where = where or str(path)
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise unreadable(where, problem) from None
    return decode(data, image_shape, where)


def unreadable(where: str, problem: OSError) -> DataError:
    """The error for an image file that cannot be read."""
    return DataError(f"{where}: cannot be read ({problem.strerror}); restore the file, or leave it out")


def from_pixels(pixels: np.ndarray, image_shape: Sequence[int], where: str) -> np.ndarray:
    """Bring an already decoded uint8 [h, w] or [h, w, 1 or 3] image to uint8 [H, W, C] of ``image_shape`` (C, H, W)."""
    mode = _mode(image_shape)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or pixels.size == 0 or not (pixels.ndim == 2 or pixels.shape[2:] == (3,)):
        raise DataError(f"{where}: {pixels.dtype} array of shape {list(pixels.shape)} is not an image; want uint8 HWC")
    return _fit(Image.fromarray(np.ascontiguousarray(pixels)).convert(mode), image_shape)


def _mode(image_shape: Sequence[int]) -> str:
    if len(image_shape) != 3 or image_shape[0] not in (1, 3):
        raise DataError(f"image_shape {tuple(image_shape)} cannot be read; give (C, H, W) with C 1 or 3")
    return "L" if image_shape[0] == 1 else "RGB"


def _fit(image: Image.Image, image_shape: Sequence[int]) -> np.ndarray:
    channels, height, width = image_shape
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(image, dtype=np.uint8).reshape(height, width, channels)


def augment(image: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Return a randomly changed uint8 [H, W, C] copy (or view) of the uint8 [H, W, C] ``image``."""
    if augmentation.mirror and rng.random() < 0.5:
        image = image[:, ::-1]
    if augmentation.rotate or augmentation.translate:
        image = _rotate_translate(image, augmentation, rng)
    return image


def _rotate_translate(image: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    height, width, channels = image.shape
    angle = math.radians(augmentation.rotate) * rng.uniform(-1, 1)
    shift_x = augmentation.translate * width * rng.uniform(-1, 1)
    shift_y = augmentation.translate * height * rng.uniform(-1, 1)
    cos, sin = math.cos(angle), math.sin(angle)
    centre_x, centre_y = width / 2, height / 2
    # Pillow wants the map from output to input pixels: undo the shift, then turn about the centre.
    from_x, from_y = centre_x + shift_x, centre_y + shift_y
    matrix = (
        cos,
        sin,
        centre_x - cos * from_x - sin * from_y,
        -sin,
        cos,
        centre_y + sin * from_x - cos * from_y,
    )
    # Black corners would be a strong edge that no real image has.
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    fill = tuple(int(value) for value in np.median(edge, axis=0))
    pixels = np.ascontiguousarray(image[:, :, 0] if channels == 1 else image)
    moved = Image.fromarray(pixels).transform(
        (width, height),
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BILINEAR,
        fillcolor=fill[0] if channels == 1 else fill,
    )
    return np.array(moved, dtype=np.uint8).reshape(height, width, channels)


def normalize(images: np.ndarray) -> np.ndarray:
    """Turn uint8 [B, H, W, C] into contiguous float32 [B, C, H, W] with values (x - 127.5) / 128."""
    result = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
    if result is images or np.shares_memory(result, images):  # float input that needed no copy
        result = result.copy()
    result -= 127.5
    result /= 128
    return result
