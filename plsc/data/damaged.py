"""What training and embedding do with images that cannot be read or decoded."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from plsc.data.transforms import normalize_each
from plsc.errors import DataError, WrongDataError, counted

NAMED = 20  # damaged images that are named one by one; the rest are only counted
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Skipping(NamedTuple):
    """Which damaged images a loader replaces by others.

    Attributes:
        most: Most images that it may replace.
        report: Called with the name of each damaged image of a batch, and the reason, before the batch is used. It may
            be called several times for one image.
    """

    most: int
    report: Callable[[str, str], None]


def is_damage(error: BaseException) -> bool:
    """Returns whether an image that raised `error` is at fault, rather than the whole data or this process."""
    cause = error.__cause__ or error.__context__
    if isinstance(error, WrongDataError):
        return False
    if isinstance(cause, OSError) and cause.errno in _OF_THE_MACHINE:
        return False
    return isinstance(error, DataError) and not isinstance(cause, MemoryError)


def normalized(
    count: int, image_shape: Sequence[int], pixels_of: Callable[[int], np.ndarray], skip_damaged: bool
) -> tuple[np.ndarray, dict[int, str]]:
    """Decodes a batch, and scales it as training does.

    Args:
        count: Number of images, B.
        image_shape: Shape of one image, (C, H, W).
        pixels_of: Returns the pixels of an image, uint8 [H, W, C], for its row in the batch.
        skip_damaged: Whether a damaged image is black instead of an error.

    Returns:
        The images, float32 [B, C, H, W], and what is wrong with the damaged ones, by row.

    Raises:
        DataError: An image is damaged, and they are not skipped.
    """
    channels, height, width = image_shape
    result, faults = np.empty((count, channels, height, width), np.float32), {}

    def decoded() -> Iterator[np.ndarray]:
        for row in range(count):
            try:
                pixels = pixels_of(row)
            except DataError as problem:
                if not skip_damaged or not is_damage(problem):
                    raise
                pixels, faults[row] = np.zeros((height, width, channels), np.uint8), str(problem)
            yield pixels

    normalize_each(decoded(), result)
    return result, faults


def line_of_zeros(damaged: int, images: int) -> str:
    """Returns what is logged of images whose embeddings are zero because they are damaged."""
    are, embeddings = ("is", "its embedding is") if damaged == 1 else ("are", "their embeddings are")
    return f"{damaged:,} of {counted(images, 'image')} {are} damaged: {embeddings} zero"


def too_many(most: int, found: int, reason: str) -> DataError:
    """Returns the error for more damaged images than the settings allow.

    Args:
        most: Number of images that may be damaged.
        found: Number of damaged images, as far as it is known.
        reason: Why one of them cannot be used.
    """
    return DataError(
        f"set_skip_damaged({most}): at least {counted(found, 'image')} cannot be used; plsc data check finds all of "
        f"them; last one: {reason}"
    )
