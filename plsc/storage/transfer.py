"""Files and folders to and from a store: hidden until they are whole, never over what stands there."""

from __future__ import annotations

import contextlib
import os
import posixpath
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from plsc.errors import ConfigError
from plsc.storage.base import CHUNK_BYTES, Status, StorageError
from plsc.storage.retry import Retrying

_THREADS = 16  # to close a small file costs HDFS about half a second of waiting, not of work

Advance = Callable[[int], None]  # told of bytes as they pass; a negative number when they must pass again


def ignore(count: int) -> None:
    """Who does not want to know of progress."""


@dataclass(frozen=True)
class OpenFile:
    """A local file that stays readable when its name goes."""

    path: Path
    descriptor: int
    size: int

    @classmethod
    def open(cls, path: Path) -> OpenFile:
        """Raises ConfigError where it cannot be read."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as problem:
            raise ConfigError(f"{path}: cannot be read ({problem.strerror or problem})") from None
        return cls(path, descriptor, os.fstat(descriptor).st_size)

    def close(self) -> None:
        """Closes it."""
        os.close(self.descriptor)

    def chunks(self, advance: Advance = ignore) -> Iterator[bytes]:
        """Its bytes, from the start.

        Raises:
            StorageError: they cannot be read, or are fewer than they were.
        """
        done = 0
        try:
            while done < self.size:
                try:
                    chunk = os.pread(self.descriptor, CHUNK_BYTES, done)
                except OSError as problem:  # it must not look like one of the connection
                    raise StorageError(f"{self.path}: cannot be read ({problem.strerror or problem})") from None
                if not chunk:
                    raise StorageError(f"{self.path}: became shorter while it was read")
                yield chunk
                done += len(chunk)
                advance(len(chunk))
            done = 0  # all of it counts
        finally:
            if done:
                advance(-done)


def write_file(storage: Retrying, path: str, file: OpenFile, advance: Advance = ignore) -> None:
    """Makes a file of the store from a local one."""
    storage.write(path, lambda: file.chunks(advance), file.size)


def each(action: Callable[..., object], items: Iterable[Sequence[object]], threads: int = _THREADS) -> None:
    """Calls `action(*item)` for all in threads; the first error ends it, when those under way have ended."""
    with ThreadPoolExecutor(threads, "plsc-transfer") as pool:
        futures = [pool.submit(action, *item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def tree(storage: Retrying, path: str) -> dict[str, Status]:
    """Files under a path by their path from there; the name '' for a path that is a file itself.

    Raises:
        StorageError: nothing is there.
    """
    found = storage.status(path)
    if found is None:
        raise StorageError(f"{storage.name}: {path}: nothing there")
    if not found.is_folder:
        return {"": found}
    files, folders = {}, [""]
    while folders:
        folder = folders.pop()
        for name, status in storage.list(posixpath.join(path, folder)).items():
            inner = posixpath.join(folder, name)
            if status.is_folder:
                folders.append(inner)
            else:
                files[inner] = status
    return dict(sorted(files.items()))


def put(storage: Retrying, source: Path, target: str, advance: Advance = ignore) -> str:
    """Uploads a file or a folder; returns where it is. Into a folder that is there it goes under its own name.

    Raises:
        ConfigError: there is no `source`, or something stands at the target.
        StorageError: the store could not take it; then nothing is left there.
    """
    if not source.exists():
        raise ConfigError(f"{source}: no such file or folder")
    target = _inside(storage, target, source.resolve().name)
    if storage.status(target) is not None:
        raise ConfigError(f"{storage.name}: {target}: something stands there already; name another place")
    files = [path for path in sorted(source.rglob("*")) if path.is_file()] if source.is_dir() else [source]
    hidden = posixpath.join(posixpath.dirname(target), f".{posixpath.basename(target)}.{uuid.uuid4().hex[:12]}.put")

    def one(path: Path) -> None:
        file = OpenFile.open(path)
        try:
            inner = path.relative_to(source).as_posix() if source.is_dir() else ""
            write_file(storage, posixpath.join(hidden, inner) if inner else hidden, file, advance)
        finally:
            file.close()

    try:
        storage.mkdirs(hidden if source.is_dir() else posixpath.dirname(hidden) or ".")
        each(one, [(path,) for path in files])
        storage.rename(hidden, target)
    except BaseException:
        with contextlib.suppress(StorageError):  # what went wrong first is said
            storage.with_patience(0).delete(hidden)
        raise
    return target


def get(storage: Retrying, source: str, target: Path, advance: Advance = ignore) -> Path:
    """Downloads a file or a folder; returns where it is. Into a folder that is there it goes under its own name.

    Raises:
        ConfigError: something stands at the target, or it cannot be written.
        StorageError: the store could not give it.
    """
    files = tree(storage, source)
    if target.is_dir():
        target = target / posixpath.basename(source.rstrip("/"))
    if target.exists():
        raise ConfigError(f"{target}: there is something already; name another place")
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
        each(one, list(files.items()))
        os.rename(hidden, target)
    except BaseException as problem:
        _remove(hidden, made)
        if isinstance(problem, OSError):
            raise ConfigError(f"{target}: cannot be written ({problem.strerror or problem})") from None
        raise
    return target


def _inside(storage: Retrying, target: str, name: str) -> str:
    found = storage.status(target)
    return posixpath.join(target, name) if found is not None and found.is_folder else target.rstrip("/")


def _remove(hidden: Path, made: Sequence[Path]) -> None:
    """Removes what `get` made."""
    for path in made:
        path.unlink(missing_ok=True)
    folders = sorted({folder for path in made for folder in path.parents if hidden in (folder, *folder.parents)})
    for folder in [*reversed(folders), hidden]:
        if folder.is_dir():
            folder.rmdir()
