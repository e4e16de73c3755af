"""The random numbers of Python, NumPy and Paddle: seeding, saving and restoring.

Paddle is seeded at every step by (seed, step, rank), so that dropout needs no saved state: Paddle's generators have no
public state that another version could read. The states of Python and NumPy, which only the user's code uses, are
saved.
"""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import paddle


def seed_everything(seed: int) -> None:
    """Seeds the generators of Python, NumPy and Paddle."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    paddle.seed(seed % 2**63)


def initial_seed() -> int:
    """Returns the last seed of Paddle's generator for the device in use."""
    return int(paddle.get_rng_state()[0].current_seed())


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds Paddle for one step of one rank."""
    paddle.seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]))


def capture() -> dict[str, Any]:
    """Returns the state of the generators of Python and NumPy, ready for JSON."""
    version, words, next_gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, _text(np.array(words, "<u8")), next_gauss],
        "numpy": [kind, _text(np.asarray(keys, "<u4")), int(position), int(has_gauss), float(cached)],
    }


def restore(state: dict[str, Any]) -> None:
    """Restores a state that `capture` returned.

    Raises:
        ValueError: The state is damaged.
        KeyError: A part of it is missing.
        TypeError: It is not such a state.
    """
    version, words, next_gauss = state["python"]
    kind, keys, position, has_gauss, cached = state["numpy"]
    random.setstate((version, tuple(np.frombuffer(base64.b64decode(words), "<u8").tolist()), next_gauss))
    np.random.set_state((kind, np.frombuffer(base64.b64decode(keys), "<u4"), position, has_gauss, cached))


def _text(words: np.ndarray) -> str:
    return base64.b64encode(words.tobytes()).decode()
