from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from plsc.data.transforms import decode, from_pixels, normalize, normalize_each
from plsc.errors import DataError


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_decode_keeps_pixels_and_channel_order() -> None:
    pixels = noise(6, 5, 3)
    result = decode(encode(pixels), (3, 6, 5), "x")
    assert result.dtype == np.uint8
    assert np.array_equal(result, pixels)


def test_decode_resizes_and_converts() -> None:
    assert decode(encode(noise(6, 5, 3)), (3, 8, 4), "x").shape == (8, 4, 3)
    assert decode(encode(noise(6, 5, 3)), (1, 8, 4), "x").shape == (8, 4, 1)
    grey = noise(6, 5)
    result = decode(encode(grey), (3, 6, 5), "x")
    assert np.array_equal(result, np.repeat(grey[:, :, None], 3, axis=2))
    assert decode(encode(noise(6, 5, 4)), (3, 6, 5), "x").shape == (6, 5, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_image(kind: str) -> None:
    data = encode(noise(64, 64, 3), kind)
    with pytest.raises(DataError, match=r"label\.txt:7: cannot decode"):
        decode(data[: len(data) // 2], (3, 64, 64), "label.txt:7")


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff"])
def test_undecodable_image(data: bytes) -> None:
    with pytest.raises(DataError, match=r"label\.txt:7"):
        decode(data, (3, 8, 8), "label.txt:7")


def test_image_shape_must_be_readable() -> None:
    with pytest.raises(DataError, match="image_shape"):
        decode(encode(noise(4, 4)), (2, 4, 4), "x")


def test_from_pixels() -> None:
    pixels = noise(4, 4, 3)
    assert np.array_equal(from_pixels(pixels, (3, 4, 4), "x"), pixels)
    assert from_pixels(noise(4, 4, 1), (3, 2, 2), "x").shape == (2, 2, 3)
    with pytest.raises(DataError, match="x: float64"):
        from_pixels(np.zeros((4, 4, 3)), (3, 4, 4), "x")


def test_normalize() -> None:
    images = noise(2, 4, 5, 3)
    result = normalize(images)
    assert result.dtype == np.float32
    assert result.flags["C_CONTIGUOUS"]
    assert result.shape == (2, 3, 4, 5)
    assert np.array_equal(result[1, 2, 3, 4], np.float32((float(images[1, 3, 4, 2]) - 127.5) / 128))
    floats = images[:, :, :, :1].astype(np.float32)
    normalize(floats)
    assert np.array_equal(floats, images[:, :, :, :1])


@pytest.mark.parametrize("count", [0, 1, 4, 6])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_each_gives_the_numbers_of_normalize_also_for_mirrored_views(channels: int, count: int) -> None:
    images = noise(count, 4, 5, channels)
    views = [image[:, ::-1] if number % 2 else image for number, image in enumerate(images)]
    result = np.full((count + 1, channels, 4, 5), 7, np.float32)
    normalize_each(iter(views), result)
    assert np.array_equal(result[:count], normalize(np.array(views).reshape(images.shape)))
    assert (result[count] == 7).all()


def test_scaling_gives_the_bits_of_a_division() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    wanted = (levels.astype(np.float32) - np.float32(127.5)) / np.float32(128)
    assert np.array_equal(normalize(levels), wanted.transpose(0, 3, 1, 2))
