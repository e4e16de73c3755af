"""Decides what the pixels of an image mean: depth, orientation, transparency, colours. docs/pixels.md has the table."""

from __future__ import annotations

import functools
import io
import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
from PIL import Image, ImageChops

from plsc.errors import ConfigError
from plsc.machine.json_files import as_integer, as_integers, as_truth

PILLOW_RULE = 1  # Pillow's `convert` alone: the rule of runs whose records name none
NEWEST_RULE = 2
WHITE = (255, 255, 255)
MOST_PIXELS = 8192 * 8192

_PLAIN = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")  # modes without alpha that `convert` handles correctly
_MARKS = ("exif", "icc_profile", "transparency")  # entries of `image.info` that change what the pixels mean
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 274, 258, 262, 339  # tags of TIFF, which EXIF uses too
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "LAB"}
_SAME = 2  # A profile that moves no colour further than this counts as sRGB.
_EXACT = 0x0100  # cmsFLAGS_NOOPTIMIZE of LittleCMS, whose fast way is up to 10 levels off in dark greys.
_ROWS = 256  # Rows that are scaled at a time, which bounds the memory.

logger = logging.getLogger("plsc")


@dataclass(frozen=True)
class PixelRule:
    """How image files become pixels.

    Attributes:
        number: 2, or 1 for the rule of earlier versions, which ignores orientation, transparency and colour profiles.
        ground: Colour behind transparent pixels, (R, G, B); rule 1 does not use it.
        most_pixels: Most pixels that an image may have.

    Raises:
        ConfigError: There is no rule of that number.
    """

    number: int = NEWEST_RULE
    ground: tuple[int, int, int] = WHITE
    most_pixels: int = MOST_PIXELS

    def __post_init__(self) -> None:
        if self.number not in (PILLOW_RULE, NEWEST_RULE):
            raise ConfigError(f"pixel rule {self.number!r}: expected {PILLOW_RULE} or {NEWEST_RULE}")


NEWEST = PixelRule()


def _as_rule(value: Any) -> int:
    if as_integer(value, 1) > NEWEST_RULE:
        raise ValueError(f"pixel rule {value} is unknown to this plsc; update plsc")
    return int(value)


def _as_colour(value: Any) -> list[int]:
    if max(as_integers(value, 0, 3)) > 255:
        raise ValueError(f"{value} is not a colour")
    return list(value)


# What checkpoints and exports record about the images of a network, next to their shape, and what it must be.
IMAGE_RECORD: dict[str, Callable[[Any], Any]] = {
    "pixel_rule": _as_rule,
    "image_ground": _as_colour,
    "mirror": as_truth,
}


def interpret(image: Image.Image, mode: str, rule: PixelRule = NEWEST, of_file: bool = True) -> Image.Image:
    """Returns an image as a viewer shows it.

    Args:
        image: An image, which is loaded if necessary. Of an animation it is the first frame.
        mode: 'L' or 'RGB'.
        rule: What the pixels mean.
        of_file: Whether the image is as its file holds it. Otherwise its orientation and its colour profile do not
            count, because other code may have used them already.

    Returns:
        An image of that mode; it may be `image` itself.
    """
    if rule.number == PILLOW_RULE:
        return image.convert(mode)
    image.load()  # Some formats have the marks behind the pixels.
    marks = [name for name in _MARKS if name in image.info]
    if image.mode in _PLAIN and not marks and not _has_palette_alpha(image):
        return _as(image, mode)
    colours, alpha = _without_alpha(image)
    if of_file and image.info.get("icc_profile"):
        colours = _in_srgb(colours, image.info["icc_profile"])
    if colours.mode == "LAB":
        colours = _from_lab(colours)
    if alpha is not None:
        colours = _as(colours, "RGB")
        colours.paste(rule.ground, mask=ImageChops.invert(alpha))  # `colours` is a copy, which `_without_alpha` made.
    turn = _TURNS.get(_orientation(image.info.get("exif"))) if of_file else None
    return _as(colours if turn is None else colours.transpose(turn), mode)


