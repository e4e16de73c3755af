"""Copies files and folders to and from a store. They are hidden until they are complete, and replace nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import posixpath
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Optional

from plsc.errors import ConfigError
from plsc.machine.files import OLD_SECONDS, is_old
from plsc.machine.names import readable
from plsc.storage.base import CHUNK_BYTES, COMMIT, Status, Storage, StorageError, missing, place_of
from plsc.storage.claims import is_claim
from plsc.storage.local import LOCAL, check_room, is_of_this_disk
from plsc.storage.retry import Retrying

logger = logging.getLogger("plsc")

_DEEPEST = 128  # folders in each other; a server could list a folder in itself for ever
_THREADS = 16  # HDFS takes about half a second to close a small file, most of it waiting
_TINY_THREADS, _TINY = 128, 100_000  # bytes on average
_LARGE_THREADS, _LARGE = 4, 4_000_000  # such files take memory, and time that is no waiting

_SECONDS_TO_DELETE = 5.0

Advance = Callable[[int], None]  # receives the bytes just copied; a negative number if they must be copied again


def ignore(count: int) -> None:
    """Takes no notice of progress."""


@dataclass(frozen=True)
class OpenFile:
    """A local file that stays readable after its name is removed."""

    path: Path
    descriptor: int
    size: int
    modified: int = 0  # nanoseconds

    @classmethod
    def open(cls, path: Path) -> OpenFile:
        """Opens a file. Raises ConfigError if it cannot be read."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as problem:
            raise ConfigError(f"{path}: cannot be read ({problem.strerror or problem})") from None
        found = os.fstat(descriptor)
        return cls(path, descriptor, found.st_size, found.st_mtime_ns)

    def close(self) -> None:
        """Closes the file."""
        os.close(self.descriptor)

    def chunks(self, advance: Advance = ignore) -> Iterator[bytes]:
        """Yields the bytes of the file from the start.

        Raises:
            StorageError: The file cannot be read, or has become shorter, or has changed. It may have grown: what is
                appended to it meanwhile is left out.
        """
        done = 0
        try:
            while done < self.size:
                try:
                    chunk = os.pread(self.descriptor, min(CHUNK_BYTES, self.size - done), done)
                except OSError as problem:  # an OSError would look like one of the connection
                    raise StorageError(f"{self.path}: cannot be read ({problem.strerror or problem})") from None
                if not chunk:
                    raise StorageError(f"{self.path}: became shorter while it was read")
                yield chunk
                done += len(chunk)
                advance(len(chunk))
            now = os.fstat(self.descriptor)
            if self.modified and now.st_size == self.size and now.st_mtime_ns != self.modified:
                raise StorageError(f"{self.path}: changed while it was read; try again when nothing writes there")
            done = 0  # everything was copied
        finally:
            if done:
                advance(-done)


def write_file(storage: Retrying, path: str, file: OpenFile, advance: Advance = ignore) -> None:
    """Copies a local file into the store."""
    storage.write(path, lambda: file.chunks(advance), file.size)


def each(
    storage: Retrying, action: Callable[..., object], items: Iterable[Sequence[object]], threads: int = _THREADS
) -> None:
    """Calls `action(*item)` for all items in threads. After the first error it only waits for calls under way.

    Ctrl-C waits for no call, which may wait for a silent server itself: it stops the store, so that they end in time.

    Args:
        storage: The store that the calls use.
        action: The work.
        items: The arguments of each call.
        threads: The number of calls at a time.
    """
    left, problems = deque(items), deque[BaseException]()

    def work() -> None:
        while not problems:
            try:
                item = left.popleft()
            except IndexError:
                return
            try:
                action(*item)
            except BaseException as problem:  # raised below
                problems.append(problem)

    # Python waits for the threads of an executor before it ends.
    pool = [threading.Thread(target=work, name="plsc-transfer", daemon=True) for _ in range(min(threads, len(left)))]
    try:
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
    except BaseException as problem:
        problems.append(problem)
        storage.stop()
        raise
    if problems:
        raise problems[0]


