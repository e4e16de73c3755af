"""For how long a call waits for a server, also one of a library that would wait for as long as it likes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Callable, TypeVar

T = TypeVar("T")

_LEAST_SECONDS = 10.0  # a busy server may take as long to answer
_limits = threading.local()


@contextlib.contextmanager
def within(left: Callable[[], float]) -> Iterator[None]:
    """Limits for how long calls of this thread wait for a server in the `with` block.

    Args:
        left: Returns the seconds that are left. The first ten are given in any case.
    """
    before = getattr(_limits, "left", None)
    _limits.left = left
    try:
        yield
    finally:
        _limits.left = before


def limited(seconds: float, least: float = 0.0) -> float:
    """Returns for how many seconds a call may wait for a server: `seconds`, or what `within` leaves of them.

    Args:
        seconds: The limit without `within`.
        least: Seconds that the call gets in any case, if they are more than ten.
    """
    left = getattr(_limits, "left", None)
    return seconds if left is None else min(seconds, max(_LEAST_SECONDS, least, left()))


class Timeouts(tuple):
    """Seconds to connect and to wait for an answer, as `requests` takes them, within the limits of `within`."""

    def __iter__(self) -> Iterator[float]:
        return (limited(seconds) for seconds in super().__iter__())


def answer(action: Callable[[], T], seconds: float) -> T:
    """Calls what waits for a server in a thread, so that neither a silent server nor Ctrl-C has to wait for it.

    Args:
        action: The call.
        seconds: How long to wait; less if `within` leaves less.

    Raises:
        TimeoutError: There is no answer in time. The call continues in its thread.
    """
    results: list[T] = []
    problems: list[BaseException] = []
    ended = threading.Event()

    def run() -> None:
        try:
            results.append(action())
        except BaseException as problem:  # noqa: BLE001 - raised below
            problems.append(problem)
        ended.set()

    threading.Thread(target=run, name="plsc-answer", daemon=True).start()
    if not ended.wait(limited(seconds)):
        raise TimeoutError(None, "no answer in time")
    if problems:
        raise raisable(problems[0])
    return results[0]


def raisable(problem: BaseException) -> Exception:
    """Returns an exception that may be raised in another thread; the panics of libraries in Rust are none."""
    return problem if isinstance(problem, Exception) else RuntimeError(f"Panic({problem})")
