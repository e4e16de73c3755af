import numpy as np
import pytest
from made_images import encode
from PIL import Image

from plsc.data.transforms import decode
from plsc.datasets import look_alikes
from plsc.datasets.look_alikes import MOST_BITS, Closest, close_pairs, digest_of, hash_of, look_alike


def picture(seed):
    """A picture of shapes of all sizes, the larger ones stronger as in photographs, uint8 [112, 112, 3]."""
    rng = np.random.default_rng(seed)
    total = np.full((112, 112, 3), 128.0)
    for cells in (2, 4, 8, 16, 32):
        waves = np.clip(128 + 40 * rng.normal(size=(cells, cells, 3)), 0, 255).astype(np.uint8)
        large = np.asarray(Image.fromarray(waves).resize((112, 112), Image.Resampling.BICUBIC), float)
        total += 3 / cells * (large - 128)
    return np.clip(total, 0, 255).astype(np.uint8)


def bits_between(one, other):
    return bin(hash_of(one) ^ hash_of(other)).count("1")


def resized(image, side):
    return decode(encode(image), (3, side, side), "")


CHANGES = {
    "compressed": lambda image: decode(encode(image, "JPEG", quality=40), (3, 112, 112), ""),
    "smaller": lambda image: resized(resized(image, 80), 112),
    "brighter": lambda image: np.clip(image.astype(int) * 0.9 + 20, 0, 255).astype(np.uint8),
    "grey": lambda image: np.asarray(Image.fromarray(image).convert("L"))[:, :, None],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_looks_alike_and_another_picture_does_not(change):
    for seed in range(10):
        image = picture(seed)
        assert bits_between(image, change(image)) <= MOST_BITS and look_alike(image, change(image))
        assert bits_between(image, picture(seed + 100)) > MOST_BITS and not look_alike(image, picture(seed + 100))


@pytest.mark.parametrize(
    "one, other, expected", [(255, 255, True), (255, 250, True), (255, 0, False), (0, "picture", False)]
)
def test_images_of_one_colour_look_like_those_of_about_the_same_colour(one, other, expected):
    first = np.full((112, 112, 3), one, np.uint8)
    second = picture(0) if other == "picture" else np.full((112, 112, 3), other, np.uint8)
    assert look_alike(first, second) is look_alike(second, first) is expected
    assert hash_of(first) == 0


def test_a_negative_and_a_mirror_image_do_not_look_alike():
    assert not look_alike(picture(0), 255 - picture(0)) and not look_alike(picture(0), picture(0)[:, ::-1])


def test_the_digest_depends_on_the_pixels_alone():
    image = picture(0)
    assert digest_of(image[:, ::-1]) == digest_of(np.ascontiguousarray(image[:, ::-1])) != digest_of(image)


def pairs_of(hashes, numbers=None):
    numbers = np.arange(len(hashes)) if numbers is None else numbers
    return {
        (min(pair), max(pair)): int(bits)
        for ones, others, all_bits in close_pairs(hashes, numbers)
        for *pair, bits in zip(ones.tolist(), others.tolist(), all_bits.tolist())
    }


def test_all_close_pairs_are_found(monkeypatch):
    monkeypatch.setattr(look_alikes, "_COMPARED", 7)
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 64, 200, dtype=np.uint64, endpoint=False)
    for i in range(0, 200, 2):  # 0 to 5 bits anywhere
        changed = sum(1 << int(bit) for bit in rng.choice(64, i // 2 % 6, replace=False))
        hashes[i + 1] = hashes[i] ^ np.uint64(changed)
    words = [int(one) for one in hashes]
    expected = {
        (i, j): bits
        for i in range(200)
        for j in range(i + 1, 200)
        if (bits := bin(words[i] ^ words[j]).count("1")) <= MOST_BITS
    }
    assert pairs_of(hashes) == expected and len(expected) >= 60
    some = np.arange(0, 200, 3)
    assert pairs_of(hashes, some) == {pair: bits for pair, bits in expected.items() if set(pair) <= set(some.tolist())}


def test_a_crowd_of_the_same_hash_costs_no_more_than_its_neighbours():
    found = pairs_of(np.zeros(100, np.uint64))
    assert {j for _, j in found} == set(range(1, 100)) and len(found) < 100 * 33


def test_the_closest_of_several_is_kept():
    closest = Closest(4)
    closest.offer(np.array([1, 1, 3]), np.array([0, 2, 0]), np.array([3, 1, 2], np.uint8))
    closest.offer(np.array([1, 3]), np.array([3, 2]), np.array([2, 0], np.uint8))
    assert closest.pairs().tolist() == [[1, 2], [3, 2]]
