"""Files that must last: written whole, and made to outlast a power cut."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Union


def write_all(descriptor: int, data: Union[bytes, memoryview]) -> None:
    """Writes all of `data`, however often the system takes just a part."""
    view = memoryview(data)
    while len(view):
        view = view[os.write(descriptor, view) :]


def write_synced(path: Union[str, Path], data: bytes) -> None:
    """Makes a file whose bytes last through a power cut; its name does after `sync` of the folder."""
    with open(path, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def replace_file(path: Union[str, Path], data: bytes) -> None:
    """Writes a file beside and renames it, so that it is seen whole or not at all."""
    path = Path(path)
    with temporary(path) as written:
        write_synced(written, data)
        os.replace(written, path)
    sync(path.parent)


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A name beside `path` for a file that takes its place when it is whole; what is still there afterwards is removed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes left of `temporary` files for `path`. For one who holds a lock that its writers hold."""
    for left in path.parent.glob(f".{path.name}.*.part"):
        if left.name[len(path.name) + 2 : -len(".part")].isdigit():
            left.unlink()


def sync(path: Union[str, Path]) -> None:
    """Makes the bytes of a file, or the names in a folder, last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Union[str, Path]) -> str:
    """The digest of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
