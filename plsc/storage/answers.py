"""Calls of libraries that wait for a server for as long as they like."""

from __future__ import annotations

import threading
from typing import Callable, TypeVar

T = TypeVar("T")


def answer(action: Callable[[], T], seconds: float) -> T:
    """Calls what waits for a server in a thread, so that neither a silent server nor Ctrl-C has to wait for it.

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
    if not ended.wait(seconds):
        raise TimeoutError(None, "no answer in time")
    if problems:
        raise raisable(problems[0])
    return results[0]


def raisable(problem: BaseException) -> Exception:
    """Returns an exception that may be raised in another thread; the panics of libraries in Rust are none."""
    return problem if isinstance(problem, Exception) else RuntimeError(f"Panic({problem})")
