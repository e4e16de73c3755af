"""The disks of this machine, or those mounted on it, as a store."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from plsc.errors import ConfigError
from plsc.machine.files import sync
from plsc.machine.locks import LOCK_NAME
from plsc.machine.memory import size_text
from plsc.storage.base import Chunks, Status, StorageError, check_absent, parts_of, place_of

# The index that plsc keeps in a folder of images. Like that of a tar, it holds the times of the files on this disk.
FOLDER_INDEX = ".plsc-folders.npz"
NO_ROOM = "are to be downloaded, but its disk has"  # what `check_room` says
_OF_THIS_DISK = re.compile(rf"{re.escape(LOCK_NAME)}|{re.escape(FOLDER_INDEX)}|\..+\.tar\.index\.npz", re.DOTALL)


class LocalStorage:
    """A `DurableStorage` on the file system of this machine.

    Args:
        root: The folder in which all paths are, with or without a slash at the start; by default paths are those of
            this machine.
        name: What messages call the store; by default the path of the root.
    """

    def __init__(self, root: Optional[Path] = None, name: Optional[str] = None) -> None:
        self._root = None if root is None else Path(root)
        self.name = name if name is not None else "" if root is None else str(root)

    def status(self, path: str) -> Optional[Status]:
        """Returns the status of a path, or None if nothing has that name. Follows links."""
        place = self._place(path)
        try:
            found = place.stat()
        except OSError as problem:
            if problem.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise self._error(path, problem) from None
            return _broken_link(place)
        is_file, is_folder = stat.S_ISREG(found.st_mode), stat.S_ISDIR(found.st_mode)
        return Status(
            size=found.st_size if is_file else 0,
            is_folder=is_folder,
            modified=found.st_mtime,
            identity=(found.st_dev, found.st_ino),
            is_special=not (is_file or is_folder),
            is_link=place.is_symlink(),
        )

    def list(self, path: str) -> dict[str, Status]:
        """Returns the names in a folder with their status."""
        with self._worded(path):
            found = ((name, self.status(os.path.join(path, name))) for name in sorted(os.listdir(self._place(path))))
            return {name: status for name, status in found if status is not None}

    def read(self, path: str, offset: int, count: int) -> Iterator[bytes]:
        """Yields `count` bytes from `offset` on in parts; fewer if the file ends."""
        with self._worded(path), open(self._place(path), "rb") as stream:
            stream.seek(offset)
            yield from parts_of(stream, count)

    def write(self, path: str, chunks: Chunks, size: int) -> None:
        """Makes a file, whose bytes outlast a power cut, and the folders above it; replaces a file of that name."""
        kept = 0
        with self._worded(path):
            self._place(path).parent.mkdir(parents=True, exist_ok=True)
            with open(self._place(path), "wb") as stream:
                for chunk in chunks():
                    kept += stream.write(chunk)
                stream.flush()
                os.fsync(stream.fileno())
        if kept != size:
            raise StorageError(f"{place_of(self, path)}: {kept:,} bytes were written instead of {size:,}")

    def rename(self, source: str, target: str) -> None:
        """Moves a file or a folder to a path that nothing has yet."""
        check_absent(self, target)
        with self._worded(source):
            os.rename(self._place(source), self._place(target))

    def delete(self, path: str) -> None:
        """Removes a file, or a folder with everything in it; does nothing if the path is missing."""
        place = self._place(path)
        with self._worded(path):
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)

    def mkdirs(self, path: str) -> None:
        """Makes a folder and those above it, unless they exist."""
        with self._worded(path):
            self._place(path).mkdir(parents=True, exist_ok=True)

    def sync(self, path: str) -> None:
        """Makes the bytes of a file, or the names in a folder, outlast a power cut."""
        with self._worded(path):
            sync(self._place(path))

    def free(self, folder: str) -> int:
        """Returns the free space of the disk that holds a folder, in bytes."""
        with self._worded(folder):
            return shutil.disk_usage(self._place(folder)).free

    def _place(self, path: str) -> Path:
        return Path(path) if self._root is None else self._root / os.path.normpath(f"/{path}").lstrip("/")

    @contextlib.contextmanager
    def _worded(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise self._error(path, problem) from None

    def _error(self, path: str, problem: OSError) -> StorageError:
        reason = problem.strerror or str(problem)
        hint = "; make room there" if problem.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return StorageError(f"{place_of(self, path)}: {reason}{hint}", reason)


def _broken_link(place: Path) -> Optional[Status]:
    """Returns the status of a link that leads nowhere; None if it is none, as where a file has just appeared."""
    try:
        found = place.lstat()
    except OSError:
        return None
    is_link = stat.S_ISLNK(found.st_mode)
    return Status(0, False, found.st_mtime, is_special=True, is_link=True) if is_link else None


def index_of(name: str) -> str:
    """Returns the name of the file that holds the index of a tar: `.train-0000.tar.index.npz` for `train-0000.tar`."""
    return f".{name}.index.npz"


def is_of_this_disk(name: str) -> bool:
    """Returns whether a file is of use on this disk only: the lock of a run, or an index of data."""
    return _OF_THIS_DISK.fullmatch(name) is not None


def check_room(folder: Path, size: int) -> None:
    """Checks that a disk has room for what is about to be downloaded, before a byte of it is.

    Args:
        folder: The folder to write to, which may not exist yet.
        size: What is to come, in bytes.

    Raises:
        ConfigError: The disk has less room than that.
    """
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    with contextlib.suppress(OSError):  # writing reports what is wrong with the folder
        free = shutil.disk_usage(place).free
        if size > free:
            raise ConfigError(
                f"{place}: {size_text(size)} {NO_ROOM} {size_text(free)} free; make room there, or name another folder"
            )


LOCAL = LocalStorage()
