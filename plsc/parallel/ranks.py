"""Who this process is among the ranks of the run, as the launcher has told it, and where it computes."""

from __future__ import annotations

import os
import re

import paddle

from plsc.errors import ConfigError, shown

_MOST_RANKS = 1 << 20


def rank() -> int:
    """Returns the rank of this process, in [0, world_size()).

    Raises:
        ConfigError: The environment does not hold a rank.
    """
    return _number("PADDLE_TRAINER_ID", 0, world_size() - 1) if world_size() > 1 else 0


def world_size() -> int:
    """Returns the number of ranks that the launcher has started; 1 without a launcher.

    Raises:
        ConfigError: The environment does not hold a number of ranks.
    """
    return _number("PADDLE_TRAINERS_NUM", 1, _MOST_RANKS)


def _number(name: str, least: int, most: int) -> int:
    text = os.environ.get(name, str(least))
    if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise ConfigError(
            f"{name}={shown(text)} in the environment is not an integer of at least {least} and at most {most}; unset "
            "it, or start the ranks with plsc run"
        )
    return int(text)


def restarted() -> bool:
    """Returns whether `plsc run --restarts` has started this process after a failure of the run."""
    return "PLSC_RESTART" in os.environ


def launch_name() -> str:
    """Returns the name of the `plsc run` command that has started this process, first or again; "" without one."""
    return os.environ.get("PLSC_LAUNCH", "")


def on_cpu() -> bool:
    """Returns whether this process computes on a CPU, where Paddle has no half-precision arithmetic."""
    return str(paddle.get_device()) == "cpu"
