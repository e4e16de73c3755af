"""The numbers in the records of `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any


def numbers_of(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Yields (path, number) for every number in `values` and the mappings in it, such as ('lfw/accuracy', 0.99)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers_of(value, f"{path}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{path}{key}", float(value)


def finite(value: Any) -> Any:
    """Returns the value with None for NaN and infinity, which JSON cannot express."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
