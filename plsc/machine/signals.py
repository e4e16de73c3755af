"""SIGTERM, which a cluster sends before it takes the machine away: noted once, obeyed at once the second time."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Optional


class StopRequest:
    """While it is entered, the first SIGTERM sets `requested`; the next ends the process as if nobody handled it.

    Only the main thread can do so; in others nothing changes.
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
