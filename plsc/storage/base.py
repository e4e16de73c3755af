"""What a store of files must be able to do. Another one is one more module beside `local.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Callable, Optional, Protocol

from plsc.errors import PlscError

CHUNK_BYTES = 1 << 20


class StorageError(PlscError):
    """A store that refuses, for good: a missing path, a permission, a quota."""


class StorageUnavailableError(StorageError):
    """A store that cannot answer now and may later: it is worth trying again."""


@dataclass(frozen=True)
class Status:
    """What stands at a path.

    Attributes:
        size: bytes; 0 for a folder.
        modified: seconds since 1970.
    """

    size: int
    is_folder: bool
    modified: float


def parts_of(stream: Any, count: int) -> Iterator[bytes]:
    """`count` bytes of a file-like object, in parts; fewer where it ends."""
    while count:
        part = stream.read(min(count, CHUNK_BYTES))
        if not part:
            return
        count -= len(part)
        yield part


Chunks = Callable[[], Iterable[bytes]]  # called again for each attempt


class Storage(Protocol):
    """Files and folders under paths with `/`; a path without one in front counts from the user's own folder.

    Every method raises `StorageUnavailableError` for what may pass and `StorageError` for what stays.

    Attributes:
        name: what messages call it; holds no secret.
    """

    name: str

    def status(self, path: str) -> Optional[Status]:
        """What stands there; None for nothing."""

    def list(self, path: str) -> dict[str, Status]:
        """Names in a folder."""

    def read(self, path: str, offset: int, count: int) -> Iterator[bytes]:
        """`count` bytes from `offset` on, in parts; fewer where the connection or the file ends."""

    def write(self, path: str, chunks: Chunks, size: int) -> None:
        """Makes a file of `size` bytes, in the place of one that is there; folders above it are made."""

    def rename(self, source: str, target: str) -> None:
        """Moves a file or a folder to a path where nothing stands."""

    def delete(self, path: str) -> None:
        """Removes a file, or a folder with all that is in it; nothing there is no error."""

    def mkdirs(self, path: str) -> None:
        """Makes a folder and those above it; one that is there is no error."""
