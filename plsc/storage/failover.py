"""Tells the user which of several NameNodes is active: the clients change from one to the other without a word."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Callable, Optional

logger = logging.getLogger("plsc")

_SECONDS = 5.0  # between two looks
STANDBY = "is a standby"


class NameNodes:
    """The NameNodes of a store.

    Args:
        name: What messages call the store.
        questions: For each NameNode, by `host:port`, a function that asks it for something that only the active one
            answers. It returns why there was no answer, or None.
    """

    def __init__(self, name: str, questions: Mapping[str, Callable[[], Optional[str]]]) -> None:
        self._name, self._questions = name, questions
        self._active: Optional[str] = None
        self._next_look = 0.0
        self._lock = threading.Lock()

    def look(self) -> None:
        """Logs that another NameNode has become active since the last look. Asks at most every few seconds."""
        if len(self._questions) < 2:
            return
        with self._lock:
            if time.monotonic() < self._next_look:
                return
            self._next_look = time.monotonic() + _SECONDS
            before = self._active
        reason = None if before is None else self._questions[before]()
        if before is not None and reason is None:
            return
        for host, ask in self._questions.items():
            if host != before and ask() is None:
                self._active = host
                if before is not None:
                    logger.warning("%s: the NameNode %s %s; continuing with %s", self._name, before, reason, host)
                return

    def active(self) -> Optional[str]:
        """Returns which of several NameNodes answers, the one that was active last; None if none does."""
        known = sorted(self._questions, key=lambda host: host != self._active) if len(self._questions) > 1 else []
        return next((host for host in known if self._questions[host]() is None), None)

    def why_none_is_active(self) -> Optional[str]:
        """Returns why none of several NameNodes can be used; None if one can, or if there is only one."""
        if len(self._questions) < 2:
            return None
        reasons = {}
        for host, ask in self._questions.items():
            reason = ask()
            if reason is None:
                return None
            reasons[host] = reason
        listed = ", ".join(f"{host} {reason}" for host, reason in reasons.items())
        return f"no NameNode is active: {listed}; make one of them active"