def tree(storage: Storage, path: str, *, follow_links: bool = True) -> dict[str, Status]:
    """Returns all files under a path by their paths relative to it. A path that is a file itself has the name ''.

    Claims are left out, since they change and vanish while others write there. A file that is only named like one is
    not. What is neither a file nor a folder is special. So is a link to a folder that contains it.

    Args:
        storage: The store.
        path: The path.
        follow_links: Whether links are what they lead to. Otherwise each is a file without bytes.

    Raises:
        StorageError: The path does not exist, or a name in it is none that a file can have.
    """
    found = storage.status(path)
    if found is None:
        raise missing(storage, path)
    if found.is_link and not follow_links:
        found = replace(found, size=0, is_folder=False)
    if not found.is_folder:
        return {"": found}
    files = {}
    folders = [("", frozenset([found.identity]))]  # each with the identities of itself and of the folders above it
    while folders:
        folder, above = folders.pop()
        for name, status in storage.list(posixpath.join(path, folder)).items():
            inner = posixpath.join(folder, name)
            if inner.count("/") >= _DEEPEST:
                raise StorageError(
                    f"{place_of(storage, path)}: has folders that are more than {_DEEPEST} levels deep; check "
                    "the server"
                )
            if status.is_link and not follow_links:
                files[inner] = replace(status, size=0, is_folder=False)
            elif status.is_link and status.is_folder and status.identity in above:
                files[inner] = replace(status, is_folder=False, is_special=True)
            elif status.is_folder:
                folders.append((inner, above | {status.identity}))
            elif not is_claim(storage, posixpath.join(path, inner), status):
                files[inner] = status
    return dict(sorted(files.items()))


def files_of(source: Path) -> list[Path]:
    """Returns a file itself, or all files of a local folder, sorted, without those that are for this disk alone.

    Links are followed, except those to a folder that contains them.

    Raises:
        ConfigError: The path is neither a file nor a folder.
        StorageError: There is no such path, or a folder in it cannot be listed.
    """
    return [source / name for name in copied(source, _uploaded(source))]


def _uploaded(source: Path) -> dict[str, Status]:
    """Returns what `tree` returns for a local path, without what is for this disk alone."""
    found = tree(LOCAL, str(source))
    return {name: one for name, one in found.items() if not name or not is_of_this_disk(posixpath.basename(name))}


def copied(place: object, found: Mapping[str, Status]) -> dict[str, Status]:
    """Returns what `tree` has found without what cannot be copied.

    Raises:
        ConfigError: It has found one path, which is neither a file nor a folder.
    """
    if "" in found and found[""].is_special:
        raise ConfigError(f"{place}: is neither a file nor a folder; name one of these")
    return {name: status for name, status in found.items() if not status.is_special}


def _log_left_out(place: object, found: Mapping[str, Status]) -> None:
    """Logs a line if a folder holds anything that is not copied, so that nobody misses it later."""
    names = [name for name, status in found.items() if status.is_special]
    if names:
        logger.warning(
            "%s: left out links that lead nowhere or to a folder around them, pipes and devices: %s (such as %s)",
            readable(str(place)),
            f"{len(names):,}",
            readable(names[0]),
        )


def put(
    storage: Retrying, source: Path, target: str, advance: Advance = ignore, last: Collection[str] = (COMMIT,)
) -> str:
    """Uploads a file or a folder and returns its path. If the target is a folder, the upload goes into it.

    It appears when it is complete. In a store that cannot rename, each file of a folder does, and `meta.json` last.

    Args:
        storage: The store.
        source: The file or folder.
        target: Its path in the store.
        advance: Receives the bytes that have been sent.
        last: Names of the files by which readers know that the folder is complete.

    Raises:
        ConfigError: The source is missing, or neither a file nor a folder, or the target exists already.
        StorageError: The store could not take it. Nothing is left there.
    """
    if not source.exists():
        raise ConfigError(f"{source}: no such file or folder")
    target = place_in(storage, target, source.resolve().name)
    if storage.status(target) is not None:
        raise ConfigError(f"{place_of(storage, target)}: already exists; name another place")
    found = _uploaded(source)
    files = [source / name for name in copied(source, found)]
    _log_left_out(source, found)
    hidden = target
    if storage.renames:
        _remove_old_uploads(storage, target)
        hidden = posixpath.join(posixpath.dirname(target), f".{posixpath.basename(target)}.{uuid.uuid4().hex[:12]}.put")
    commit = [path for path in files if not storage.renames and path.parent == source and path.name in last]

    def one(path: Path) -> None:
        file = OpenFile.open(path)
        try:
            inner = path.relative_to(source).as_posix() if source.is_dir() else ""
            write_file(storage, posixpath.join(hidden, inner) if inner else hidden, file, advance)
        finally:
            file.close()

    try:
        storage.mkdirs(hidden if source.is_dir() else posixpath.dirname(hidden) or ".")
        for some in ([path for path in files if path not in commit], commit):
            each(storage, one, [(path,) for path in some], _threads_for(path.stat().st_size for path in some))
        if storage.renames:
            storage.rename(hidden, target)
    except BaseException:
        _delete_soon(storage, hidden)
        raise
    return target


