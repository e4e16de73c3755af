"""The one file that all shards of a conversion become, where a format has no shards.

Each process holds its shard in memory until it knows how large the shards before it are, and then writes it into its
place in that file. A shard whose place is not known in time, or that a task of Spark makes, has a file of its own, and
is copied from there. So the result is the same, whichever process makes a shard, and when.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from plsc.data.recordio_parts import RecordIOPart, read_part
from plsc.datasets.image_tree import DATA
from plsc.datasets.staging import WHOLE, Staging
from plsc.datasets.targets import Target
from plsc.machine.files import sync

_UNFINISHED = f"{WHOLE}.unfinished"
_PATIENCE, _POLL_SECONDS = 1.0, 0.001  # seconds to wait for the sizes of the shards before one
_UNKNOWN = -1


class Places:
    """Where each shard lies in the whole file, as far as the processes have told each other how large theirs are.

    Args:
        staging: The folder of the conversion; its complete shards are known.
        target: The format.
        shards: Number of shards.
    """

    def __init__(self, staging: Staging, target: Target, shards: int) -> None:
        self._path = staging.folder / _UNFINISHED / DATA / target.file
        shared: Any = multiprocessing.get_context("fork").Array("q", [_UNKNOWN] * 2 * shards)
        self._lock = shared.get_lock()
        self._sizes = np.frombuffer(shared.get_obj(), np.int64).reshape(shards, 2)  # bytes and images of each
        self._before = 0, 0, 0  # a shard, and the bytes and images before it, so that they are added up once
        for number in range(shards):
            if staging.shard(number).exists():
                part = read_part(staging.shard(number) / DATA / target.file)
                self._tell(number, part.size, len(part.places))

    def write(self, part: RecordIOPart, number: int) -> bool:
        """Writes what was added to a shard into the whole file, if its place is known. Returns whether it is.

        Args:
            part: The shard.
            number: Its number, which never falls in a process.

        Raises:
            OSError: The disk refuses it.
        """
        first, *before = self._before
        with self._lock:
            known = np.array(self._sizes[first:number])
        if np.any(known == _UNKNOWN):
            return False
        size, images = (known.sum(axis=0) + before).tolist()
        self._before = number, size, images
        part.write_into(self._path, size, images)
        return True

    def finish(self, part: RecordIOPart, number: int, wait: Callable[[], object]) -> None:
        """Writes the rest of a complete shard, unless its place is not known in time.

        Args:
            part: The shard.
            number: Its number.
            wait: Is called now and then meanwhile.

        Raises:
            OSError: The disk refuses it.
        """
        self._tell(number, part.size, part.images)
        end = time.monotonic() + _PATIENCE
        while not self.write(part, number) and time.monotonic() < end:
            wait()
            time.sleep(_POLL_SECONDS)

    def _tell(self, number: int, size: int, images: int) -> None:
        with self._lock:
            self._sizes[number] = size, images


@contextlib.contextmanager
def joining(staging: Staging, target: Target, shards: int, class_names: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Joins the shards in one file, and commits it at the end of the block. Resumes the file of an earlier run.

    Yields a function that adds the shards that have become complete.

    Args:
        staging: The folder of the conversion.
        target: The format.
        shards: Number of shards.
        class_names: Name of each class; empty if they are unknown.
    """
    if (staging.folder / WHOLE).exists():
        yield lambda: None
        return
    folder = staging.folder / _UNFINISHED
    (folder / DATA).mkdir(parents=True, exist_ok=True)
    for path in (folder / DATA).iterdir():
        if path.name != target.file:  # what a run left that was killed while it wrote the index
            path.unlink()
    writer = target.open_whole(folder / DATA, class_names)
    following = 0

    def join() -> None:
        nonlocal following
        while following < shards and staging.shard(following).exists():
            writer.add_part(staging.shard(following) / DATA / target.file)
            following += 1

    yield join
    join()
    writer.close()
    for path in (folder / DATA).iterdir():
        sync(path)
    staging.commit(folder)
