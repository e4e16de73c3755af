"""The protocol of file systems. A new kind of store is one more module next to `local.py`."""

from __future__ import annotations

import os
import posixpath
import re
import shlex
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Callable, Optional, Protocol

from plsc.errors import PlscError, shown

CHUNK_BYTES = 1 << 20
COMMIT = "meta.json"  # comes last and goes first where a store cannot rename: it makes a folder a checkpoint
ALREADY_THERE = "already exists"  # the reason of `check_absent`

Chunks = Callable[[], Iterable[bytes]]  # gives the bytes of a file; called again for each attempt


class StorageError(PlscError):
    """A refusal that waiting does not change: a missing path, a permission, a quota.

    Attributes:
        reason: What went wrong, without the place, for messages that name the place themselves.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class StorageUnavailableError(StorageError):
    """A store that cannot answer now but may later, so that it is worth trying again."""


@dataclass(frozen=True)
class Status:
    """What a store knows of a path.

    Attributes:
        size: Size in bytes; 0 for anything but a file.
        is_folder: Whether it is a folder.
        modified: Seconds since 1970 of the last change.
        identity: Equal for two paths that lead to the same file; None where the store cannot tell.
        is_special: Whether it is neither a file nor a folder: a device, a pipe, or a link that leads nowhere.
        version: Another one after every change of the file; None where the store knows none but size and time.
        is_link: Whether the path is a link. The rest is about what it leads to, but `delete` removes the link alone.
    """

    size: int
    is_folder: bool
    modified: float
    identity: Optional[Hashable] = None
    is_special: bool = False
    version: Optional[str] = None
    is_link: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it is a file."""
        return not (self.is_folder or self.is_special)


class Storage(Protocol):
    """A file system: files and folders under paths with `/`. A relative path starts at the user's own folder.

    Every method raises `StorageUnavailableError` for what may pass and `StorageError` for what does not.

    Attributes:
        name: What messages call the store; it holds no secret.
        renames: Whether `rename` moves a whole folder at once. Stores without this attribute do.
    """

    name: str

    def status(self, path: str) -> Optional[Status]:
        """Returns the status of a path, or None if nothing has that name."""

    def list(self, path: str) -> dict[str, Status]:
        """Returns the names in a folder with their status."""

    def read(self, path: str, offset: int, count: int) -> Iterator[bytes]:
        """Yields `count` bytes from `offset` on in parts; fewer if the connection or the file ends."""

    def write(self, path: str, chunks: Chunks, size: int) -> None:
        """Makes a file of `size` bytes and the folders above it; replaces a file of that name."""

    def rename(self, source: str, target: str) -> None:
        """Moves a file or a folder to a path that nothing has yet."""

    def delete(self, path: str) -> None:
        """Removes a file, or a folder with everything in it; does nothing if the path is missing."""

    def mkdirs(self, path: str) -> None:
        """Makes a folder and those above it, unless they exist."""


class DurableStorage(Storage, Protocol):
    """A store that can say how much space it has, and whose files outlast a power cut: `write` syncs their bytes.

    A data set can be put together in such a store. WebHDFS offers neither.
    """

    def sync(self, path: str) -> None:
        """Makes the bytes of a file, or the names in a folder, outlast a power cut."""

    def free(self, folder: str) -> int:
        """Returns the free space of the disk that holds a folder, in bytes."""


def read_bytes(storage: Storage, path: str) -> bytes:
    """Reads a small file. Raises StorageError."""
    found = storage.status(path)
    if found is None:
        raise missing(storage, path)
    if found.is_folder:
        raise StorageError(f"{place_of(storage, path)}: is a folder", "is a folder")
    return b"".join(storage.read(path, 0, found.size))


def write_bytes(storage: Storage, path: str, data: bytes) -> None:
    """Writes a small file. Raises StorageError."""
    storage.write(path, lambda: [data], len(data))


def place_of(storage: Storage, path: str) -> str:
    """Returns what messages call a path of a store: wherever that can be, the address that commands take.

    There is none for a path that starts at a user's own folder in HDFS, nor where several NameNodes, a gateway or an
    alias are named. Such a path follows the name of the store and a colon.
    """
    name = storage.name
    if not _makes_addresses(name, path):
        return f"{name}: {path}" if name else path
    inner = path.lstrip("/")
    return f"{name}{'' if name.endswith('/') else '/'}{inner}" if inner else name


def _makes_addresses(name: str, path: str) -> bool:
    """Returns whether the name of a store and a path in it make an address together."""
    if re.match("(hdfs|s?webhdfs|https?)://", name):
        return path.startswith("/") and re.fullmatch("[a-z]+://[^/;,]+/?", name) is not None
    return "://" in name or name.startswith("/")


def check_names(storage: Storage, path: str, names: Iterable[str]) -> None:
    """Checks the names that a server lists in a folder, before any of them becomes part of a path.

    Raises:
        StorageError: A name is empty or leads to another folder, or no file of this machine can have it.
    """
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\0" in name or not _is_encodable(name):
            reason = f"the server lists {shown(name)}, which is not the name of a file"
            raise StorageError(f"{place_of(storage, path)}: {reason}; check the server", reason)


def _is_encodable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can express
        return False
    return True


def missing(storage: Storage, path: str) -> StorageError:
    """Returns the error for a path that does not exist. Its message says how to see what does."""
    reason = "no such file or folder"
    return StorageError(f"{place_of(storage, path)}: {reason}; {_how_to_look(storage, path)}", reason)


def not_utf8(storage: Storage, path: str) -> StorageError:
    """Returns the error for a path with a name of other bytes than UTF-8, which only disks can have."""
    reason = "the store takes only names in UTF-8; rename the file, or put it into an archive"
    return StorageError(f"{place_of(storage, path)}: {reason}", reason)


def _how_to_look(storage: Storage, path: str) -> str:
    """Returns how to see the names in the folder that should hold a path."""
    folder = posixpath.dirname(path.rstrip("/"))
    if "://" not in storage.name:
        return "check the path"
    if _makes_addresses(storage.name, folder):
        return f"plsc fs ls {shlex.quote(place_of(storage, folder))} shows what is there"
    return f"plsc fs ls --fs {shlex.quote(storage.name)} {shlex.quote(folder or '.')} shows what is there"


def check_absent(storage: Storage, path: str) -> None:
    """Raises StorageError if something has that name already."""
    if storage.status(path) is not None:
        raise StorageError(f"{place_of(storage, path)}: {ALREADY_THERE}", ALREADY_THERE)


def parts_of(stream: Any, count: int) -> Iterator[bytes]:
    """Yields `count` bytes of a file-like object in parts; fewer if it ends."""
    while count:
        part = stream.read(min(count, CHUNK_BYTES))
        if not part:
            return
        count -= len(part)
        yield part
