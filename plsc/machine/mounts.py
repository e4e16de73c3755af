"""Folders of this machine whose files are elsewhere: whoever has mounted such a folder gives their bytes.

The folder itself holds a file of the right size and time for each of them, without any bytes, so that its names can be
listed as ever.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO, Optional, Protocol, Union, cast

from plsc.machine.files import open_regular
from plsc.machine.files import read_regular as read_file

AnyPath = Union[str, bytes, Path]


class Mount(Protocol):
    """Gives the bytes of the files of a folder."""

    def size_of(self, path: str) -> Optional[int]:
        """Returns the bytes of a file; None for a file whose bytes are on this machine."""

    def read(self, path: str, first: int, size: int) -> bytes:
        """Returns `size` bytes of a file from `first` on, fewer where the file ends."""


_mounts: list[tuple[str, Mount]] = []  # the last one first


def mount(folder: str, source: Mount) -> None:
    """Has `source` give the bytes of its files in a folder, until `unmount`. Several may do so for one folder."""
    _mounts.insert(0, (folder, source))


def unmount(folder: str, source: Mount) -> None:
    """Ends what `mount` began."""
    if (folder, source) in _mounts:
        _mounts.remove((folder, source))


def mount_of(path: AnyPath) -> Optional[Mount]:
    """Returns what gives the bytes of the file, or of the files below a path; None if they are on this machine."""
    if not _mounts:
        return None
    text = os.fsdecode(path)
    found = [one for folder, one in list(_mounts) if text == folder or text.startswith(f"{folder}/")]
    return next((one for one in found if one.size_of(text) is not None), found[0] if found else None)


def read_regular(path: AnyPath) -> bytes:
    """Returns the bytes of a file; see `plsc.machine.files.read_regular`."""
    source = mount_of(path)
    size = None if source is None else source.size_of(os.fsdecode(path))
    return read_file(path) if source is None or size is None else source.read(os.fsdecode(path), 0, size)


def open_stream(path: AnyPath) -> BinaryIO:
    """Opens a file for reading; see `plsc.machine.files.open_regular`."""
    source = mount_of(path)
    size = None if source is None else source.size_of(os.fsdecode(path))
    if source is None or size is None:
        return open_regular(os.fsdecode(path))
    return cast(BinaryIO, io.BufferedReader(_Stream(source, os.fsdecode(path), size), 1 << 16))


class _Stream(io.RawIOBase):
    """A file of a mounted folder as a stream."""

    def __init__(self, source: Mount, path: str, size: int) -> None:
        self._source, self._path, self._size, self._place = source, path, size, 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a place, which it returns."""
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, begin + offset)
        return self._place

    def tell(self) -> int:
        """Returns the place."""
        return self._place

    def readinto(self, buffer: object) -> int:
        """Fills a buffer, and returns the number of bytes."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        size = min(len(view), max(0, self._size - self._place))
        data = self._source.read(self._path, self._place, size) if size else b""
        view[: len(data)] = data
        self._place += len(data)
        return len(data)
