"""Folders of this machine, or mounted on it, as a store."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from plsc.storage.base import Chunks, Status, StorageError, parts_of


class LocalStorage:
    """A `Storage` whose root is a folder.

    Args:
        root: stands for `/`, and for the user's own folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = Path(root)
        self.name = str(root)

    def status(self, path: str) -> Optional[Status]:
        """What stands there; None for nothing."""
        try:
            found = self._place(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as problem:
            raise self._error(path, problem) from None
        is_folder = self._place(path).is_dir()
        return Status(0 if is_folder else found.st_size, is_folder, found.st_mtime)

    def list(self, path: str) -> dict[str, Status]:
        """Names in a folder."""
        with self._worded(path):
            found = ((name, self.status(f"{path}/{name}")) for name in sorted(os.listdir(self._place(path))))
            return {name: status for name, status in found if status is not None}

    def read(self, path: str, offset: int, count: int) -> Iterator[bytes]:
        """`count` bytes from `offset` on, in parts; fewer where the file ends."""
        with self._worded(path), open(self._place(path), "rb") as stream:
            stream.seek(offset)
            yield from parts_of(stream, count)

    def write(self, path: str, chunks: Chunks, size: int) -> None:
        """Makes a file, in the place of one that is there."""
        with self._worded(path):
            self._place(path).parent.mkdir(parents=True, exist_ok=True)
            with open(self._place(path), "wb") as stream:
                for chunk in chunks():
                    stream.write(chunk)
        kept = self.status(path)
        if kept is None or kept.size != size:
            raise StorageError(f"{self.name}: {path}: {kept.size if kept else 0:,} of {size:,} bytes were kept")

    def rename(self, source: str, target: str) -> None:
        """Moves a file or a folder to a path where nothing stands."""
        if self.status(target) is not None:
            raise StorageError(f"{self.name}: {target}: something stands there already")
        with self._worded(source):
            os.rename(self._place(source), self._place(target))

    def delete(self, path: str) -> None:
        """Removes a file, or a folder with all that is in it."""
        place = self._place(path)
        with self._worded(path):
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)

    def mkdirs(self, path: str) -> None:
        """Makes a folder and those above it."""
        with self._worded(path):
            self._place(path).mkdir(parents=True, exist_ok=True)

    def _place(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    @contextlib.contextmanager
    def _worded(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise self._error(path, problem) from None

    def _error(self, path: str, problem: OSError) -> StorageError:
        return StorageError(f"{self.name}: {path}: {problem.strerror or problem}")
