"""Arithmetic on embeddings that several modules need."""

from __future__ import annotations

import numpy as np


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scales rows [N, D] to length 1, and keeps their dtype. A zero row stays zero instead of becoming NaN."""
    with np.errstate(invalid="ignore"):
        length = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        return rows / np.where(length > 0, length, 1.0).astype(rows.dtype)[:, None]