def _as(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def _has_palette_alpha(image: Image.Image) -> bool:
    return image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")


def _without_alpha(image: Image.Image) -> tuple[Image.Image, Optional[Image.Image]]:
    """Returns the colours of an image, with 8 bits, and its alpha channel 'L' if it has one."""
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        return _with_8_bits(image)
    if mode in ("La", "RGBa"):  # The colours are multiplied by alpha.
        image = image.convert(mode.upper())
    elif mode in ("1", "L") and "transparency" in image.info:
        image = image.convert("LA")
    elif mode == "PA" or _has_palette_alpha(image) or (mode in ("P", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA")
    if image.mode in ("LA", "RGBA"):
        return image.convert(image.mode[:-1]), image.getchannel("A")
    return image, None


def _with_8_bits(image: Image.Image) -> tuple[Image.Image, Optional[Image.Image]]:
    """Scales a grey image of 16 or 32 bits to 8; returns it and, if one of its greys is transparent, its alpha."""
    values, tags = np.array(image), getattr(image, "tag_v2", {})
    if image.mode == "F":
        values[~np.isfinite(values)] = 0
        white = _full_scale(float(values.max()), (1, 255, 65535))
    elif image.mode == "I":
        if tags.get(_SAMPLE_FORMAT, (1,))[0] == 1 and image.format == "TIFF":  # Pillow reads unsigned as signed.
            values = values.view(np.uint32)
        known = (65535,) if image.format in ("PNG", "PPM") else (255, 65535)  # What Pillow scales these formats to.
        white = _full_scale(float(values.max()), known)
    else:
        white = 2 ** min(16, tags.get(_BITS, (16,))[0]) - 1
        if tags.get(_PHOTOMETRIC) == 0:  # White is zero, which Pillow heeds for 8 bits only.
            values = (white - np.minimum(values, white)).astype(np.uint16)
    key = image.info.get("transparency")
    alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)) if isinstance(key, int) else None
    return Image.fromarray(_scaled(values, white)), alpha


def _full_scale(largest: float, usual: tuple[int, ...]) -> float:
    """Returns which value is white: the first of the usual ones that is not exceeded, or else the largest."""
    return next((float(white) for white in usual if largest <= white), largest)


def _scaled(values: np.ndarray, white: float) -> np.ndarray:
    """Scales [h, w] from 0 ... white to uint8 0 ... 255; what lies below 0 is black."""
    result = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), _ROWS):
        block = values[row : row + _ROWS].astype(np.float64)
        result[row : row + _ROWS] = np.clip(np.floor(block * (255 / white) + 0.5), 0, 255)
    return result


def _orientation(exif: Any) -> int:
    """Returns the orientation that EXIF data names, 1 to 8; 1 if it names none or is damaged."""
    if not isinstance(exif, bytes):
        return 1
    exif = exif[6:] if exif.startswith(b"Exif\0\0") else exif
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            if struct.unpack_from(f"{order}H", exif, entry)[0] == _ORIENTATION:
                return int(struct.unpack_from(f"{order}H", exif, entry + 8)[0])
    except struct.error:
        pass
    return 1


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Returns an image with the colours that its profile says, in sRGB; a profile that cannot be used is ignored."""
    mode = image.mode if image.mode in _SPACES else "RGB"
    transform = _transform(profile, mode)
    return image if transform is None else transform.apply(_as(image, mode))


def _from_lab(image: Image.Image) -> Image.Image:
    transform = _lab_transform()
    return image.convert("RGB") if transform is None else transform.apply(image)


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> Any:
    """Returns the transform of a profile to sRGB; None if it changes nothing, or does not fit the mode."""
    cms = _color_management()
    if cms is None:
        return None
    try:
        source = cms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        flags = _EXACT if mode == "L" else 0
        transform = cms.buildTransform(source, cms.createProfile("sRGB"), mode, "RGB", flags=flags)
    except (cms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode in ("L", "RGB"):
        levels = np.linspace(0, 255, 16).round().astype(np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(64, 64, 3)
        tried = Image.fromarray(colours[..., 0] if mode == "L" else colours)
        moved = np.asarray(transform.apply(tried), np.int16) - np.asarray(tried.convert("RGB"), np.int16)
        if np.abs(moved).max() <= _SAME:
            return None
    return transform


@functools.lru_cache(maxsize=1)
def _lab_transform() -> Any:
    cms = _color_management()
    if cms is None:
        return None
    return cms.buildTransform(cms.createProfile("LAB"), cms.createProfile("sRGB"), "LAB", "RGB")


@functools.lru_cache(maxsize=1)
def _color_management() -> Any:
    """Returns `PIL.ImageCms`; None, with a warning, if Pillow was built without LittleCMS."""
    try:
        from PIL import ImageCms

        ImageCms.createProfile("sRGB")
    except ImportError:
        logger.warning("Pillow has no LittleCMS here, so colour profiles of images are ignored; install Pillow's wheel")
        return None
    return ImageCms
