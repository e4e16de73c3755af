"""Signals that end a process: a request to stop that can be polled, and sections that are not interrupted."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Optional

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # signals that ask a process to end


def heeded(numbers: Iterable[signal.Signals] = ENDING) -> list[signal.Signals]:
    """Returns those signals that this process does not ignore.

    `nohup` starts a process that ignores SIGHUP, and a shell one in the background that ignores SIGINT. A handler would
    end what they keep alive.
    """
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


class StopRequest:
    """The wish of a cluster to take the machine away, which it announces with SIGTERM.

    Inside the `with` block the first SIGTERM only sets `requested`. A second one ends the process as if it had no
    handler. In threads other than the main one nothing changes, since only that one can handle signals.

    Attributes:
        requested: Whether SIGTERM has come.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self.requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def deferred_signals() -> Iterator[None]:
    """Lets SIGINT, SIGTERM and SIGHUP wait until the end of the `with` block. Ignored signals stay ignored.

    It uses handlers rather than a mask: a mask belongs to one thread, and any thread may receive a signal.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers run in the main thread only
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])
