"""The CPU threads of a rank, which must be set before paddle is imported: paddle would use one."""

from __future__ import annotations

import os
import re

user_chose = False  # whether OMP_NUM_THREADS comes from the user; set by set_threads_per_rank


def set_threads_per_rank() -> None:
    """Sets OMP_NUM_THREADS to the cores divided by the ranks on this machine, unless the user has set it."""
    global user_chose
    user_chose = _chosen_by_user()
    if not user_chose:
        given = os.environ.get("PADDLE_LOCAL_SIZE") or os.environ.get("PADDLE_TRAINERS_NUM") or ""
        local_ranks = int(given) if re.fullmatch("[0-9]{1,9}", given) else 1
        os.environ["OMP_NUM_THREADS"] = str(threads_per_rank(local_ranks))


def threads_per_rank(local_ranks: int) -> int:
    """Returns the threads of each of `local_ranks` processes that share the cores fairly; at least 1."""
    return max(1, cores() // max(1, local_ranks))


def computing_threads() -> int:
    """Returns the threads with which this process computes, as OMP_NUM_THREADS says, which may be a list of levels."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return max(1, int(first)) if first.isdecimal() else 1


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chosen_by_user() -> bool:
    if "OMP_NUM_THREADS" not in os.environ:
        return False
    if os.environ["OMP_NUM_THREADS"] != "1" or "PADDLE_TRAINER_ID" not in os.environ:
        return True
    # Paddle's launcher imports paddle, which puts 1 into the environment that its ranks inherit. What the user chose is
    # in the environment with which the launcher itself was started.
    try:
        with open(f"/proc/{os.getppid()}/environ", "rb") as environment:
            return any(entry.startswith(b"OMP_NUM_THREADS=") for entry in environment.read().split(b"\0"))
    except OSError:
        return True
