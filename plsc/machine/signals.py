"""Signals that end a process: a request to stop that can be polled, and sections that are not interrupted."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Optional

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # signals that ask a process to end
# A cluster may send SIGTERM to the launcher and to the ranks, which then get it twice; `timeout` sends it to a process
# and then to its group. Where the launcher is killed, Linux may send it to a rank once for each thread of the launcher:
# the rank passes from one that has ended to one that is about to.
_SECONDS_OF_ONE_REQUEST = 2.0


def heeded(numbers: Iterable[signal.Signals] = ENDING) -> list[signal.Signals]:
    """Returns those signals that this process does not ignore.

    `nohup` starts a process that ignores SIGHUP, and a shell one in the background that ignores SIGINT. A handler would
    end what they keep alive.
    """
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


class Requests(list[int]):
    """The signals that have asked a process to end, without the SIGTERMs that only repeat the first request."""

    _since = 0.0

    def note(self, number: int, frame: Optional[FrameType] = None) -> None:
        """Adds a signal; it can be the handler of one."""
        now = time.monotonic()
        if not self:
            self._since = now
        elif number == signal.SIGTERM and now - self._since <= _SECONDS_OF_ONE_REQUEST:
            return
        self.append(number)


class StopRequest:
    """The wish to end the program, which a cluster announces with SIGTERM, and a user with Ctrl-C (SIGINT).

    Inside the `with` block the first signal only sets `requested`. A second one ends the process as if it had no
    handler. In threads other than the main one nothing changes, since only that one can handle signals.

    Ctrl-C counts where Python would raise KeyboardInterrupt, except in an interactive session. Where it is ignored, as
    in the ranks of `plsc run`, it still is no request, but the name of the SIGTERM that follows.

    Attributes:
        number: The signal.
    """

    def __init__(self) -> None:
        self.number = int(signal.SIGTERM)
        self._requests = Requests()
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has asked for the end."""
        return bool(self._requests)

    @property
    def name(self) -> str:
        """What users call the signal."""
        return "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            handlers: dict[int, Any] = dict.fromkeys(heeded((signal.SIGTERM,)), self._note)
            interrupt = signal.getsignal(signal.SIGINT)
            if interrupt is signal.SIG_IGN:
                handlers[signal.SIGINT] = self._name
            elif interrupt is signal.default_int_handler and not hasattr(sys, "ps1"):
                handlers[signal.SIGINT] = self._note
            self._previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _name(self, number: int, frame: Optional[FrameType]) -> None:
        self.number = number

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self._requests.note(number)
        if number == signal.SIGINT:
            self.number = number if len(self._requests) == 1 else self.number
            signal.signal(signal.SIGINT, signal.default_int_handler)
        elif len(self._requests) > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)


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
