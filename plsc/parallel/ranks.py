"""Who this process is among the ranks of the run, as the launcher has told it, and where it computes."""

from __future__ import annotations

import os

import paddle


def rank() -> int:
    """Returns the rank of this process, in [0, world_size())."""
    return int(os.environ.get("PADDLE_TRAINER_ID", 0)) if world_size() > 1 else 0


def world_size() -> int:
    """Returns the number of ranks that the launcher has started; 1 without a launcher."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", 1))


def restarted() -> bool:
    """Returns whether `plsc run --restarts` has started this process after a failure of the run."""
    return "PLSC_RESTART" in os.environ


def launch_name() -> str:
    """Returns the name of the `plsc run` command that has started this process, first or again; "" without one."""
    return os.environ.get("PLSC_LAUNCH", "")


def on_cpu() -> bool:
    """Returns whether this process computes on a CPU, where Paddle has no half-precision arithmetic."""
    return str(paddle.get_device()) == "cpu"
