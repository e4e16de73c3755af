"""Threads that share a walk over the rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from paddle.base import core

from plsc import parallel

Result = TypeVar("Result")


def walking_threads() -> int:
    """Threads that walk over the rows of this process: as many as it computes with; one on a GPU."""
    return int(os.environ.get("OMP_NUM_THREADS", 1)) if parallel.on_cpu() else 1


class Workers:
    """The threads of `walking_threads`.

    Paddle computes most element-wise operations on a CPU with one thread, whatever OMP_NUM_THREADS says, and lets go of
    Python's lock while it does: with a thread for each part of the rows all cores are busy.
    """

    def __init__(self) -> None:
        self.count = walking_threads()
        # The number set is the thread's own: the products of these threads use one each.
        self._pool = ThreadPoolExecutor(self.count, "plsc-head", core.set_num_threads, (1,))

    def map(self, function: Callable[[Sequence[int]], Result], count: int) -> list[Result]:
        """`function` of each thread's share of range(count): contiguous, in order, at least one."""
        threads = max(1, min(self.count, count))
        shares = [range(count * i // threads, count * (i + 1) // threads) for i in range(threads)]
        if threads == 1:
            return [function(shares[0])]
        return list(self._pool.map(function, shares))
