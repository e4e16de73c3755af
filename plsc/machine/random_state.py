"""Python's, NumPy's and Paddle's random numbers: seeded, kept and put back.

Paddle's are seeded anew at every step by (seed, step, rank), so that dropout needs no state: its generators have no
public one that another version could read. Python's and NumPy's, which only a user's own code draws from, are kept.
"""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import paddle


def seed_everything(seed: int) -> None:
    """Seeds all three."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    paddle.seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds Paddle for one step of one rank."""
    paddle.seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]))


def capture() -> dict[str, Any]:
    """The state of Python's and NumPy's generators, for JSON."""
    version, words, next_gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, _text(np.array(words, "<u8")), next_gauss],
        "numpy": [kind, _text(np.asarray(keys, "<u4")), int(position), int(has_gauss), float(cached)],
    }


def restore(state: dict[str, Any]) -> None:
    """Puts back what `capture` gave.

    Raises:
        ValueError, KeyError, TypeError: it is not such a state.
    """
    version, words, next_gauss = state["python"]
    kind, keys, position, has_gauss, cached = state["numpy"]
    random.setstate((version, tuple(np.frombuffer(base64.b64decode(words), "<u8").tolist()), next_gauss))
    np.random.set_state((kind, np.frombuffer(base64.b64decode(keys), "<u4"), position, has_gauss, cached))


def _text(words: np.ndarray) -> str:
    return base64.b64encode(words.tobytes()).decode()
