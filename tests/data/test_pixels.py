from __future__ import annotations

import io
import struct
import zlib
from typing import Any, Callable

import numpy as np
import pytest
from made_images import ADOBE_RGB, encode, png, profile
from PIL import Image, ImageCms

from plsc.data import pixels
from plsc.data.pixels import PixelRule
from plsc.data.transforms import decode

H, W = 6, 8
RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (H, W), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (H, W), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (H, W), dtype=np.uint16)
REAL = RNG.random((H, W)).astype(np.float32)
INK = RNG.integers(0, 256, (H, W, 4), dtype=np.uint8)  # CMYK
PALETTE, PALETTE_ALPHA = RNG.integers(0, 256, (16, 3), dtype=np.uint8), RNG.integers(0, 256, 16, dtype=np.uint8)
PLACES = RNG.integers(0, 16, (H, W), dtype=np.uint8)
LAB = np.stack([RNG.integers(60, 220, (H, W)), *RNG.integers(-10, 11, (2, H, W))], -1)
OPAQUE = np.full((H, W), 255, np.uint8)
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def level(share: np.ndarray) -> np.ndarray:
    """Returns the nearest of the 256 levels of numbers from 0 to 1."""
    return np.floor(share * 255 + 0.5)


def over(colours: np.ndarray, alpha: np.ndarray, ground: tuple[int, ...] = (255, 255, 255)) -> np.ndarray:
    colours = colours if colours.ndim == 3 else colours[..., None]
    share = alpha[..., None] / 255
    return np.floor(colours * share + np.array(ground) * (1 - share) + 0.5)


def srgb(xyz: np.ndarray) -> np.ndarray:
    to_xyz = np.array(
        [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
    )
    return curved(np.clip(xyz @ np.linalg.inv(to_xyz).T, 0, 1))


def curved(linear: np.ndarray) -> np.ndarray:
    return level(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055))


