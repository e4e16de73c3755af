"""Repeats operations that a store cannot do at the moment. The one place that does."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator
from typing import Callable, Optional, TypeVar

from plsc.storage.answers import within
from plsc.storage.base import (
    ALREADY_THERE,
    Chunks,
    Status,
    Storage,
    StorageError,
    StorageUnavailableError,
    check_names,
    place_of,
)

logger = logging.getLogger("plsc")
T = TypeVar("T")

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0


class Retrying:
    """A `Storage` that waits and tries again when another one is unavailable, with growing pauses.

    Args:
        storage: The store to use.
        patience: Seconds without success after which it gives up.
        stop: Once it is set, nothing is tried again.
    """

    def __init__(self, storage: Storage, patience: float, stop: Optional[threading.Event] = None) -> None:
        self._storage, self.patience = storage, patience
        self._stop = stop or threading.Event()
        self.name, self.renames = storage.name, bool(getattr(storage, "renames", True))

    def with_patience(self, patience: float, stop: Optional[threading.Event] = None) -> Retrying:
        """Returns the same store with another patience."""
        return Retrying(self._storage, patience, stop)

    def stop(self) -> None:
        """Ends what waits for the store, now and from now on, with the failure for which it waits."""
        self._stop.set()

    def status(self, path: str) -> Optional[Status]:
        """Returns the status of a path, or None if nothing has that name."""
        return self._retried(lambda: self._storage.status(path))

    def list(self, path: str) -> dict[str, Status]:
        """Returns the names in a folder with their status. Raises StorageError for names that lead elsewhere."""
        found = self._retried(lambda: self._storage.list(path))
        check_names(self, path, found)
        return found

    def read(self, path: str, offset: int, count: int) -> Iterator[bytes]:
        """Reads as the store does, but yields all `count` bytes: it resumes a reading that broke off."""
        done, patience = 0, _Patience(self.patience, self._stop)
        while done < count:
            before = done
            try:
                chunks = iter(self._storage.read(path, offset + done, count - done))
                while True:
                    with within(patience.left):
                        chunk = next(chunks, None)
                    if chunk is None:
                        break
                    done += len(chunk)
                    if done > count:
                        raise StorageError(
                            f"{place_of(self, path)}: the server sent more than the {count:,} bytes that were asked "
                            "for; check the server"
                        )
                    yield chunk
                    patience = _Patience(self.patience, self._stop)
                if done < count:
                    self._check_length(path, offset + count)
                    raise StorageUnavailableError(
                        f"{place_of(self, path)}: the connection ended after {offset + done:,} of "
                        f"{offset + count:,} bytes"
                    )
            except StorageUnavailableError as problem:
                if done > before:
                    patience = _Patience(self.patience, self._stop)
                patience.pause(problem)

    def _check_length(self, path: str, size: int) -> None:
        """Raises StorageError if a file has fewer bytes, so that it is no use to try again."""
        found = self._storage.status(path)
        if found is None or found.size < size:
            what = "was removed" if found is None else f"has {found.size:,} bytes now, not {size:,}; it changed"
            raise StorageError(f"{place_of(self, path)}: {what} while it was read; try again when nothing writes there")

    def write(self, path: str, chunks: Chunks, size: int) -> None:
        """Makes a file and the folders above it; replaces a file of that name."""
        patience, furthest = _Patience(self.patience, self._stop), 0

        def watched() -> Iterator[bytes]:
            """Yields the chunks; patience begins again whenever more of them have been taken than ever before."""
            nonlocal patience, furthest
            done = 0
            for chunk in chunks():
                yield chunk
                done += len(chunk)
                if done > furthest:
                    patience, furthest = _Patience(self.patience, self._stop), done

        while True:
            try:
                with within(lambda: patience.left()):
                    self._storage.write(path, watched, size)
                return
            except StorageUnavailableError as problem:
                patience.pause(problem)

    def rename(self, source: str, target: str) -> None:
        """Renames as the store does. A renaming whose answer was lost counts as done."""
        tried = False

        def is_done() -> bool:
            return self._storage.status(source) is None and self._storage.status(target) is not None

        def attempt() -> None:
            nonlocal tried
            if tried and is_done():
                return
            tried = True
            try:
                self._storage.rename(source, target)
            except StorageUnavailableError:
                raise
            except StorageError as problem:
                # A client of two NameNodes repeats a request at the other one, which refuses what is done already.
                if problem.reason == ALREADY_THERE or not is_done():
                    raise

        self._retried(attempt)

    def delete(self, path: str) -> None:
        """Removes a file, or a folder with everything in it; does nothing if the path is missing."""
        self._retried(lambda: self._storage.delete(path))

    def mkdirs(self, path: str) -> None:
        """Makes a folder and those above it, unless they exist."""
        self._retried(lambda: self._storage.mkdirs(path))

    def _retried(self, attempt: Callable[[], T]) -> T:
        return retried(attempt, self.patience, self._stop)


def retried(attempt: Callable[[], T], patience: float, stop: Optional[threading.Event] = None) -> T:
    """Calls `attempt` until it does not raise StorageUnavailableError, and returns its result.

    Raises:
        StorageUnavailableError: `patience` seconds are over, or `stop` is set.
    """
    own = _Patience(patience, stop or threading.Event())
    while True:
        try:
            with within(own.left):
                return attempt()
        except StorageUnavailableError as problem:
            own.pause(problem)


class _Patience:
    """What is left of the time for attempts, and the pauses between them.

    Args:
        seconds: All of it.
        stop: Once it is set, nothing is left.
    """

    def __init__(self, seconds: float, stop: threading.Event) -> None:
        self._deadline, self._wait, self._stop = time.monotonic() + seconds, _FIRST_WAIT, stop

    def left(self) -> float:
        """Returns the seconds that are left."""
        return self._deadline - time.monotonic()

    def pause(self, problem: StorageUnavailableError) -> None:
        """Waits before the next attempt, or raises the problem once the time is over."""
        left = self.left()
        if left <= 0 or self._stop.is_set():
            raise problem
        seconds = min(self._wait * random.uniform(0.75, 1.25), left)
        logger.warning("%s; trying again in %.1f s, for at most %.0f s", problem, seconds, left)
        self._wait = min(2 * self._wait, _LONGEST_WAIT)
        if self._stop.wait(seconds):
            raise problem
