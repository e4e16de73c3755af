"""Files of a store that are read in place, range by range, because they do not fit into the cache of this machine.

An outline in the cache stands for them: empty files of the same names, sizes and times, which take no space. Whoever
reads one of them through `plsc.machine.mounts` gets its bytes from the store. They stay in memory as long as they are
likely to be needed, and never reach the disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import posixpath
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from plsc.data.fetched import Waiting
from plsc.data.image_folders import has_image_suffix
from plsc.data.records import Records, RenamedRecords
from plsc.data.remote_folder import RemoteFolder, size_of
from plsc.errors import StoppedError
from plsc.machine import mounts
from plsc.machine.memory import size_text
from plsc.storage.base import StorageError
from plsc.storage.data_cache import RemoteFile

logger = logging.getLogger("plsc")

_CONTAINERS = (".tar", ".parquet", ".rec")
_CHUNK = 4_000_000  # bytes that are read at a time where reads follow each other
_CHUNKS_AHEAD = 2
_STREAMS = 16
_STRETCHES_AHEAD, _IMAGES_AHEAD = 4, 64
_KEPT = 64_000_000  # bytes that stay in memory, unless a plan needs more
_LOOKED_AT = 4096  # images whose order shows whether stretches are read as a whole
_CHECK_SECONDS = 5.0  # between two looks at whether a file has changed


class Span(NamedTuple):
    """Some bytes of a file.

    Attributes:
        path: The file.
        first: Where they begin.
        end: Where they end.
    """

    path: str
    first: int
    end: int


class DistantFolder:
    """A `Mount` that reads files of a store in ranges.

    Args:
        remote: The folder of the store.
        root: Its outline on this machine.
        files: The files that are read in place.
        stop: Ends what waits for the store.
        working: `parallel.working` where other ranks wait for this one; it is entered while bytes are waited for.
    """

    def __init__(
        self,
        remote: RemoteFolder,
        root: Path,
        files: Iterable[RemoteFile],
        stop: threading.Event,
        working: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self._remote, self.root, self._stop, self._working = remote, str(root), stop, working
        self._files = {os.path.join(self.root, file.name): file for file in files}
        self._lock = threading.Lock()
        self._pieces: dict[str, list[_Piece]] = {}
        self._used: OrderedDict[_Piece, None] = OrderedDict()  # all pieces, the one that was used last is the last
        self._size, self._kept = 0, _KEPT
        self._ends: dict[str, int] = {}  # where the last read of each file that no piece covered has ended
        self._plan: Iterator[Span] = iter(())
        self._ahead, self._begun, self._begun_bytes = 0, 0, 0
        self._calls: queue.SimpleQueue[Optional[_Piece]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._checked: dict[str, float] = {}
        self._is_stopping: Callable[[], bool] = lambda: False
        mounts.mount(self.root, self)

    def size_of(self, path: str) -> Optional[int]:
        """Returns the bytes of a file; None for one whose bytes are on this machine."""
        file = self._files.get(path) or self._files.get(os.path.normpath(path))
        return None if file is None else file.size

    def read(self, path: str, first: int, size: int) -> bytes:
        """Returns `size` bytes of a file from `first` on, fewer where the file ends.

        Raises:
            StorageError: The store does not give them.
            WrongDataError: The file has changed.
            StoppedError: The wait has ended; see `end_waiting_if`.
        """
        path = path if path in self._files else os.path.normpath(path)  # as a list may write it
        end = min(first + size, self._files[path].size)
        parts = []
        while first < end:
            with self._lock:
                if self._stop.is_set():  # nothing would end a thread that began now
                    raise self._stopped(path)
                piece, is_new = self._piece(path, first, end)
            if is_new:
                with self._working():
                    self._fetch(piece)
            data = self._wait(piece)
            parts.append(data[first - piece.span.first : end - piece.span.first])
            first = piece.span.end
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def named(self, text: str) -> str:
        """Returns a text with the address in place of the path of the outline."""
        return self._remote.named(text)

    def plan(self, spans: Iterator[Span], ahead: int, kept: int) -> None:
        """Fetches spans ahead of their use, which is in this order.

        Args:
            spans: The spans.
            ahead: How many of them are fetched ahead.
            kept: Bytes of those that are in use at about the same time.
        """
        with self._lock:
            self._plan, self._ahead, self._begun, self._begun_bytes = spans, ahead, 0, 0
            self._kept = max(_KEPT, kept)
            for piece in self._used:
                piece.is_planned = False
            self._go_on()

    def end_waiting_if(self, is_stopping: Callable[[], bool]) -> None:
        """Has a read that waits raise StoppedError as soon as `is_stopping` returns True."""
        self._is_stopping = is_stopping

    def close(self) -> None:
        """Ends the threads that fetch."""
        mounts.unmount(self.root, self)
        self._stop.set()
        with self._lock:
            self._plan, self._ahead = iter(()), 0
            self._pieces, self._used, self._size = {}, OrderedDict(), 0
            for _ in self._threads:
                self._calls.put(None)

    def _piece(self, path: str, first: int, end: int) -> tuple[_Piece, bool]:
        """Returns a piece that holds the byte `first`, and whether the caller is to fetch it."""
        held = [one for one in self._pieces.get(path, ()) if one.span.first <= first < one.span.end]
        if held:
            piece, is_new = max(held, key=lambda one: one.span.end), False
            self._used.move_to_end(piece)
        else:
            # With a plan, what is read next is known, and it is a chance if reads lie side by side.
            follows = not self._ahead and 0 <= first - self._ends.get(path, 0) < _CHUNK
            last = max(end, min(first + _CHUNK, self._files[path].size)) if follows else end
            piece, is_new = self._add(Span(path, first, last)), True
            piece.is_chunk = follows
            self._ends[path] = last
        if piece.is_chunk:
            piece.is_chunk = False
            self._chunks_after(piece.span)
        for one in held:  # larger ones may cover one that was planned
            if one.is_planned:
                self._count(one, False)
        self._go_on()
        return piece, is_new

    def _chunks_after(self, span: Span) -> None:
        """Begins to fetch what follows a chunk that is being read."""
        place, size = span.end, self._files[span.path].size
        for _ in range(_CHUNKS_AHEAD):
            if place >= size:
                return
            known = next((one for one in self._pieces[span.path] if one.span.first <= place < one.span.end), None)
            if known is None:
                known = self._begin(Span(span.path, place, min(place + _CHUNK, size)))
                known.is_chunk = True
                self._ends[span.path] = known.span.end
            place = known.span.end

    def _go_on(self) -> None:
        """Begins to fetch what the plan names next, as far as it may."""
        while self._begun < self._ahead and self._begun_bytes < self._kept // 2:
            span = next(self._plan, None)
            if span is None:
                self._ahead = 0
                return
            if span.end > span.first:
                held = self._pieces.get(span.path, ())
                known = next((one for one in held if one.span.first <= span.first and span.end <= one.span.end), None)
                if known is None:
                    self._forget_replaced(span)
                piece = known or self._begin(span)
                if not piece.is_planned:
                    self._count(piece, True)

    def _forget_replaced(self, span: Span) -> None:
        """Forgets pieces of about the size of a span that hold some of its bytes, and would be used in its place."""
        for one in list(self._pieces.get(span.path, ())):
            overlaps = one.span.first < span.end and span.first < one.span.end
            is_alike = one.span.end - one.span.first <= 2 * (span.end - span.first)
            if overlaps and is_alike and one.data.done() and not one.is_planned:
                self._forget(one)

    def _begin(self, span: Span) -> _Piece:
        """Has a thread fetch a piece."""
        piece = self._add(span)
        self._calls.put(piece)
        if len(self._threads) < _STREAMS:
            self._threads.append(threading.Thread(target=self._work, name="plsc-ranges", daemon=True))
            self._threads[-1].start()
        return piece

    def _add(self, span: Span) -> _Piece:
        """Adds a piece, and forgets those whose last use is longest ago, but none that is still to be used."""
        piece = _Piece(span)
        self._pieces.setdefault(span.path, []).append(piece)
        self._used[piece] = None
        self._size += span.end - span.first
        for old in list(self._used):
            if self._size <= self._kept:
                break
            if old.data.done() and not old.is_planned:
                self._forget(old)
        return piece

    def _forget(self, piece: _Piece) -> None:
        if piece in self._used:
            del self._used[piece]
            left = [one for one in self._pieces[piece.span.path] if one is not piece]
            if left:
                self._pieces[piece.span.path] = left
            else:
                del self._pieces[piece.span.path]
            self._size -= piece.span.end - piece.span.first
            if piece.is_planned:
                self._count(piece, False)

    def _count(self, piece: _Piece, is_planned: bool) -> None:
        """Notes whether a piece was fetched ahead by the plan, and not used yet."""
        piece.is_planned = is_planned
        change = 1 if is_planned else -1
        self._begun += change
        self._begun_bytes += change * (piece.span.end - piece.span.first)

    def _work(self) -> None:
        while (piece := self._calls.get()) is not None:
            self._fetch(piece)
            del piece  # It would hold the bytes until the next call.

    def _fetch(self, piece: _Piece) -> None:
        try:
            piece.data.set_result(self._bytes_of(piece.span))
        except BaseException as problem:  # whoever waits for the piece raises it
            with self._lock:
                self._forget(piece)
            piece.data.set_exception(problem)

    def _bytes_of(self, span: Span) -> bytes:
        file, parts = self._files[span.path], []
        place = posixpath.join(self._remote.folder, file.name)
        for part in self._remote.store.read(place, span.first, span.end - span.first):
            if self._stop.is_set():
                raise self._stopped(span.path)
            parts.append(part)
        if time.monotonic() > self._checked.get(span.path, 0.0) + _CHECK_SECONDS:
            self._remote.copy.check_unchanged(file)
            if file.size > _CHUNK:  # others are read once
                self._checked[span.path] = time.monotonic()
        return b"".join(parts)

    def _stopped(self, path: str) -> StorageError:
        return StorageError(f"{self._remote.where(self._files[path].name)}: stopped")

    def _wait(self, piece: _Piece) -> bytes:
        """Returns the bytes of a piece as soon as they are there."""
        if piece.data.done():
            return piece.data.result()
        where, waiting = self._remote.where(self._files[piece.span.path].name), Waiting()
        with self._working():
            while not piece.data.done():
                if self._is_stopping():
                    raise StoppedError(f"it was waiting for {where}")
                futures.wait([piece.data], waiting.seconds())
                waiting.look(lambda: where)
        return piece.data.result()


class _Piece:
    """A span that is in memory, or on its way.

    Attributes:
        span: Its place.
        data: Its bytes.
        is_planned: Whether it was fetched ahead by the plan, and not used yet.
        is_chunk: Whether what follows it is to be fetched as soon as it is used.
    """

    def __init__(self, span: Span) -> None:
        self.span, self.data = span, Future[bytes]()
        self.is_planned = self.is_chunk = False


class DistantRecords(RenamedRecords):
    """Records whose files are read in place, ahead of their use.

    Args:
        records: The data, whose paths are mounted.
        source: Where its bytes come from.
    """

    is_streamed = True

    def __init__(self, records: Records, source: DistantFolder) -> None:
        super().__init__(records, source.named)
        self._folder = source
        self._stretches = records.stretches()

    def stretches(self) -> Optional[np.ndarray]:
        """Returns those of the other data set."""
        return self._stretches

    def span(self, first: int, end: int) -> tuple[str, int, Optional[int]]:
        """Returns that of the other data set."""
        return self._source.span(first, end)

    def will_read(self, images: np.ndarray) -> None:
        """Fetches ahead what holds `images`, which are read in this order: whole stretches, or each image by itself."""
        self._source.will_read(images)
        starts = self._stretches
        mixed = self.window if self.blocks is not None else 0
        if starts is None or not _reads_stretches(images, starts, mixed):
            self._folder.plan((self._span(i, i + 1) for i in map(int, images)), _IMAGES_AHEAD, 0)
            return
        numbers = np.searchsorted(starts, images, side="right") - 1
        found, firsts = np.unique(numbers, return_index=True)
        order = found[np.argsort(firsts)].tolist()
        largest = max((one.end - one.first for one in map(self._stretch, order)), default=0)
        together = self.window + _STRETCHES_AHEAD + 4 if self.blocks is not None else _STRETCHES_AHEAD + 4
        self._folder.plan(map(self._stretch, order), _STRETCHES_AHEAD, together * largest)

    def end_waiting_if(self, is_stopping: Callable[[], bool]) -> None:
        """Has a read that waits raise StoppedError as soon as `is_stopping` returns True."""
        self._folder.end_waiting_if(is_stopping)

    def _stretch(self, number: int) -> Span:
        assert self._stretches is not None
        return self._span(*self._stretches[number : number + 2].tolist())

    def _span(self, first: int, end: int) -> Span:
        path, place, size = self._source.span(first, end)
        if size is None:
            size = self._folder.size_of(path) or 0
        return Span(path, place, place + size)


def _reads_stretches(images: np.ndarray, starts: np.ndarray, window: int) -> bool:
    """Returns whether images are read in an order that uses most of a stretch before it leaves it."""
    some = images[:_LOOKED_AT]
    used = len(np.unique(np.searchsorted(starts, some, side="right")))
    mean = starts[-1] / (len(starts) - 1)
    return used <= window + 2 + 2 * len(some) / mean


def mount(
    remote: RemoteFolder,
    files: Sequence[RemoteFile],
    stop: threading.Event,
    working: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> DistantFolder:
    """Has the large files of a data set read in place, and fetches the others.

    Args:
        remote: The folder that holds them.
        files: The files of the data set.
        stop: Ends what waits for the store.
        working: As for `DistantFolder`.

    Raises:
        ConfigError: The cache is too small for the others, or cannot be written.
        StorageError: The store does not give them.
    """
    distant = [file for file in files if is_distant(file.name)]
    near = [file for file in files if not is_distant(file.name)]
    remote.keep(near)
    root = remote.copy.outline(distant, near, remote.is_gone)
    logger.info(
        "data %s: %s in %d files, and the data cache has %s; they are read in place, at each use, and %s",
        remote.where(),
        size_text(size_of(distant)),
        len(distant),
        size_text(remote.cache.size),
        f"{size_text(size_of(near))} of lists and indexes are kept in {remote.cache.directory}"
        if near
        else "nothing is kept",
    )
    return DistantFolder(remote, root, distant, stop, working)


def is_distant(name: str) -> bool:
    """Returns whether a file can be read in place: one of images, or an image."""
    return name.lower().endswith(_CONTAINERS) or has_image_suffix(name)
