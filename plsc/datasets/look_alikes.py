"""Finds images that look alike among millions, by digests and perceptual hashes of their pixels."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image

MOST_BITS = 3  # by which the hashes of images that look alike differ
_NEIGHBOURS = 32  # that a hash is compared with in each table; only crowds of similar images have more
_COMPARED = 1 << 18  # hashes at a time
_SIDE = 32  # pixels, to which images are reduced to compare them
_FLAT = 0.5  # of a coefficient; rounding gives images of one colour smaller ones
_NOISE, _SHARE = 16.0, 0.04  # of the variance of grey levels
_DARKER = 64  # grey levels
# The lowest 64 frequencies in two dimensions, in the order of their sums, without that of the mean.
_LOWEST = tuple(
    np.array(sorted(np.ndindex(11, 11), key=lambda place: (sum(place), place))[1:65]).T,
)
_COSINES = np.cos(np.pi / _SIDE * np.outer(np.arange(11), np.arange(_SIDE) + 0.5))


def digest_of(pixels: np.ndarray) -> bytes:
    """Returns 16 bytes that are the same for the same pixels only, uint8 [H, W, C]."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()


def hash_of(pixels: np.ndarray) -> int:
    """Returns 64 bits of which images that look alike share most: the signs of the lowest frequencies (pHash).

    The image is reduced to 32 x 32 grey pixels, and its cosine transform is taken. Noise and compression hardly change
    the frequencies whose signs are kept.

    Args:
        pixels: uint8 [H, W, C].
    """
    waves = _COSINES @ reduced(pixels).astype(np.float64) @ _COSINES.T
    return int.from_bytes(np.packbits(waves[_LOWEST] > _FLAT).tobytes(), "big")


def look_alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Returns whether two images, uint8 [H, W, C], show the same up to compression, size, brightness and contrast.

    Both are reduced to 32 x 32 grey pixels. What of the pixels of one is not a linear function of those of the other
    must be at most 4 % of their variance, apart from a noise of 4 grey levels.
    """
    return are_alike(reduced(one), reduced(other))


def are_alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Returns what `look_alike` does, for two images that `reduced` has returned."""
    first, second = one.astype(np.float64), other.astype(np.float64)
    if abs(first.mean() - second.mean()) > _DARKER:
        return False
    (variance, shared), (_, other_variance) = np.cov(first.ravel(), second.ravel(), bias=True)
    most = max(variance, other_variance)
    left = most * (1 - shared**2 / max(variance * other_variance, 1e-9))
    return bool(shared >= 0 or most <= _NOISE) and bool(left <= _NOISE + _SHARE * most)


def reduced(pixels: np.ndarray) -> np.ndarray:
    """Returns the 32 x 32 grey pixels of an image, uint8 [H, W, C] -> uint8 [32, 32]."""
    return np.asarray(_grey(pixels).resize((_SIDE, _SIDE), Image.Resampling.BOX))


def _grey(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("L")


def close_pairs(hashes: np.ndarray, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields pairs of hashes that differ in at most `MOST_BITS` bits; a pair may come several times.

    The 64 bits are divided into `MOST_BITS` + 2 parts, of which two at least are equal in such a pair. So for each two
    parts the hashes are sorted by them, and each is compared with those that follow it and have the same two parts: at
    most `_NEIGHBOURS`, so that the time grows with the number of hashes alone, even if most are the same.

    Args:
        hashes: uint64 [N].
        numbers: Which of them to compare, int64 or int32 [n].

    Yields:
        (first [k], second [k], number of bits by which they differ uint8 [k]); the two are elements of `numbers`.
    """
    edges = np.linspace(0, 64, MOST_BITS + 3).astype(int).tolist()
    parts = [sum(1 << bit for bit in range(*ends)) for ends in zip(edges, edges[1:])]
    for one, other in itertools.combinations(parts, 2):
        keys = hashes[numbers] & np.uint64(one | other)
        order = np.argsort(keys, kind="stable")
        keys, order = keys[order], numbers[order]
        for start in range(0, len(keys), _COMPARED):
            yield from _pairs_from(hashes, keys[start:], order[start:])


def _pairs_from(
    hashes: np.ndarray, keys: np.ndarray, order: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the pairs whose first hash is one of the next `_COMPARED`."""
    for offset in range(1, min(_NEIGHBOURS + 1, len(keys))):
        count = min(_COMPARED, len(keys) - offset)
        places = np.flatnonzero(keys[:count] == keys[offset : offset + count])
        if not len(places):
            return
        first, second = order[places], order[places + offset]
        bits = _count_ones(hashes[first] ^ hashes[second])
        near = bits <= MOST_BITS
        yield first[near], second[near], bits[near]


def _count_ones(words: np.ndarray) -> np.ndarray:
    """Returns the number of bits that are set in each word, uint64 [n] -> uint8 [n]; NumPy 1 has no function for it."""
    for width in range(3):  # sums of 2, 4 and 8 bits
        mask = np.uint64(sum(((1 << (1 << width)) - 1) << shift for shift in range(0, 64, 2 << width)))
        words = (words & mask) + ((words >> np.uint64(1 << width)) & mask)
    return (words * np.uint64(0x0101010101010101) >> np.uint64(56)).astype(np.uint8)  # the sum of the bytes


class Closest:
    """For each of N images the closest other one that was offered.

    Args:
        count: N.
    """

    def __init__(self, count: int) -> None:
        self._bits = np.full(count, 255, np.uint8)
        self._others = np.zeros(count, np.int32 if count < 1 << 31 else np.int64)

    def offer(self, images: np.ndarray, others: np.ndarray, bits: np.ndarray) -> None:
        """Takes pairs of images, and the number of bits by which their hashes differ."""
        better = bits < self._bits[images]
        images, others, bits = images[better], others[better], bits[better]
        last = np.argsort(
            -bits.astype(np.int16), kind="stable"
        )  # of several for one image, the closest is written last
        self._bits[images[last]] = bits[last]
        self._others[images[last]] = others[last]

    def pairs(self) -> np.ndarray:
        """Returns the images for which there is one, and the closest, int64 [n, 2]."""
        images = np.flatnonzero(self._bits < 255)
        return np.stack([images, self._others[images]], axis=1).astype(np.int64)
