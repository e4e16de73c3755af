"""Results of a function that threads compute before they are asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int, ahead: int
) -> Iterator[Result]:
    """Yield ``function`` of each item, in their order.

    ``num_workers`` threads are up to ``ahead`` items in front of the caller; with 0 the caller computes. Closing or
    dropping the iterator waits for what is under way, and stops the threads.
    """
    if num_workers <= 0:
        yield from map(function, items)
        return
    executor = ThreadPoolExecutor(num_workers, thread_name_prefix="plsc-images")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
