"""Training data whose files are fetched from a store ahead of their use, and dropped after it if need be."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Optional

import numpy as np

from plsc.data.records import Records, RenamedRecords
from plsc.errors import DataError, StoppedError, WrongDataError
from plsc.machine.memory import size_text
from plsc.storage import StorageError
from plsc.storage.data_cache import CachedFolder, RemoteFile

logger = logging.getLogger("plsc")

STREAMS = 2  # files that a rank fetches at a time
_FIRST_LINE, _NEXT_LINES = 10.0, 30.0  # seconds of waiting
_POLL_SECONDS = 0.25


class Progress:
    """Counts the bytes that arrive, and logs how far they have come: soon after the first, and then every half minute.

    Args:
        what: What is fetched, for the log.
        total: Its bytes; None if parts of it are fetched again and again.
    """

    def __init__(self, what: str, total: Optional[int]) -> None:
        self._what, self._total, self._done = what, total, 0
        self._last = time.monotonic(), 0  # when the last line was logged, and what had been done
        self._next = self._last[0] + _FIRST_LINE
        self._mutex = threading.Lock()

    def add(self, count: int) -> None:
        """Counts bytes, fewer than none if they must be fetched again."""
        with self._mutex:
            self._done += count
            now = time.monotonic()
            if now >= self._next:
                logger.info(self.line())
                self._next, self._last = now + _NEXT_LINES, (now, self._done)

    def line(self) -> str:
        """Returns how much has arrived, and how fast it has arrived since the last line."""
        rate = (self._done - self._last[1]) / max(1e-3, time.monotonic() - self._last[0])
        of_all = "" if self._total is None else f" of {size_text(self._total)}"
        return f"fetched {size_text(self._done)}{of_all} of {self._what}, {size_text(rate)}/s"


class Waiting:
    """A wait of a reader, which is logged after a while, and then every half minute."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._line = self._began + _FIRST_LINE

    def seconds(self) -> float:
        """Returns how long to wait until the next look at what may end the wait."""
        return min(_POLL_SECONDS, max(0.0, self._line - time.monotonic()))

    def look(self, what: Callable[[], str]) -> None:
        """Logs what is waited for, as `what` returns it, if a line is due."""
        now = time.monotonic()
        if now >= self._line:
            self._line += _NEXT_LINES
            logger.warning("reading has waited %.0f s for %s", now - self._began, what())


