from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from plsc.data.encoded_image import decode_image, open_image
from plsc.data.plain_jpeg import decode_plain
from plsc.errors import DataError

MOST = 1 << 20


def jpeg(width: int = 37, height: int = 21, mode: str = "RGB", **options: Any) -> bytes:
    channels = {"L": (), "RGB": (3,), "CMYK": (4,)}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    file = io.BytesIO()
    Image.frombytes(mode, (width, height), pixels.tobytes()).save(file, "JPEG", **options)
    return file.getvalue()


def exif() -> Image.Exif:
    found = Image.Exif()
    found[274] = 6
    return found


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("L", {}),
        ("RGB", {"quality": 5, "subsampling": 2}),
        ("RGB", {"quality": 100, "subsampling": 0}),
        ("RGB", {"progressive": True, "optimize": True}),
        ("RGB", {"comment": b"a comment"}),
        ("RGB", {"width": 400, "height": 300, "quality": 95}),  # Pillow reads more than 64 kB in pieces.
        ("L", {"width": 1, "height": 1}),
    ],
)
def test_plain_files_give_the_pixels_of_pillow(mode: str, options: dict[str, Any]) -> None:
    data = jpeg(mode=mode, **options)
    found = decode_plain(data, mode, MOST)
    assert found is not None and found.mode == mode
    assert np.array_equal(np.asarray(found), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (jpeg(exif=exif()), "RGB"),
        (jpeg(icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()), "RGB"),
        (jpeg(mode="CMYK"), "RGB"),
        (jpeg(mode="L"), "RGB"),
        (jpeg(), "L"),
        (jpeg(width=1025, height=1024), "RGB"),
        (b"", "RGB"),
        (b"\x89PNG\r\n\x1a\n", "RGB"),
        (jpeg().replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"), "RGB"),
    ],
    ids=["exif", "profile", "cmyk", "grey", "colour", "large", "empty", "png", "12 bits"],
)
def test_other_files_are_left_to_pillow(data: bytes, mode: str) -> None:
    assert decode_plain(data, mode, MOST) is None


def test_the_bound_of_pillow_counts_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 37 * 21 - 1)
    assert decode_plain(jpeg(), "RGB", MOST) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode_plain(jpeg(), "RGB", MOST) is not None


def test_a_file_that_is_cut_anywhere_is_an_error_as_before() -> None:
    data = jpeg()
    for length in (*range(0, 700, 7), len(data) // 2, len(data) - 2):
        assert decode_plain(data[:length], "RGB", MOST) is None
        with pytest.raises(DataError, match="here: cannot decode the image"):
            decode_image(data[:length], "RGB", "here")


def test_what_pillow_refuses_or_reads_otherwise_is_never_accepted() -> None:
    data, rng, decoded = jpeg(), np.random.default_rng(0), 0
    for _ in range(500):
        changed = bytearray(data)
        changed[rng.integers(2, 700)] = rng.integers(256)
        found = decode_plain(bytes(changed), "RGB", MOST)
        if found is not None:
            decoded += 1
            with open_image(bytes(changed)) as image:
                assert np.array_equal(np.asarray(found), np.asarray(image))
    assert decoded