def get(
    storage: Retrying,
    source: str,
    target: Path,
    advance: Advance = ignore,
    files: Optional[Mapping[str, Status]] = None,
) -> Path:
    """Downloads a file or a folder and returns its path. If the target is a folder, the download goes into it.

    Args:
        storage: The store.
        source: The path in it.
        target: The new local name, or a local folder to put it into.
        advance: Receives the bytes that have been received.
        files: What `tree` has just returned for the source, so that it is not listed again.

    Raises:
        ConfigError: The source is neither a file nor a folder, or the target exists already, or it cannot be written,
            or its disk is too small.
        StorageError: The store could not provide it, or it changed meanwhile.
    """
    found = tree(storage, source) if files is None else files
    files = copied(place_of(storage, source), found)
    if target.is_dir():
        target = target / posixpath.basename(source.rstrip("/"))
    if target.exists():
        raise ConfigError(f"{target}: already exists; name another place")
    _remove_old_downloads(target)
    _log_left_out(place_of(storage, source), found)
    check_room(target.parent, sum(status.size for status in files.values()))
    hidden = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.get")
    made: list[Path] = []

    def one(inner: str, status: Status) -> None:
        place = hidden / inner if inner else hidden
        place.parent.mkdir(parents=True, exist_ok=True)
        made.append(place)
        with open(place, "wb") as stream:
            for chunk in storage.read(posixpath.join(source, inner) if inner else source, 0, status.size):
                stream.write(chunk)
                advance(len(chunk))

    try:
        if "" not in files:
            hidden.mkdir(parents=True)
        each(storage, one, list(files.items()), _threads_for(status.size for status in files.values()))
        _check_unchanged(storage, source, files)
        os.rename(hidden, target)
    except BaseException as problem:
        _remove(hidden, made)
        if isinstance(problem, OSError):
            raise ConfigError(f"{target}: cannot be written ({problem.strerror or problem})") from None
        raise
    return target


def _check_unchanged(storage: Retrying, path: str, files: Mapping[str, Status]) -> None:
    """Raises StorageError if files under a path are not what they were when they were listed."""
    now = {} if storage.status(path) is None else tree(storage, path)
    for inner, before in files.items():
        if now.get(inner) != before:
            what = "was removed" if inner not in now else "changed"
            raise StorageError(
                f"{place_of(storage, posixpath.join(path, inner) if inner else path)}: {what} while it was "
                "downloaded; try again when nothing writes there"
            )


def _threads_for(sizes: Iterable[int]) -> int:
    """Returns how many files are copied at a time: many small ones, which cost only waiting, or few large ones."""
    every = list(sizes)
    average = sum(every) / max(1, len(every))
    return _TINY_THREADS if average < _TINY else _THREADS if average < _LARGE else _LARGE_THREADS


def _delete_soon(storage: Retrying, path: str) -> None:
    """Deletes what a failed upload has left, unless that takes long; the failure itself is the one to report."""

    def delete() -> None:
        with contextlib.suppress(StorageError):
            storage.with_patience(0).delete(path)

    thread = threading.Thread(target=delete, name="plsc-transfer", daemon=True)
    thread.start()
    thread.join(_SECONDS_TO_DELETE)


def _remove_old_downloads(target: Path) -> None:
    """Removes what killed processes left of downloads to this place, once nothing writes there any more."""
    names = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{12}}\.get")
    with contextlib.suppress(OSError, StorageError):  # the download itself reports what is wrong with the folder
        for left in map(target.with_name, filter(names.fullmatch, os.listdir(target.parent))):
            if is_old(left):
                LOCAL.delete(str(left))


def _remove_old_uploads(storage: Retrying, target: str) -> None:
    """Removes week-old uploads to this place whose processes were killed. A store dates only the top of a folder."""
    folder, name = posixpath.split(target)
    names = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{12}}\.put")
    with contextlib.suppress(StorageError):  # one may write to a folder that one may not list
        found = storage.status(folder or ".")
        for left, status in (storage.list(folder or ".") if found is not None and found.is_folder else {}).items():
            if names.fullmatch(left) and time.time() - status.modified > 7 * OLD_SECONDS:
                storage.delete(posixpath.join(folder, left))


def place_in(storage: Retrying, target: str, name: str) -> str:
    """Returns where an upload goes: into the target, if that is a folder, and otherwise to the target itself."""
    found = storage.status(target)
    return posixpath.join(target, name) if found is not None and found.is_folder else target.rstrip("/")


def _remove(hidden: Path, made: Sequence[Path]) -> None:
    """Removes the files that `get` made, and their folders."""
    for path in made:
        path.unlink(missing_ok=True)
    folders = sorted({folder for path in made for folder in path.parents if hidden in (folder, *folder.parents)})
    for folder in [*reversed(folders), hidden]:
        if folder.is_dir():
            folder.rmdir()
