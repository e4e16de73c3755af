"""HDFS, or any other file system that Hadoop knows, through the Java process of a Spark driver."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Optional

from plsc.storage.base import CHUNK_BYTES, Chunks, Status, StorageError, check_absent, check_names, missing, place_of


class HadoopStorage:
    """A `DurableStorage` of a Spark context; paths are URIs such as hdfs://host:9000/folder/file.

    Hadoop's own client waits for servers and tries again, so that an error here is final.
    """

    name = ""  # the paths say it all

    def __init__(self, context: Any) -> None:
        self._java = context._jvm
        self._configuration = context._jsc.hadoopConfiguration()

    def status(self, path: str) -> Optional[Status]:
        """Returns the status of a path, or None if nothing has that name."""
        from py4j.protocol import Py4JJavaError

        system, place = self._at(path)
        with self._worded(path):
            try:
                return _status(system.getFileStatus(place))
            except Py4JJavaError as error:
                if _is_missing(error):
                    return None
                raise

    def list(self, path: str) -> dict[str, Status]:
        """Returns the names in a folder with their status."""
        system, place = self._at(path)
        with self._worded(path):
            found = {entry.getPath().getName(): _status(entry) for entry in system.listStatus(place)}
        check_names(self, path, found)
        return found

    def read(self, path: str, offset: int, count: int) -> Iterator[bytes]:
        """Yields `count` bytes from `offset` on in parts; fewer if the file ends."""
        system, place = self._at(path)
        commons = self._java.org.apache.commons.io
        with self._worded(path):
            stream = system.open(place)
            try:
                stream.seek(offset)
                while count:
                    part = commons.IOUtils.toByteArray(
                        commons.input.BoundedInputStream(stream, min(count, CHUNK_BYTES))
                    )
                    if not part:
                        return
                    count -= len(part)
                    yield bytes(part)
            finally:
                stream.close()

    def write(self, path: str, chunks: Chunks, size: int) -> None:
        """Makes a file, whose bytes outlast a power cut, and the folders above it; replaces a file of that name."""
        system, place = self._at(path)
        kept = 0
        with self._worded(path):
            stream = system.create(place, True)
            try:
                for chunk in chunks():
                    stream.write(bytearray(chunk))
                    kept += len(chunk)
                stream.hsync()
            finally:
                stream.close()
        if kept != size:
            raise StorageError(f"{path}: {kept:,} bytes were written instead of {size:,}")

    def rename(self, source: str, target: str) -> None:
        """Moves a file or a folder to a path that nothing has yet."""
        check_absent(self, target)
        system, place = self._at(source)
        with self._worded(source):
            if not system.exists(place):
                raise missing(self, source)
            if not system.rename(place, self._at(target)[1]):
                raise StorageError(f"{source}: cannot be renamed to {target}", f"cannot be renamed to {target}")

    def delete(self, path: str) -> None:
        """Removes a file, or a folder with everything in it; does nothing if the path is missing."""
        system, place = self._at(path)
        with self._worded(path):
            system.delete(place, True)

    def mkdirs(self, path: str) -> None:
        """Makes a folder and those above it, unless they exist."""
        system, place = self._at(path)
        with self._worded(path):
            system.mkdirs(place)

    def sync(self, path: str) -> None:
        """Does nothing: a name is durable once the NameNode has answered."""

    def free(self, folder: str) -> int:
        """Returns the free space of the file system that holds a folder, in bytes."""
        system, place = self._at(folder)
        with self._worded(folder):
            return system.getStatus(place).getRemaining()

    def _at(self, path: str) -> tuple[Any, Any]:
        """Returns Hadoop's file system for a path, and its form of the path."""
        with self._worded(path):
            place = self._java.org.apache.hadoop.fs.Path(path)
            return place.getFileSystem(self._configuration), place

    @contextlib.contextmanager
    def _worded(self, path: str) -> Iterator[None]:
        from py4j.protocol import Py4JJavaError

        try:
            yield
        except Py4JJavaError as error:
            if _is_missing(error):
                raise missing(self, path) from error
            reason = java_message(error)
            raise StorageError(f"{place_of(self, path)}: {reason}", reason) from error


def _status(found: Any) -> Status:
    return Status(
        size=found.getLen() if found.isFile() else 0,
        is_folder=found.isDirectory(),
        modified=found.getModificationTime() / 1000,
        identity=str(found.getPath().toString()),
        is_special=not (found.isFile() or found.isDirectory()),
    )


def _is_missing(error: Any) -> bool:
    return error.java_exception.getClass().getSimpleName() == "FileNotFoundException"


def java_message(error: Any) -> str:
    """Returns the most telling line of a Java exception: that of the exception at the bottom."""
    cause = error.java_exception
    while cause.getCause() is not None:
        cause = cause.getCause()
    kind = cause.getClass().getSimpleName()
    lines = [line for line in str(cause.getMessage()).splitlines() if line.strip()] or [""]
    return lines[-1] if kind == "PythonException" else f"{kind}: {lines[0]}"