def of_lab(lab: np.ndarray) -> np.ndarray:
    y = (lab[..., 0] / 255 * 100 + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    return srgb(np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * np.array([0.9642, 1, 0.8249]))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def retagged(tiff: bytes, tag: int, value: int) -> bytes:
    place = tiff.index(struct.pack("<HHI", tag, 3, 1)) + 8
    return tiff[:place] + struct.pack("<H", value) + tiff[place + 2 :]


def paletted(places: np.ndarray) -> Image.Image:
    image = Image.frombytes("P", (W, H), places.tobytes())
    image.putpalette(PALETTE.tobytes())
    return image


def marked(values: np.ndarray, mark: Any) -> np.ndarray:
    values = values.copy()
    values[0] = mark
    return values


LARGE = (DEEP.astype(np.uint32) << 16) | 5
FIRST, SECOND = Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())
PAGES: dict[str, Any] = {"save_all": True, "append_images": [SECOND]}
MADE = decode(encode(np.kron(RGB, np.ones((8, 8, 1), np.uint8)), "JPEG"), (3, 8 * H, 8 * W), "")
ADOBE = srgb((RGB / 255) ** (563 / 256) @ np.array(ADOBE_RGB))
SWAPPED = (ADOBE_RGB[1], ADOBE_RGB[2], ADOBE_RGB[0])
CHANNELS_SWAPPED = "PNG, a profile that swaps the channels"
PLTE = (b"PLTE", PALETTE.tobytes())
# What a viewer shows, computed without Pillow: {kind: (file, pixels [h, w] or [h, w, 3])}.
KINDS: dict[str, tuple[bytes, np.ndarray]] = {
    "PNG, grey of 16 bits": (encode(DEEP), level(DEEP / 65535)),
    "TIFF, grey of 16 bits": (encode(DEEP, "TIFF"), level(DEEP / 65535)),
    "TIFF, grey of 16 bits, Motorola": (
        encode(Image.frombytes("I;16B", (W, H), DEEP.astype(">u2").tobytes()), "TIFF"),
        level(DEEP / 65535),
    ),
    "TIFF, grey of 16 bits, white is zero": (retagged(encode(DEEP, "TIFF"), 262, 0), level(1 - DEEP / 65535)),
    "PGM of 16 bits": (b"P5 8 6 65535\n" + DEEP.astype(">u2").tobytes(), level(DEEP / 65535)),
    "PGM of 16 bits, dark": (b"P5 8 6 65535\n" + (DEEP >> 9).astype(">u2").tobytes(), level((DEEP >> 9) / 65535)),
    "PGM of 12 bits": (b"P5 8 6 4095\n" + (DEEP >> 4).astype(">u2").tobytes(), level((DEEP >> 4) / 4095)),
    "TIFF, integers up to 255": (encode(GREY.astype(np.int32), "TIFF"), GREY),
    "TIFF, integers up to 65535": (encode(DEEP.astype(np.int32), "TIFF"), level(DEEP / 65535)),
    "TIFF, unsigned integers": (
        retagged(encode(LARGE.view(np.int32), "TIFF"), 339, 1),
        level(LARGE / float(LARGE.max())),
    ),
    "TIFF, floats up to 1": (encode(REAL, "TIFF"), level(REAL.astype(float))),
    "TIFF, floats up to 255": (encode(GREY.astype(np.float32), "TIFF"), GREY),
    "TIFF, floats up to 65535": (encode(DEEP.astype(np.float32), "TIFF"), level(DEEP / 65535)),
    "TIFF, floats with NaN": (encode(marked(REAL, np.nan), "TIFF"), level(marked(REAL, 0).astype(float))),
    "PFM": (b"Pf\n8 6\n-1.0\n" + REAL[::-1].astype("<f4").tobytes(), level(REAL.astype(float))),
    **{
        f"JPEG, orientation {n}": (
            encode(np.kron(RGB, np.ones((8, 8, 1), np.uint8)), "JPEG", exif=exif(n)),
            turn(MADE),
        )
        for n, turn in TURNS.items()
    },
    "PNG, orientation 6": (encode(RGB, exif=exif(6)), TURNS[6](RGB)),
    "WebP, orientation 6": (encode(RGB, "WEBP", lossless=True, exif=exif(6)), TURNS[6](RGB)),
    "TIFF, orientation 6": (encode(RGB, "TIFF", tiffinfo={274: 6}), TURNS[6](RGB)),
    "JPEG, broken EXIF": (encode(RGB, "JPEG", exif=b"Exif\0\0II*\0\xff"), decode(encode(RGB, "JPEG"), (3, H, W), "")),
    "PNG, RGBA": (encode(np.dstack([RGB, ALPHA])), over(RGB, ALPHA)),
    "PNG, colour under alpha 0": (encode(np.dstack([RGB, 0 * ALPHA])), over(RGB, 0 * ALPHA)),
    "PNG, RGBA of 16 bits": (
        png(np.dstack([DEEP, DEEP, DEEP, ALPHA * np.uint16(257)]), 6),
        over(np.repeat((DEEP >> 8)[..., None], 3, -1), ALPHA),
    ),
    "PNG, grey with alpha": (encode(np.dstack([GREY, ALPHA])), over(GREY, ALPHA)),
    "WebP, RGBA": (encode(np.dstack([RGB, ALPHA]), "WEBP", lossless=True, exact=True), over(RGB, ALPHA)),
    "TIFF, RGBA": (encode(np.dstack([RGB, ALPHA]), "TIFF"), over(RGB, ALPHA)),
    "PNG, a transparent grey": (
        png(marked(GREY, 77), 0, (b"tRNS", struct.pack(">H", 77))),
        over(marked(GREY, 77), np.where(marked(GREY, 77) == 77, 0, 255)),
    ),
    "PNG, a transparent grey of 16 bits": (
        png(marked(DEEP, 7777), 0, (b"tRNS", struct.pack(">H", 7777))),
        over(level(marked(DEEP, 7777) / 65535), np.where(marked(DEEP, 7777) == 7777, 0, 255)),
    ),
    "PNG, a transparent colour": (
        png(marked(RGB, (1, 2, 3)), 2, (b"tRNS", struct.pack(">HHH", 1, 2, 3))),
        over(RGB, np.where(np.arange(H)[:, None] == 0, 0, OPAQUE)),
    ),
    "PNG, palette": (png(PLACES, 3, PLTE), PALETTE[PLACES]),
    "PNG, palette with alpha": (
        png(PLACES, 3, PLTE, (b"tRNS", PALETTE_ALPHA.tobytes())),
        over(PALETTE[PLACES], PALETTE_ALPHA[PLACES]),
    ),
    "GIF": (encode(paletted(PLACES), "GIF"), PALETTE[PLACES]),
    "GIF, a transparent colour": (
        encode(paletted(marked(PLACES, 9)), "GIF", transparency=9),
        over(PALETTE[PLACES], np.where(marked(PLACES, 9) == 9, 0, 255)),
    ),
    "GIF, animated": (
        encode(paletted(PLACES), "GIF", save_all=True, append_images=[paletted(15 - PLACES)]),
        PALETTE[PLACES],
    ),
    "WebP, animated": (encode(FIRST, "WEBP", lossless=True, **PAGES), RGB),
    "PNG, animated": (encode(FIRST, **PAGES), RGB),
    "TIFF, two pages": (encode(FIRST, "TIFF", **PAGES), RGB),
    "PNG, 1 bit": (encode(GREY > 127), 255 * (GREY > 127)),
    "TIFF, fax": (encode(Image.fromarray(GREY > 127), "TIFF", compression="group4"), 255 * (GREY > 127)),
    "TIFF, CMYK": (
        encode(Image.frombytes("CMYK", (W, H), INK.tobytes()), "TIFF"),
        level((1 - INK[..., :3] / 255) * (1 - INK[..., 3:] / 255)),
    ),
    "JPEG, CMYK of Adobe": (
        encode(Image.new("CMYK", (16, 16), (200, 30, 90, 20)), "JPEG", quality=100),
        np.full((16, 16, 3), level((1 - np.array([200, 30, 90]) / 255) * (1 - 20 / 255))),
    ),
    "TIFF, LAB": (
        encode(Image.frombytes("LAB", (W, H), LAB.astype(np.uint8).tobytes()), "TIFF"),
        of_lab(LAB),
    ),
    "PNG, Adobe RGB": (encode(RGB, icc_profile=profile(b"RGB ", 563 / 256, ADOBE_RGB)), ADOBE),
    "PNG, RGBA in Adobe RGB": (
        encode(np.dstack([RGB, ALPHA]), icc_profile=profile(b"RGB ", 563 / 256, ADOBE_RGB)),
        over(ADOBE, ALPHA),
    ),
    "PNG, palette in Adobe RGB": (
        encode(paletted(PLACES), icc_profile=profile(b"RGB ", 563 / 256, ADOBE_RGB)),
        srgb((PALETTE / 255) ** (563 / 256) @ np.array(ADOBE_RGB))[PLACES],
    ),
    CHANNELS_SWAPPED: (
        encode(RGB, icc_profile=profile(b"RGB ", 563 / 256, SWAPPED)),
        srgb((RGB / 255) ** (563 / 256) @ np.array(SWAPPED)),
    ),
    "PNG, a linear grey profile": (encode(GREY, icc_profile=profile(b"GRAY", 1)), curved(GREY / 255)),
    "PNG, a profile of another kind": (encode(RGB, icc_profile=profile(b"GRAY", 1)), RGB),
    "PNG, a broken profile": (encode(RGB, icc_profile=b"broken" * 99), RGB),
    "PNG, long text": (png(RGB, 2, (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000)))), RGB),
}
INEXACT = {
    "TIFF, LAB": 2,
    "PNG, Adobe RGB": 1,
    "PNG, RGBA in Adobe RGB": 1,
    "PNG, palette in Adobe RGB": 1,
    CHANNELS_SWAPPED: 1,
}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PLAIN = {
    "JPEG": encode(RGB, "JPEG"),
    "JPEG, grey": encode(GREY, "JPEG"),
    "JPEG, upright, sRGB": encode(RGB, "JPEG", exif=exif(1), icc_profile=SRGB),
    "PNG": encode(RGB),
    "PNG, grey": encode(GREY),
    "PNG, sRGB": encode(RGB, icc_profile=SRGB),
    "PNG, palette, sRGB": encode(paletted(PLACES), icc_profile=SRGB),
    "PNG, opaque": encode(np.dstack([RGB, OPAQUE])),
    "PNG, palette": png(PLACES, 3, PLTE),
    "PNG, 1 bit": encode(GREY > 127),
    "BMP": encode(RGB, "BMP"),
    "GIF": encode(paletted(PLACES), "GIF"),
    "WebP": encode(RGB, "WEBP"),
    "TIFF, CMYK": encode(Image.frombytes("CMYK", (W, H), INK.tobytes()), "TIFF"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_sees_what_a_viewer_shows(kind: str) -> None:
    data, shown = KINDS[kind]
    shown = np.broadcast_to(shown if shown.ndim == 3 else shown[..., None], (*shown.shape[:2], 3))
    difference = np.abs(decode(data, (3, *shown.shape[:2]), kind).astype(float) - shown)
    assert difference.max() <= INEXACT.get(kind, 0)
    grey = np.floor((shown @ np.array([19595, 38470, 7471]) + 0x8000) / 65536)  # the weights of ITU-R 601
    difference = np.abs(decode(data, (1, *shown.shape[:2]), kind)[..., 0] - grey)
    assert difference.max() <= INEXACT.get(kind, 0)


@pytest.mark.parametrize("kind", PLAIN)
def test_both_rules_give_plain_files_the_pixels_of_pillow(kind: str) -> None:
    for shape, mode in (((3, H, W), "RGB"), ((1, H, W), "L"), ((3, 5, 5), "RGB")):
        with Image.open(io.BytesIO(PLAIN[kind])) as image:
            expected = image.convert(mode)
        if shape[1:] != (H, W):
            expected = expected.resize((5, 5), Image.Resampling.BILINEAR)
        for rule in (PixelRule(1), PixelRule(2, (0, 0, 0))):
            found = decode(PLAIN[kind], shape, kind, rule)
            assert np.array_equal(found, np.asarray(expected).reshape(found.shape))


def test_the_first_rule_is_that_of_earlier_versions() -> None:
    for kind in ("PNG, grey of 16 bits", "JPEG, orientation 6", "PNG, RGBA", "PNG, Adobe RGB"):
        data = KINDS[kind][0]
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(image.convert("RGB"))
        assert np.array_equal(decode(data, (3, *expected.shape[:2]), kind, PixelRule(1)), expected)


@pytest.mark.parametrize("ground", [(0, 0, 0), (10, 200, 30)])
def test_transparent_pixels_show_the_ground(ground: tuple[int, int, int]) -> None:
    found = decode(encode(np.dstack([RGB, ALPHA])), (3, H, W), "x", PixelRule(2, ground))
    assert np.array_equal(found, over(RGB, ALPHA, ground))


def test_modes_that_no_file_has() -> None:
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
    palette = paletted(PLACES)
    palette.putpalette(np.column_stack([PALETTE, PALETTE_ALPHA]).tobytes(), "RGBA")
    assert np.array_equal(pixels.interpret(palette, "RGB"), over(PALETTE[PLACES], PALETTE_ALPHA[PLACES]))
    multiplied = np.asarray(pixels.interpret(rgba.convert("RGBa"), "RGB"), float) - over(RGB, ALPHA)
    assert np.abs(multiplied).max() <= 1
    for mode in ("HSV", "YCbCr"):
        image = FIRST.convert(mode)
        assert np.array_equal(pixels.interpret(image, "RGB"), image.convert("RGB"))


def test_an_image_that_pillow_has_turned_is_not_turned_again() -> None:
    with Image.open(io.BytesIO(KINDS["PNG, orientation 6"][0])) as image:
        image.load()
        for one, shown in ((image, TURNS[6](RGB)), (image.copy(), RGB)):
            found = pixels.interpret(one, "RGB", of_file=one is image)
            assert np.array_equal(found, shown)
