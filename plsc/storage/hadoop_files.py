"""Files on HDFS, or wherever else Hadoop can go, by way of the Java of a Spark driver."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any

from plsc.errors import DataError
from plsc.storage.local_files import Status


class HadoopFiles:
    """The `Files` of a Spark context; paths are URIs such as hdfs://host:9000/folder/file."""

    def __init__(self, context: Any) -> None:
        self._java = context._jvm
        self._configuration = context._jsc.hadoopConfiguration()

    def is_folder(self, path: str) -> bool:
        """See `Files`."""
        system, place = self._at(path)
        with _os_errors(path):
            return system.exists(place) and system.getFileStatus(place).isDirectory()

    def exists(self, path: str) -> bool:
        """See `Files`."""
        system, place = self._at(path)
        with _os_errors(path):
            return system.exists(place)

    def status(self, path: str) -> Status:
        """See `Files`."""
        system, place = self._at(path)
        with _os_errors(path):
            found = system.getFileStatus(place)
            identity = str(found.getPath().toString())
            return Status(identity, found.isFile(), found.getLen(), found.getModificationTime())

    def read(self, path: str) -> bytes:
        """See `Files`."""
        system, place = self._at(path)
        with _os_errors(path):
            stream = system.open(place)
            try:
                return bytes(self._java.org.apache.commons.io.IOUtils.toByteArray(stream))
            finally:
                stream.close()

    def write(self, path: str, data: bytes) -> None:
        """See `Files`."""
        system, place = self._at(path)
        try:
            with _os_errors(path):
                stream = system.create(place, True)
                stream.write(bytearray(data))
                stream.hsync()
                stream.close()
        except OSError as error:
            raise DataError(
                f"{path}: cannot write ({error.strerror}); check the space, quota and permissions"
            ) from error

    def rename(self, source: str, target: str) -> None:
        """See `Files`. What is at `target` is removed first: Hadoop replaces nothing."""
        self.remove(target)
        system, place = self._at(source)
        with _os_errors(source):
            if not system.rename(place, self._at(target)[1]):
                raise OSError(errno.EIO, f"cannot be renamed to {target}", source)

    def remove(self, path: str) -> None:
        """See `Files`."""
        system, place = self._at(path)
        with _os_errors(path):
            system.delete(place, False)

    def remove_folder(self, path: str) -> None:
        """See `Files`."""
        system, place = self._at(path)
        with contextlib.suppress(OSError), _os_errors(path):
            system.delete(place, True)

    def sync(self, folder: str) -> None:
        """Nothing to do: names last once the name node has answered."""

    def free(self, folder: str) -> int:
        """See `Files`."""
        system, place = self._at(folder)
        with _os_errors(folder):
            return system.getStatus(place).getRemaining()

    def make_folder(self, path: str) -> None:
        """Makes a folder, and those it is in."""
        system, place = self._at(path)
        with _os_errors(path):
            system.mkdirs(place)

    def names(self, folder: str) -> list[str]:
        """What is in a folder."""
        system, place = self._at(folder)
        with _os_errors(folder):
            return [entry.getPath().getName() for entry in system.listStatus(place)]

    def _at(self, path: str) -> tuple[Any, Any]:
        with _os_errors(path):
            place = self._java.org.apache.hadoop.fs.Path(path)
            return place.getFileSystem(self._configuration), place


@contextlib.contextmanager
def _os_errors(path: str) -> Iterator[None]:
    """Turns an exception of Java into the OSError that Python would have raised."""
    from py4j.protocol import Py4JJavaError

    try:
        yield
    except Py4JJavaError as error:
        kind = error.java_exception.getClass().getSimpleName()
        if kind == "FileNotFoundException":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
        raise OSError(errno.EIO, java_message(error), path) from error


def java_message(error: Any) -> str:
    """The line that says most of what is at the bottom of an exception of Java."""
    cause = error.java_exception
    while cause.getCause() is not None:
        cause = cause.getCause()
    kind = cause.getClass().getSimpleName()
    lines = [line for line in str(cause.getMessage()).splitlines() if line.strip()] or [""]
    return lines[-1] if kind == "PythonException" else f"{kind}: {lines[0]}"
