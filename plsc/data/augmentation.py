"""Changes training images at random: their places, colours, sharpness and parts."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

_BEST_QUALITY = 95  # of a JPEG; Pillow advises against more
_SMALLEST_ERASED = 0.02  # share of the image
_FILTERS = (
    Image.Resampling.NEAREST,
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


class Effect(NamedTuple):
    """How often an image gets one of the `EFFECTS`.

    Attributes:
        probability: Share of the images that get it.
        strength: How strong it may become; `Kind` says what the number means.
    """

    probability: float
    strength: float


@dataclass(frozen=True)
class Kind:
    """One of the `EFFECTS`.

    Attributes:
        strength: Strength unless the user gives another.
        low: A strength must be above.
        high: Largest strength.
        meaning: What the strength is.
        change: Returns the changed image, (uint8 [H, W, C], strength, generator) -> uint8 [H, W, C].
    """

    strength: float
    low: float
    high: float
    meaning: str
    change: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def augment(image: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Returns a randomly changed copy or view of an image, uint8 [H, W, C] -> uint8 [H, W, C]."""
    if augmentation.mirror and rng.random() < 0.5:
        image = image[:, ::-1]
    if augmentation.rotate or augmentation.translate:
        image = _rotate_translate(image, augmentation, rng)
    for name, effect in augmentation.effects:
        if rng.random() < effect.probability:
            image = EFFECTS[name].change(image, effect.strength, rng)
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


def _as_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))


def _as_array(image: Image.Image) -> np.ndarray:
    pixels = np.array(image, dtype=np.uint8)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _sides(height: int, width: int, share: float, ratio: float) -> tuple[int, int]:
    """Returns the height and width of a part of an image, from its share of the area and how wide it is."""
    area = share * height * width
    return (
        min(height, max(1, round(math.sqrt(area / ratio)))),
        min(width, max(1, round(math.sqrt(area * ratio)))),
    )


def _crop(image: np.ndarray, smallest: float, rng: np.random.Generator) -> np.ndarray:
    """Cuts out a part of an image, and scales it to the size of the image (Szegedy et al., 2015, section 6)."""
    height, width = image.shape[:2]
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    rows, columns = _sides(height, width, rng.uniform(smallest, 1), ratio)
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    part = _as_pillow(image[top : top + rows, left : left + columns])
    return _as_array(part.resize((width, height), Image.Resampling.BILINEAR))


def _color_jitter(image: np.ndarray, largest: float, rng: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast and saturation, each by a factor, in a random order."""
    changed = _as_pillow(image)
    for number in rng.permutation(3):
        factor = rng.uniform(1 - largest, 1 + largest)
        changed = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[number](changed).enhance(factor)
    return _as_array(changed)


def _grayscale(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    return _as_array(ImageEnhance.Color(_as_pillow(image)).enhance(1 - share))


def _blur(image: np.ndarray, largest: float, rng: np.random.Generator) -> np.ndarray:
    return _as_array(_as_pillow(image).filter(ImageFilter.GaussianBlur(rng.uniform(0, largest))))


def _low_resolution(image: np.ndarray, smallest: float, rng: np.random.Generator) -> np.ndarray:
    """Makes an image smaller and then larger again, as a distant camera does (AdaFace, Kim et al., 2022)."""
    height, width = image.shape[:2]
    scale = rng.uniform(smallest, 1)
    down, up = (_FILTERS[number] for number in rng.integers(len(_FILTERS), size=2))
    small = _as_pillow(image).resize((max(1, round(width * scale)), max(1, round(height * scale))), down)
    return _as_array(small.resize((width, height), up))


def _jpeg(image: np.ndarray, lowest: float, rng: np.random.Generator) -> np.ndarray:
    file = io.BytesIO()
    _as_pillow(image).save(file, "JPEG", quality=round(rng.uniform(lowest, _BEST_QUALITY)))
    return _as_array(Image.open(file))


def _erase(image: np.ndarray, largest: float, rng: np.random.Generator) -> np.ndarray:
    """Fills a rectangle with noise (random erasing, Zhong et al., 2017, algorithm 1)."""
    height, width, channels = image.shape
    ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
    rows, columns = _sides(height, width, rng.uniform(min(_SMALLEST_ERASED, largest), largest), ratio)
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    changed = image.copy()
    changed[top : top + rows, left : left + columns] = rng.integers(0, 256, (rows, columns, channels), dtype=np.uint8)
    return changed


# In the order in which they change an image: the scene, the camera, the file, and what hides a part.
EFFECTS = {
    "crop": Kind(0.6, 0, 1, "the smallest share of the area that is kept, and scaled to the size of the image", _crop),
    "color_jitter": Kind(
        0.4, 0, 1, "by how much the factors of brightness, contrast and saturation differ from 1", _color_jitter
    ),
    "grayscale": Kind(1.0, 0, 1, "the share of the colour that is taken away", _grayscale),
    "blur": Kind(2.0, 0, 100, "the largest standard deviation of the Gaussian blur, in pixels", _blur),
    "low_resolution": Kind(
        0.2, 0, 1, "the smallest scale to which the image is reduced before it is enlarged again", _low_resolution
    ),
    "jpeg": Kind(30, 0, _BEST_QUALITY, "the lowest quality with which the image is compressed", _jpeg),
    "erasing": Kind(0.2, 0, 1, "the largest share of the area that noise replaces", _erase),
}


def _off(name: str) -> Effect:
    return Effect(0.0, EFFECTS[name].strength)


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training images.

    Attributes:
        mirror: Whether to flip the image left to right with probability 1/2.
        rotate: Largest angle, in degrees.
        translate: Largest shift, as a fraction of the side.
        crop: How often an image is cropped; `EFFECTS` says what the strengths mean.
        color_jitter: How often its brightness, contrast and saturation change.
        grayscale: How often it loses its colour.
        blur: How often it is blurred.
        low_resolution: How often it is reduced and enlarged again.
        jpeg: How often it is compressed.
        erasing: How often noise replaces a part of it.
        chosen: Whether the user has chosen it, so that images of a reader are changed too.
    """

    mirror: bool = True
    rotate: float = 0.0
    translate: float = 0.0
    crop: Effect = _off("crop")
    color_jitter: Effect = _off("color_jitter")
    grayscale: Effect = _off("grayscale")
    blur: Effect = _off("blur")
    low_resolution: Effect = _off("low_resolution")
    jpeg: Effect = _off("jpeg")
    erasing: Effect = _off("erasing")
    chosen: bool = field(default=False, compare=False, repr=False)

    @functools.cached_property
    def effects(self) -> tuple[tuple[str, Effect], ...]:
        """The effects that some images get, with their names, in the order in which they change an image."""
        return tuple((name, getattr(self, name)) for name in EFFECTS if getattr(self, name).probability)

    @property
    def changes(self) -> bool:
        """Whether it changes any image."""
        return bool(self.mirror or self.rotate or self.translate or self.effects)
