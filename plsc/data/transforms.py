"""Decodes single images, and normalises batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from plsc.data.encoded_image import Where, decode_image
from plsc.data.pixels import NEWEST, PixelRule
from plsc.errors import DataError
from plsc.machine.files import advice_on
from plsc.machine.mounts import read_regular

_SCALED_TOGETHER = 4  # images


def decode(data: bytes, image_shape: Sequence[int], where: Where, rule: PixelRule = NEWEST) -> np.ndarray:
    """Decodes an encoded image, and resizes it if it has another size (bilinear).

    Args:
        data: An encoded image, such as the content of a JPEG file.
        image_shape: Shape of the result, (C, H, W) with C 1 (grey) or 3 (RGB).
        where: Where the image comes from, for the error message; or a function that finds it out, if that takes long.
        rule: What the pixels of the file mean.

    Returns:
        uint8 [H, W, C], which cannot be written to.

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
        data = read_regular(path)
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
    return np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, channels)


def normalize(images: np.ndarray) -> np.ndarray:
    """Normalises pixels as (x - 127.5) / 128, uint8 [B, H, W, C] -> contiguous float32 [B, C, H, W]."""
    result = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
    if result is images or np.shares_memory(result, images):  # Float input needed no copy.
        result = result.copy()
    _scale(result)
    return result


def normalize_each(images: Iterable[np.ndarray], result: np.ndarray) -> None:
    """Writes what `normalize` makes of single images, uint8 [H, W, C], into `result`, float32 [B, C, H, W].

    A mirrored view takes no longer than other images. Rows for which no image comes are left as they are.
    """
    # Each operation of NumPy gives Python's lock away, and may have to wait for it afterwards. So several images are
    # scaled together, but no more than a processor's cache holds. The powers of two lose no digit.
    begun = end = 0
    for end, image in enumerate(images, 1):
        result[end - 1] = image.transpose(2, 0, 1)
        if end - begun == _SCALED_TOGETHER:
            _scale(result[begun:end])
            begun = end
    _scale(result[begun:end])


def _scale(images: np.ndarray) -> None:
    images -= 127.5
    images *= 1 / 128
