"""The threads that walk over the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from paddle.base import core

from plsc import parallel
from plsc.machine.threads import computing_threads

Result = TypeVar("Result")


def walking_threads() -> int:
    """Returns how many threads walk over the rows of this process: as many as it computes with; one on a GPU."""
    return computing_threads() if parallel.on_cpu() else 1


class Workers:
    """A pool of `walking_threads()` threads.

    On a CPU Paddle computes most element-wise operations with one thread, whatever OMP_NUM_THREADS says, and releases
    Python's lock meanwhile. With one thread for each stretch of the rows, all cores are busy.
    """

    def __init__(self) -> None:
        self.count = walking_threads()
        # Each thread sets its own number of threads for products to one.
        self._pool = ThreadPoolExecutor(self.count, "plsc-head", core.set_num_threads, (1,))

    def map(self, function: Callable[[Sequence[int]], Result], count: int) -> list[Result]:
        """Cuts range(count) into one stretch for each thread, and returns what `function` returns for each, in order.

        There is at least one stretch, which is empty if `count` is 0.
        """
        threads = max(1, min(self.count, count))
        stretches = [range(count * i // threads, count * (i + 1) // threads) for i in range(threads)]
        if threads == 1:
            return [function(stretches[0])]
        return list(self._pool.map(function, stretches))
