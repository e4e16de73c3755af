"""Computes the results of a function ahead of time, in threads."""

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
    """Yields the result of a function for each item, in order.

    Closing or dropping the iterator waits for the calls in progress, and stops the threads.

    Args:
        function: Called once per item.
        items: The arguments of the calls.
        num_workers: Number of threads; with 0 the caller's thread computes each result when it is asked for.
        ahead: Largest number of items that the threads are ahead of the caller.

    Yields:
        The results.
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
