from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from plsc import Entry
from plsc.data.augmentation import EFFECTS, Augmentation, Effect, augment
from plsc.errors import ConfigError


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def only(name: str, strength: float | None = None, probability: float = 1.0) -> Augmentation:
    """Returns an augmentation with one effect alone."""
    effect = Effect(probability, EFFECTS[name].strength if strength is None else strength)
    return dataclasses.replace(Augmentation(mirror=False), **{name: effect})


def changed(image: np.ndarray, name: str, strength: float | None = None, seed: int = 0) -> np.ndarray:
    return augment(image, only(name, strength), np.random.default_rng(seed))


def photo(height: int = 48, width: int = 40, channels: int = 3) -> np.ndarray:
    """Returns an image with a smooth colour in each corner, as photographs have."""
    corners = np.random.default_rng(3).integers(20, 235, (2, 2, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
    return np.array(image.convert("L" if channels == 1 else "RGB")).reshape(height, width, channels)


def test_half_of_the_images_are_mirrored() -> None:
    pixels = noise(4, 4, 3)
    rng = np.random.default_rng(1)
    flipped = 0
    for _ in range(400):
        result = augment(pixels, Augmentation(), rng)
        mirrored = np.array_equal(result, pixels[:, ::-1])
        assert mirrored or np.array_equal(result, pixels)
        flipped += mirrored
    assert 150 < flipped < 250
    assert augment(pixels, Augmentation(mirror=False), rng) is pixels


class Fixed:
    """A stand-in for a Generator, which returns the largest value of every draw."""

    def uniform(self, low: float, high: float) -> float:
        return high


def test_translate_moves_whole_pixels_and_fills_from_the_edge() -> None:
    pixels = np.full((8, 8, 3), 50, np.uint8)
    pixels[2, 3] = (200, 100, 0)
    result = augment(pixels, Augmentation(False, 0.0, 0.25), Fixed())  # type: ignore[arg-type]
    expected = np.full((8, 8, 3), 50, np.uint8)
    expected[4, 5] = (200, 100, 0)
    assert np.array_equal(result, expected)


def test_rotate_turns_about_the_centre() -> None:
    pixels = np.full((9, 9, 1), 30, np.uint8)
    pixels[4, 7] = 255
    result = augment(pixels, Augmentation(False, 90.0, 0.0), Fixed())  # type: ignore[arg-type]
    assert result.shape == (9, 9, 1)
    assert {tuple(place) for place in np.argwhere(result[:, :, 0] > 200)} <= {(1, 4), (7, 4)}
    assert (result > 200).sum() == 1
    assert result.min() >= 30  # There are no black corners.


@given(
    st.sampled_from(sorted(EFFECTS)), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]),
    st.floats(0.001, 1), st.integers(0, 99),
)  # fmt: skip
def test_every_effect_keeps_the_form_and_depends_on_the_generator_alone(
    name: str, height: int, width: int, channels: int, share: float, seed: int
) -> None:
    image = noise(height, width, channels)[:, ::-1]
    before, strength = image.copy(), share * EFFECTS[name].high
    result = changed(image, name, strength, seed)
    assert result.shape == image.shape and result.dtype == np.uint8
    assert np.array_equal(result, changed(image, name, strength, seed))
    assert np.array_equal(image, before)


@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_changes_its_share_of_the_images(name: str) -> None:
    image, rng = photo(), np.random.default_rng(7)
    same = sum(augment(image, only(name, probability=0.3), rng) is image for _ in range(300))
    assert 170 < same < 250


def test_without_effects_the_generator_is_drawn_from_as_before() -> None:
    """Runs of before the effects existed resume to the bit."""
    rng, other = (np.random.default_rng(5) for _ in range(2))
    augment(photo(), Augmentation(True, 5.0, 0.1), rng)
    other.random()
    other.uniform(-1, 1, 3)
    assert rng.random() == other.random()


