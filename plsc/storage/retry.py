"""Tries again what a store could not do just now: the one place that does."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator
from typing import Callable, Optional, TypeVar

from plsc.storage.base import Chunks, Status, Storage, StorageUnavailableError

logger = logging.getLogger("plsc")
T = TypeVar("T")

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0


class Retrying:
    """A `Storage` that waits and tries again, longer each time, until `patience` seconds have brought nothing.

    Args:
        stop: when it is set, nothing is tried again.
    """

    def __init__(self, storage: Storage, patience: float, stop: Optional[threading.Event] = None) -> None:
        self._storage, self.patience = storage, patience
        self._stop = stop or threading.Event()
        self.name = storage.name

    def with_patience(self, patience: float, stop: Optional[threading.Event] = None) -> Retrying:
        """The same store with another patience."""
        return Retrying(self._storage, patience, stop)

    def status(self, path: str) -> Optional[Status]:
        """As the store's."""
        return self._retried(lambda: self._storage.status(path))

    def list(self, path: str) -> dict[str, Status]:
        """As the store's."""
        return self._retried(lambda: self._storage.list(path))

    def read(self, path: str, offset: int, count: int) -> Iterator[bytes]:
        """As the store's, but all `count` bytes: a reading that broke goes on where it was."""
        done, pause = 0, _backoff(self.patience, self._stop)
        while done < count:
            before = done
            try:
                for chunk in self._storage.read(path, offset + done, count - done):
                    done += len(chunk)
                    yield chunk
                if done < count:
                    raise StorageUnavailableError(
                        f"{self.name}: {path}: ended after {offset + done:,} of {offset + count:,} bytes"
                    )
            except StorageUnavailableError as problem:
                if done > before:
                    pause = _backoff(self.patience, self._stop)
                pause(problem)

    def write(self, path: str, chunks: Chunks, size: int) -> None:
        """As the store's."""
        self._retried(lambda: self._storage.write(path, chunks, size))

    def rename(self, source: str, target: str) -> None:
        """As the store's; one whose answer was lost counts."""
        tried = False

        def attempt() -> None:
            nonlocal tried
            if tried and self._storage.status(source) is None and self._storage.status(target) is not None:
                return
            tried = True
            self._storage.rename(source, target)

        self._retried(attempt)

    def delete(self, path: str) -> None:
        """As the store's."""
        self._retried(lambda: self._storage.delete(path))

    def mkdirs(self, path: str) -> None:
        """As the store's."""
        self._retried(lambda: self._storage.mkdirs(path))

    def _retried(self, attempt: Callable[[], T]) -> T:
        return retried(attempt, self.patience, self._stop)


def retried(attempt: Callable[[], T], patience: float, stop: Optional[threading.Event] = None) -> T:
    """What `attempt` returns, once it does not raise StorageUnavailableError; that one when patience is over."""
    pause = _backoff(patience, stop or threading.Event())
    while True:
        try:
            return attempt()
        except StorageUnavailableError as problem:
            pause(problem)


def _backoff(patience: float, stop: threading.Event) -> Callable[[StorageUnavailableError], None]:
    """What waits before the next attempt, or raises the problem when patience is over."""
    deadline, wait = time.monotonic() + patience, _FIRST_WAIT

    def pause(problem: StorageUnavailableError) -> None:
        nonlocal wait
        left = deadline - time.monotonic()
        if left <= 0 or stop.is_set():
            raise problem
        seconds = min(wait * random.uniform(0.75, 1.25), left)
        logger.warning("%s; trying again in %.1f s, for %.0f s at most", problem, seconds, left)
        wait = min(2 * wait, _LONGEST_WAIT)
        if stop.wait(seconds):
            raise problem

    return pause
