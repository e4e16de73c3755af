"""What training does with images that cannot be read or decoded."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple

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