def test_crop_scales_a_part_of_at_least_the_smallest_area() -> None:
    """On an image whose pixels are their own places, the part that was cut out can be read off the corners."""
    rows, columns = np.meshgrid(np.arange(100), np.arange(100), indexing="ij")
    places = np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)
    shares = []
    for seed in range(60):
        result = changed(places, "crop", 0.3, seed).astype(int)
        height, width = result[-1, 0, 0] - result[0, 0, 0] + 1, result[0, -1, 1] - result[0, 0, 1] + 1
        assert 0.65 < width / height < 1.5
        shares.append(height * width / 10_000)
    assert min(shares) > 0.27 and max(shares) > 0.9 and np.ptp(shares) > 0.5


def test_color_jitter_of_a_single_factor() -> None:
    class Bright:
        """A stand-in for a Generator: brightness comes last, and is the only factor that differs from 1."""

        def random(self) -> float:
            return 0.0

        def permutation(self, count: int) -> list[int]:
            return [1, 2, 0]

        def __init__(self) -> None:
            self.factors = [1.0, 1.0, 1.2]

        def uniform(self, low: float, high: float) -> float:
            assert (low, high) == (0.6, 1.4)
            return self.factors.pop(0)

    image = photo()
    result = augment(image, only("color_jitter"), Bright())  # type: ignore[arg-type]
    assert np.abs(result.astype(float) - np.minimum(image * 1.2, 255)).max() <= 1


def test_grayscale_takes_the_colour_away() -> None:
    image = photo()
    grey = np.array(Image.fromarray(image).convert("L"))
    assert np.array_equal(changed(image, "grayscale"), np.repeat(grey[:, :, None], 3, axis=2))
    half = changed(image, "grayscale", 0.5).astype(float)
    assert np.abs(half - (image.astype(float) + grey[:, :, None]) / 2).max() <= 1
    assert np.array_equal(changed(photo(channels=1), "grayscale"), photo(channels=1))


def test_blur_and_low_resolution_take_the_detail_and_keep_the_mean() -> None:
    image = noise(64, 64, 3)
    for name, strength in (("blur", 3.0), ("low_resolution", 0.1)):
        results = [changed(image, name, strength, seed).astype(float) for seed in range(30)]
        deviations = [result.std() / image.std() for result in results]
        assert min(deviations) < 0.35 and max(deviations) < 1.05, name
        assert max(abs(result.mean() - image.mean()) for result in results) < 4, name


def test_jpeg_is_what_pillow_writes() -> None:
    image = noise(32, 32, 3)
    rng = np.random.default_rng(0)
    rng.random()
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=round(rng.uniform(10, 95)))
    assert np.array_equal(changed(image, "jpeg", 10), np.array(Image.open(file)))


def test_erasing_replaces_a_rectangle_of_bounded_area() -> None:
    image = np.zeros((60, 50, 1), np.uint8)
    for seed in range(60):
        result = changed(image, "erasing", 0.4, seed)[:, :, 0]
        rows, columns = np.flatnonzero(result.any(axis=1)), np.flatnonzero(result.any(axis=0))
        inside = result[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert 0.01 < inside.size / image.size < 0.42
        assert (inside == 0).mean() < 0.1, "noise is nearly nowhere 0"


@pytest.mark.parametrize(
    "value, message",
    [
        (1.5, r"blur\(1.5\): expected a finite number of at least 0 and at most 1"),
        ((0.5, 0), r"deviation of the Gaussian blur, in pixels\(0\): expected a finite number above 0"),
        ((0.5, 1, 2), r"expected a probability, or a pair \(probability, strength\)"),
        ("often", "blur"),
        ((None, 1), "blur"),
    ],
)
def test_values_that_cannot_work(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Entry().set_augmentation(blur=value)


def test_a_number_is_a_probability_and_a_pair_has_a_strength() -> None:
    ins = Entry()
    ins.set_augmentation(False, blur=0.25, jpeg=[0.5, 40])
    found = ins._config.augmentation
    assert found == dataclasses.replace(Augmentation(False), blur=Effect(0.25, 2.0), jpeg=Effect(0.5, 40.0))
    assert [name for name, _ in found.effects] == ["blur", "jpeg"] and found.changes
