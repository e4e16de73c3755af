"""Computes the results of a function ahead of time, in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from plsc.errors import StoppedError

Item = TypeVar("Item")
Result = TypeVar("Result")

_POLL_SECONDS = 0.25


def prefetch(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_workers: int,
    ahead: int,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Result]:
    """Yields the result of a function for each item, in order.

    Closing or dropping the iterator waits for the calls in progress, and stops the threads.

    Args:
        function: Called once per item.
        items: The arguments of the calls.
        num_workers: Number of threads; with 0 the caller's thread computes each result when it is asked for.
        ahead: Largest number of items that the threads are ahead of the caller.
        is_stopping: Once it returns True, the wait for a result that is not ready ends.

    Yields:
        The results.

    Raises:
        StoppedError: The wait has ended. The calls in progress are left to themselves, because they may hang.
    """
    if num_workers <= 0:
        yield from map(function, items)
        return
    executor = ThreadPoolExecutor(num_workers, thread_name_prefix="plsc-images")
    pending: deque[Future[Result]] = deque()
    waits = True
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) >= ahead:
                yield _result(pending.popleft(), is_stopping)
        while pending:
            yield _result(pending.popleft(), is_stopping)
    except StoppedError:
        waits = False
        raise
    finally:
        executor.shutdown(wait=waits, cancel_futures=True)


def _result(future: Future[Result], is_stopping: Callable[[], bool]) -> Result:
    while not future.done():
        if is_stopping():
            raise StoppedError("its images had not been read yet")
        futures.wait([future], _POLL_SECONDS)
    return future.result()
