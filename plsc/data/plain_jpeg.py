"""Decodes JPEG files whose pixels mean what they say, without the time that Pillow takes to read their headers."""

from __future__ import annotations

import struct
from typing import Optional

from PIL import Image

_BEGIN = b"\xff\xd8\xff"
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive
_SCAN = 0xDA
# APP0 (JFIF), tables of Huffman codes and quantisation, the restart interval, and comments. Any other segment may
# change what the pixels mean: the orientation of EXIF, a colour profile, Adobe's colours, several pictures in one file.
_HARMLESS = (0xE0, 0xC4, 0xDB, 0xDD, 0xFE)
_BITS = 8
_MODES = {1: "L", 3: "RGB"}  # by the number of components


def decode_plain(data: bytes, mode: str, most_pixels: int) -> Optional[Image.Image]:
    """Decodes a JPEG file, as most data sets hold them, to the pixels that `Image.open` gives.

    Pillow interprets headers in Python, for some 20 microseconds in which no other thread runs Python. libjpeg reads
    them once more anyway.

    Args:
        data: The encoded image.
        mode: The mode that the image has to have, 'L' or 'RGB'.
        most_pixels: Most pixels that it may have.

    Returns:
        The image; None if it is no such file, has another mode or more pixels, or is damaged.
    """
    found = _frame(data) if data.startswith(_BEGIN) else None
    if found is None:
        return None
    height, width, components = found
    limit = Image.MAX_IMAGE_PIXELS
    if _MODES.get(components) != mode or not 0 < width * height <= min(most_pixels, limit or most_pixels):
        return None
    try:
        image = Image.new(mode, (width, height), None)  # type: ignore[arg-type]  # a colour would take time
        image.frombytes(data, "jpeg", mode, "")
    except (ValueError, OSError, MemoryError):
        return None
    return image


def _frame(data: bytes) -> Optional[tuple[int, int, int]]:
    """Returns height, width and number of components; None if the header is damaged or has other segments."""
    found: Optional[tuple[int, int, int]] = None
    place = len(_BEGIN) - 1
    try:
        while True:
            marker, length = struct.unpack_from(">HH", data, place)
            kind = marker - 0xFF00
            if kind in _FRAMES and found is None:
                bits, height, width, components = struct.unpack_from(">BHHB", data, place + 4)
                if bits != _BITS:
                    return None
                found = height, width, components
            elif kind == _SCAN:
                return found
            elif kind not in _HARMLESS:
                return None
            place += 2 + length
    except struct.error:  # the data ends
        return None
