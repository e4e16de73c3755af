"""Computes the results of a function ahead of time, in threads."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future
from typing import Any, Optional, TypeVar

from plsc.errors import StoppedError

Item = TypeVar("Item")
Result = TypeVar("Result")

_POLL_SECONDS = 0.25
_SECONDS_TO_STOP = 2.0  # for calls in progress, once the caller is to stop


def prefetch(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_workers: int,
    ahead: int,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Result]:
    """Yields the result of a function for each item, in order.

    Closing or dropping the iterator stops its threads. An error of a call is raised where its result belongs.

    Args:
        function: The function, which several threads call at the same time.
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
    calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threads: list[threading.Thread] = []
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(Future())
            calls.put((pending[-1], item))
            if len(threads) < num_workers:
                # Python waits for the threads of an executor before it ends, even for those that hang.
                name = f"plsc-images_{len(threads)}"
                threads.append(threading.Thread(target=_work, args=(function, calls), name=name, daemon=True))
                threads[-1].start()
            if len(pending) >= ahead:
                yield _next(pending, is_stopping)
        while pending:
            yield _next(pending, is_stopping)
    finally:
        for future in pending:
            future.cancel()
        for _ in threads:
            calls.put(None)
        _join(threads, is_stopping)


def _work(function: Callable[[Any], Any], calls: queue.SimpleQueue[Any]) -> None:
    while (call := calls.get()) is not None:
        future, item = call
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(item))
            except BaseException as problem:  # the caller raises it
                future.set_exception(problem)
        del call, future, item  # They would hold the result until the next call.


def _next(pending: deque[Future[Result]], is_stopping: Callable[[], bool]) -> Result:
    """Removes the first call, and returns its result as soon as it is there."""
    while not pending[0].done():
        if is_stopping():
            raise StoppedError("its images had not been read yet")
        futures.wait([pending[0]], _POLL_SECONDS)
    return pending.popleft().result()


def _join(threads: Iterable[threading.Thread], is_stopping: Callable[[], bool]) -> None:
    """Waits until threads have ended, but no longer than some seconds once the caller is to stop."""
    limit: Optional[float] = None
    for thread in threads:
        while thread.is_alive() and (limit is None or time.monotonic() < limit):
            if limit is None and is_stopping():
                limit = time.monotonic() + _SECONDS_TO_STOP
            thread.join(_POLL_SECONDS)
