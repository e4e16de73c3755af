"""What the making of a split asks of a file system: this machine's here, Hadoop's in `hadoop_files.py`."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Hashable
from typing import NamedTuple, Protocol

from plsc.errors import DataError
from plsc.machine.files import sync, write_synced


class Status(NamedTuple):
    """`identity` tells whether two paths are one file; size in bytes; `modified` in the file system's own units."""

    identity: Hashable
    is_file: bool
    size: int
    modified: int


class Files(Protocol):
    """A file system. Whatever fails raises OSError, `write` a DataError."""

    def is_folder(self, path: str) -> bool:
        """Whether a folder is there."""

    def exists(self, path: str) -> bool:
        """Whether anything is there, a link that leads nowhere included."""

    def status(self, path: str) -> Status:
        """What a path leads to."""

    def read(self, path: str) -> bytes:
        """A small file."""

    def write(self, path: str, data: bytes) -> None:
        """Makes a small file that outlasts a power cut."""

    def rename(self, source: str, target: str) -> None:
        """Puts a file in the place of another, or where there is none."""

    def remove(self, path: str) -> None:
        """Removes a file if it is there."""

    def remove_folder(self, path: str) -> None:
        """Removes a folder and what is in it, as far as that can be done."""

    def sync(self, folder: str) -> None:
        """Makes the names in a folder outlast a power cut."""

    def free(self, folder: str) -> int:
        """Bytes free where a folder is."""


class LocalFiles:
    """The files of this machine."""

    def is_folder(self, path: str) -> bool:
        """See `Files`."""
        return os.path.isdir(path)

    def exists(self, path: str) -> bool:
        """See `Files`."""
        return os.path.lexists(path)

    def status(self, path: str) -> Status:
        """See `Files`."""
        found = os.stat(path)
        return Status((found.st_dev, found.st_ino), stat.S_ISREG(found.st_mode), found.st_size, found.st_mtime_ns)

    def read(self, path: str) -> bytes:
        """See `Files`."""
        with open(path, "rb") as file:
            return file.read()

    def write(self, path: str, data: bytes) -> None:
        """See `Files`."""
        try:
            write_synced(path, data)
        except OSError as error:
            raise DataError(
                f"{path}: cannot write ({error.strerror}); free some space or choose another folder"
            ) from error

    def rename(self, source: str, target: str) -> None:
        """See `Files`."""
        os.rename(source, target)

    def remove(self, path: str) -> None:
        """See `Files`."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def remove_folder(self, path: str) -> None:
        """See `Files`."""
        shutil.rmtree(path, ignore_errors=True)

    def sync(self, folder: str) -> None:
        """See `Files`."""
        sync(folder)

    def free(self, folder: str) -> int:
        """See `Files`."""
        return shutil.disk_usage(folder).free


LOCAL = LocalFiles()
