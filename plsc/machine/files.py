"""Files that appear whole or not at all, and that outlast a power cut."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Union

_PIECE = 1 << 20  # bytes of a file that are read at a time
OLD_SECONDS = 86400.0  # a process that writes to a temporary file writes to it all the time


class NotRegularError(OSError):
    """The error for a pipe, a device or a folder where a file should be."""


def write_all(descriptor: int, data: Union[bytes, memoryview]) -> None:
    """Writes all of `data`, even if the system takes only a part at a time."""
    view = memoryview(data)
    while len(view):
        view = view[os.write(descriptor, view) :]


def refuse_links(path: str, flags: int) -> int:
    """Opens a file for `open(..., opener=refuse_links)`, and raises OSError if its name is a symbolic link.

    In a folder that others can write to, such a link would send the bytes to another file of the user.
    """
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def write_synced(path: Union[str, Path], data: bytes) -> None:
    """Makes a file whose bytes outlast a power cut. Its name does so after `sync` of the folder."""
    with open(path, "wb", opener=refuse_links) as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def replace_file(path: Union[str, Path], data: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that it appears whole or not at all."""
    path = Path(path)
    with replacing(path) as written:
        write_synced(written, data)
    sync(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Makes an empty file in the folder of `path`, which is renamed to `path` at the end of the block.

    Other users cannot guess its name, and a link of that name is never followed. If the block raises an error, the file
    is removed and `path` stays as it is. What a killed process has left of the same name is removed after a day.
    """
    with contextlib.suppress(OSError):  # a folder that may not be listed can be written to
        remove_leftovers(path, OLD_SECONDS)
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}.part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as problem:
        if str(problem.filename) == str(part):
            problem.filename, problem.filename2 = str(path), None  # the name that the user knows
        raise


def remove_leftovers(path: Path, age: float = 0.0) -> None:
    """Removes the temporary files for `path` that killed processes left.

    Args:
        path: The file.
        age: How many seconds nothing has been written to such a file. Without it, call this under the lock that writers
            hold.
    """
    names = re.compile(rf"\.{re.escape(path.name)}\.\d+(\.[0-9a-f]+)?\.part")
    for name in filter(names.fullmatch, os.listdir(path.parent)):
        left = path.with_name(name)
        with contextlib.suppress(FileNotFoundError):
            if not age or is_old(left, age):
                left.unlink()


def is_old(path: Path, age: float = OLD_SECONDS) -> bool:
    """Returns whether nothing has been written to a file, or to the files of a folder, for `age` seconds."""
    try:
        inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else []
        changed = max(one.lstat().st_mtime for one in (path, *inside))
    except OSError:  # a process renames files in it
        return False
    return time.time() - changed > age


def sync(path: Union[str, Path]) -> None:
    """Makes the bytes of a file, or the names in a folder, outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Union[str, Path]) -> BinaryIO:
    """Opens a file for reading. A pipe, which would wait for a writer, or a device is refused.

    Raises:
        NotRegularError: It is no regular file.
        OSError: It cannot be opened.
    """
    return open(_open_regular(path)[0], "rb")  # noqa: SIM115  # the caller closes it


def read_regular(path: Union[str, bytes, Path]) -> bytes:
    """Returns the bytes of a file, in half the time that reading a file of `open_regular` takes.

    Raises:
        NotRegularError: It is no regular file.
        OSError: It cannot be read.
    """
    descriptor, size = _open_regular(path)
    try:
        data = os.read(descriptor, size + 1)
        if len(data) == size:  # a regular file gives less than was asked for at its end alone
            return data
        parts = [data]
        while part := os.read(descriptor, _PIECE):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def _open_regular(path: Union[str, bytes, Path]) -> tuple[int, int]:
    """Returns the descriptor of a file, and its size; see `open_regular`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise NotRegularError(errno.EINVAL, "not a regular file", os.fsdecode(path))
    return descriptor, status.st_size


def advice_on(problem: OSError, advice: str) -> str:
    """Returns what to do about a file that cannot be read: `advice`, unless it is not the file that is at fault."""
    if problem.errno in (errno.EMFILE, errno.ENFILE):
        return "the file itself is fine; raise the limit of open files, for example with ulimit -n 4096"
    if problem.errno in (errno.EACCES, errno.EPERM):
        return "give this user the permission to read it"
    if isinstance(problem, NotRegularError):
        return "put an ordinary file there, or leave it out"
    return advice


def drop_from_cache(descriptor: int, first: int, size: int) -> None:
    """Tells the system that bytes of a file will not be read soon, so that they do not fill the machine's memory."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, first, size, os.POSIX_FADV_DONTNEED)


def sha256_of(path: Union[str, Path]) -> str:
    """Returns the SHA-256 of the bytes of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
