"""Decodes and augments single images, and normalises batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from plsc.data.encoded_image import decode_image
from plsc.data.pixels import NEWEST, PixelRule
from plsc.errors import DataError
from plsc.machine.files import advice_on, open_regular


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training images.

    Attributes:
        mirror: Whether to flip the image left to right with probability 1/2.
        rotate: Largest angle, in degrees.
        translate: Largest shift, as a fraction of the side.
        chosen: Whether the user has chosen it, so that images of a reader are changed too.
    """

    mirror: bool = True
    rotate: float = 0.0
    translate: float = 0.0
    chosen: bool = field(default=False, compare=False, repr=False)

    @property
    def changes(self) -> bool:
        """Whether it changes any image."""
        return bool(self.mirror or self.rotate or self.translate)


def decode(data: bytes, image_shape: Sequence[int], where: str, rule: PixelRule = NEWEST) -> np.ndarray:
    """Decodes an encoded image, and resizes it if it has another size (bilinear).

    Args:
        data: An encoded image, such as the content of a JPEG file.
        image_shape: Shape of the result, (C, H, W) with C 1 (grey) or 3 (RGB).
        where: Where the image comes from, for the error message.
        rule: What the pixels of the file mean.

    Returns:
        uint8 [H, W, C].

    Raises:
        DataError: The image is damaged or too large, or `image_shape` has another number of channels.
    """
    return _fit(decode_image(data, _mode(image_shape), where, rule), image_shape)


def decode_file(path: Path, image_shape: Sequence[int], where: str = "", rule: PixelRule = NEWEST) -> np.ndarray:
    """Reads and decodes an image file; see `decode`.

    Args:
        path: The image file.
        image_shape: Shape of the result, (C, H, W).
        where: Where the image comes from, for the error message; by default the path.
        rule: What the pixels of the file mean.

    Raises:
        DataError: The file cannot be read or decoded.
    """
    where = where or str(path)
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as problem:
        raise unreadable(where, problem) from None
    return decode(data, image_shape, where, rule)


def unreadable(where: str, problem: OSError) -> DataError:
    """Returns the error for an image file that cannot be read."""
    advice = advice_on(problem, "restore the file, or leave it out")
    return DataError(f"{where}: cannot be read ({problem.strerror}); {advice}")


def from_pixels(pixels: np.ndarray, image_shape: Sequence[int], where: str) -> np.ndarray:
    """Converts decoded pixels to the channels and size of `image_shape`.

    Args:
        pixels: uint8 [h, w], [h, w, 1] or [h, w, 3].
        image_shape: Shape of the result, (C, H, W).
        where: Where the image comes from, for the error message.

    Returns:
        uint8 [H, W, C].

    Raises:
        DataError: The array is not an image.
    """
    mode = _mode(image_shape)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or pixels.size == 0 or not (pixels.ndim == 2 or pixels.shape[2:] == (3,)):
        raise DataError(f"{where}: {pixels.dtype} array of shape {list(pixels.shape)} is not an image; give uint8 HWC")
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
    """Returns a randomly changed copy or view of an image, uint8 [H, W, C] -> uint8 [H, W, C]."""
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
    # Pillow takes the map from output to input pixels, which undoes the shift and then turns about the centre.
    from_x, from_y = centre_x + shift_x, centre_y + shift_y
    matrix = (
        cos,
        sin,
        centre_x - cos * from_x - sin * from_y,
        -sin,
        cos,
        centre_y + sin * from_x - cos * from_y,
    )
    # The corners get the median colour of the edge: black would make a strong edge that no real image has.
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
    """Normalises pixels as (x - 127.5) / 128, uint8 [B, H, W, C] -> contiguous float32 [B, C, H, W]."""
    result = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
    if result is images or np.shares_memory(result, images):  # Float input needed no copy.
        result = result.copy()
    result -= 127.5
    result /= 128
    return result
