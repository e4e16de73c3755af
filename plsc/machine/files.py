"""Files that appear whole or not at all, and that outlast a power cut."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Union


def write_all(descriptor: int, data: Union[bytes, memoryview]) -> None:
    """Writes all of `data`, even if the system takes only a part at a time."""
    view = memoryview(data)
    while len(view):
        view = view[os.write(descriptor, view) :]


def write_synced(path: Union[str, Path], data: bytes) -> None:
    """Makes a file whose bytes outlast a power cut. Its name does so after `sync` of the folder."""
    with open(path, "wb") as stream:
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
    """Yields a temporary name in the folder of `path`, for a file that is renamed to `path` at the end of the block.

    If the block raises an error, the file is removed and `path` stays as it is.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Removes the temporary files for `path` that killed processes left. Call it under the lock that writers hold."""
    for left in path.parent.glob(f".{path.name}.*.part"):
        if left.name[len(path.name) + 2 : -len(".part")].replace(".", "").isdigit():
            left.unlink()


def sync(path: Union[str, Path]) -> None:
    """Makes the bytes of a file, or the names in a folder, outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