class FetchedRecords(RenamedRecords):
    """Records whose files are fetched in the order in which they are used.

    Args:
        records: The data, opened where the files will be. It must be able to tell the file of each image.
        folder: The copy of the remote folder in the cache, in which the space is claimed.
        files: The files of the data, in the order of `records.files`.
        budget: Bytes that the files in use may take; None keeps all files.
        name: What the data is called in the log.
        named: Returns a text with the address in place of the path of the copy.
        stop: Set when the data is closed; it ends what waits for the store.
        in_order: Whether the images are read once, in their order. The labels are then found meanwhile.
        working: `parallel.working` where other ranks wait for this one; it is entered while a file is waited for.

    Attributes:
        budget: The bytes that the files in use may take; None if all files are kept.
    """

    def __init__(
        self,
        records: Records,
        folder: CachedFolder,
        files: Sequence[RemoteFile],
        budget: Optional[int],
        name: str,
        named: Callable[[str], str],
        stop: threading.Event,
        in_order: bool = False,
        working: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        super().__init__(records, named)
        self.is_streamed, self._working = in_order, working
        self.image_bytes = sum(file.size for file in files) * 3 // 4
        self._labels_of: dict[int, np.ndarray] = {}  # of the files that have been there
        self._folder, self._remote, self.budget, self._name, self._stop = folder, files, budget, name, stop
        self.files = records.files
        self._state = threading.Condition()
        self._readers: dict[int, int] = {}  # files that are kept, with the number of threads that read them now
        self._fetching: set[int] = set()
        self._taken = 0  # bytes of both
        self._wanted: list[int] = []  # files that threads wait for
        self._plan: list[int] = []  # files to fetch, the next one last
        self._turn = np.full(len(files), np.inf)  # when a file is used first, as a position in the plan
        self._left = np.zeros(len(files), np.int64)  # images of each file that are still to be read in the epoch
        self._next_epoch: Optional[tuple[int, int, int, int]] = None
        self._problem: Optional[Exception] = None
        self._stopped, self._is_complete = False, False
        self._progress = Progress(
            name, None if budget else sum(file.size for file in files if not folder.is_whole(file))
        )
        self._threads: list[threading.Thread] = []
        self._is_stopping: Callable[[], bool] = lambda: False

    def labels(self) -> np.ndarray:
        """Returns the label of every image, int64 [n]; fetches all files, which must fit into the cache.

        For data that is read in its order, it fetches only files that have not been there yet, one after the other.
        """
        if self.is_streamed:
            missing = [number for number in range(len(self._remote)) if number not in self._labels_of]
            if missing:
                self._begin(missing)
            for number in missing:
                self._hold(number)
                self._let_go(number)
            return self._source.labels_of_files([self._labels_of[number] for number in range(len(self._remote))])
        if self.budget is not None:
            raise DataError(
                f"{self._name}: the labels of all images are needed before training, so all files must fit into the "
                "data cache; give set_data_cache a larger size, or do without the setting that counts images by class"
            )
        self._begin(list(range(len(self._remote))))
        for number in range(len(self._remote)):
            self._hold(number)
            self._let_go(number)
        return super().labels()

    def epoch_order(self, seed: int, epoch: int, rank: int, world_size: int) -> np.ndarray:
        """Returns the images of a rank in the order of an epoch."""
        with self._state:
            self._next_epoch = None if self.budget is None else (seed, epoch + 1, rank, world_size)
        return self._source.epoch_order(seed, epoch, rank, world_size)

    def files_of(self, images: np.ndarray) -> np.ndarray:
        """Returns the number of the file of each image."""
        return self._source.files_of(images)

    def will_read(self, images: np.ndarray) -> None:
        """Begins to fetch the files of `images`, which are read in this order."""
        numbers = self._source.files_of(images)
        with self._state:
            self._left = np.bincount(numbers, minlength=len(self._remote))
        self._begin(_in_order(numbers))

    def read(self, i: int) -> tuple[bytes, int]:
        """Returns the encoded bytes and the label of image `i`, as soon as its file is there."""
        if self._is_complete:
            return super().read(i)
        number = self._source.file_of(i)
        self._hold(number)
        try:
            return super().read(i)
        finally:
            self._let_go(number, 1)

    def end_waiting_if(self, is_stopping: Callable[[], bool]) -> None:
        """Has a read that waits for a file raise StoppedError as soon as `is_stopping` returns True."""
        self._is_stopping = is_stopping

    def close(self) -> None:
        """Ends the threads that fetch, and gives up the space in the cache."""
        self._stop.set()
        with self._state:
            self._stopped = True
            self._problem = self._problem or WrongDataError(f"{self._name}: closed")
            self._state.notify_all()
        self._source.close()
        self._folder.close()

    def _begin(self, order: list[int]) -> None:
        """Makes a new plan for the threads that fetch."""
        with self._state:
            self._turn[:] = np.inf
            self._turn[order] = np.arange(len(order))
            self._plan = order[::-1]
            if self.budget is not None:
                for number in [one for one, readers in self._readers.items() if not readers and not self._left[one]]:
                    self._drop(number)
            self._start()
            self._state.notify_all()

    def _start(self) -> None:
        """Starts the threads that fetch, once."""
        while len(self._threads) < STREAMS:
            thread = threading.Thread(target=self._run, name="plsc-fetch", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _hold(self, number: int) -> None:
        """Waits until a file is there, and keeps it from being dropped."""
        with self._state:
            if number not in self._readers:
                with self._working():
                    self._wait(number)
            self._readers[number] += 1

    def _wait(self, number: int) -> None:
        name, waiting = self._remote[number].name, Waiting()
        self._wanted.append(number)
        self._start()
        self._state.notify_all()
        try:
            while number not in self._readers:
                if self._problem is not None:
                    raise self._problem
                if self._is_stopping():
                    raise StoppedError(f"it was waiting for {name} of {self._name}")
                self._state.wait(waiting.seconds())
                waiting.look(lambda: f"{name}; {self._progress.line()}")
        finally:
            self._wanted.remove(number)

    def _let_go(self, number: int, images: int = 0) -> None:
        with self._state:
            self._readers[number] -= 1
            self._left[number] -= images
            if self.budget is not None and not self._readers[number]:
                is_done = self._left[number] <= 0
                if is_done:
                    # It is the first to make room for others. Until then it stays, since a replacement for a damaged
                    # image counts here too, though that image is read once more in its own place.
                    self._turn[number] = np.inf
                if is_done or self._wanted:
                    self._state.notify_all()  # it could make room for another file

    def _drop(self, number: int) -> None:
        """Stops keeping a file. The disk has its space back once it is closed and removed."""
        del self._readers[number]
        self._source.close_files()
        self._folder.release(self._remote[number])
        self._taken -= self._remote[number].size
        self._state.notify_all()

    def _run(self) -> None:
        """Fetches files until there is an error, in a thread."""
        try:
            self._fetch_files()
        except Exception as problem:  # the reader raises it, whatever it is
            with self._state:
                self._problem, self._stopped = self._problem or problem, True
                self._state.notify_all()

    def _fetch_files(self) -> None:
        while True:
            with self._state:
                number = self._choose()
                while number is None and not self._stopped and (self._plan or self._next_epoch is None):
                    self._state.wait()
                    number = self._choose()
                if self._stopped:
                    return
                if number is not None:
                    self._fetching.add(number)
                    self._taken += self._remote[number].size
            if number is None:
                self._look_ahead()
                continue
            while not self._folder.try_fetch(self._remote[number], self._advance):
                if self._stop.wait(_POLL_SECONDS):  # another rank fetches it
                    return
            if self.is_streamed and number not in self._labels_of:
                self._labels_of[number] = self._source.labels_of_file(number)
            with self._state:
                self._fetching.discard(number)
                self._readers[number] = 0
                self._is_complete = self.budget is None and len(self._readers) == len(self._remote)
                self._state.notify_all()

    def _choose(self) -> Optional[int]:
        """Returns the next file to fetch; None if there is none, or no space for it."""
        urgent = [number for number in self._wanted if self._is_missing(number)]
        if not urgent:
            while self._plan and not self._is_missing(self._plan[-1]):
                self._plan.pop()
        number = urgent[0] if urgent else self._plan[-1] if self._plan else None
        if number is None or not self._has_space(number, bool(urgent)):
            return None
        if not urgent:
            self._plan.pop()
        return number

    def _is_missing(self, number: int) -> bool:
        return number not in self._readers and number not in self._fetching

    def _has_space(self, number: int, is_urgent: bool) -> bool:
        """Returns whether a file may be fetched, after it has dropped a file that is used later."""
        if self.budget is None:
            return True
        while self._taken + self._remote[number].size > self.budget:
            idle = [one for one, readers in self._readers.items() if not readers and one not in self._wanted]
            if not is_urgent:
                idle = [one for one in idle if self._turn[one] > self._turn[number]]
            if not idle:
                return not self._readers and not self._fetching  # a file of any size, if it is alone
            self._drop(max(idle, key=lambda one: float(self._turn[one])))
        return True

    def _look_ahead(self) -> None:
        """Plans the files with which the next epoch begins, once those of this one are there."""
        with self._state:
            arguments, self._next_epoch = self._next_epoch, None
        if arguments is None or self.budget is None:
            return
        order = _in_order(self._source.files_of(self._source.epoch_order(*arguments)))
        with self._state:
            if not self._plan:
                later = [number for number in order if self._is_missing(number)]
                self._turn[later] = len(self._remote) + np.arange(len(later))
                self._plan = later[::-1]

    def _advance(self, count: int) -> None:
        if self._stopped:
            raise StorageError(f"{self._name}: stopped")
        self._progress.add(count)


def largest_use(numbers: np.ndarray, sizes: np.ndarray, in_flight: int) -> int:
    """Returns how many bytes of files are in use at most, from the first to the last image of each.

    Args:
        numbers: File of each image, in the order in which the images are read, int64 [n].
        sizes: Size of each file in bytes, int64 [F].
        in_flight: Number of images that threads read at about the same time, in any order.
    """
    found, first = np.unique(numbers, return_index=True)
    last = len(numbers) - np.unique(numbers[::-1], return_index=True)[1]
    last = np.minimum(last + in_flight, len(numbers))
    changes = np.zeros(len(numbers) + 1, np.int64)
    np.add.at(changes, first, sizes[found])
    np.add.at(changes, last, -sizes[found])
    return int(np.cumsum(changes).max())


def _in_order(numbers: np.ndarray) -> list[int]:
    """Returns the different numbers of an array in the order in which they first appear."""
    found, first = np.unique(numbers, return_index=True)
    return found[np.argsort(first)].tolist()
