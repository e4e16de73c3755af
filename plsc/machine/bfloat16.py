"""bfloat16 in NumPy, which has no such type: the upper half of the bits of a float32."""

from __future__ import annotations

import numpy as np

# A type of two bytes that nothing else has stands for bfloat16 in arrays and in files.
BFLOAT16 = np.dtype("V2")


def floats_of_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Returns the float32 values of bfloat16 numbers, given as uint16 or as `BFLOAT16`."""
    return (bits.view("<u2").astype(np.uint32) << 16).view(np.float32)


def bfloat16_of(values: np.ndarray) -> np.ndarray:
    """Returns float32 values as `BFLOAT16`, rounded to the nearest, and to the even one of two that are as near."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1)))
    kept = np.where(np.isnan(values), bits | np.uint32(0x400000), rounded) >> 16  # a NaN stays one
    return kept.astype("<u2").view(BFLOAT16)
