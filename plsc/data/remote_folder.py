"""A folder of a store with data: what it holds, and the copies of its files in the cache of this machine."""

from __future__ import annotations

import fnmatch
import functools
import glob
import itertools
import logging
import posixpath
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Optional

from plsc.data.class_names import CLASSES
from plsc.data.fetched import STREAMS, Progress
from plsc.data.place import Place
from plsc.data.shard_files import MOST_FILES, without_braces
from plsc.errors import DataError, counted
from plsc.machine.memory import size_text
from plsc.storage.base import Status, StorageError, missing, place_of
from plsc.storage.data_cache import CachedFolder, DataCache, RemoteFile
from plsc.storage.login import open_address
from plsc.storage.transfer import each, tree
from plsc.storage.working import converting

logger = logging.getLogger("plsc")

_POLL_SECONDS = 0.25
_SMALL, _SMALL_STREAMS = 1_000_000, 16  # of small files more are fetched at a time
PATTERN = re.compile(r"[*?\[{]")
# What data sets are made of. Anything else in a folder of a server is left there.
DATA, TEXTS = (".tar", ".parquet", ".rec", ".idx"), (".lst", ".json")
NAMES = ("property", CLASSES)


class RemoteFolder:
    """The folder of a store around what an address names, and its copy in the cache.

    Args:
        place: The address: that of a folder, a file, or a pattern of files.
        stop: Ends what waits for the store.

    Attributes:
        folder: Path of the folder in the store.
        name: Name of the file, or the pattern; '' for the folder itself.

    Raises:
        DataError: There is no such file or folder.
        StorageError: The store does not answer, or refuses.
    """

    def __init__(self, place: Place, stop: threading.Event) -> None:
        self.place, self._stop = place, stop
        self.store = open_address(place.address, place.login, stop)
        path = place.address.path
        found = self.store.status(path)
        self._known: dict[str, Status] = {}  # files that are not in the list of the folder, or without it
        self._walked: dict[str, dict[str, Status]] = {}
        if found is not None and found.is_folder:
            self.folder, self.name = path, ""
        else:
            self.folder, self.name = posixpath.split(path)
            if found is None and not PATTERN.search(self.name):
                raise DataError(str(missing(self.store, path)))
            if found is not None:
                self._known[self.name] = found
        if not self.store.renames and self.store.status(converting(self.folder)) is not None:
            raise DataError(f"{self.where()}: plsc data convert has not finished it; run that command again")
        self.cache = DataCache(place.cache_dir, place.cache_size)
        self.copy = CachedFolder(self.cache, self.store, self.folder)

    @functools.cached_property
    def _listed(self) -> dict[str, Status]:
        return self.store.list(self.folder)

    @functools.cached_property
    def found(self) -> dict[str, Status]:
        """The files in the folder, by name."""
        return {name: one for name, one in self._listed.items() if one.is_file}

    @functools.cached_property
    def folders(self) -> list[str]:
        """The names of the folders in the folder."""
        return [name for name, one in self._listed.items() if one.is_folder]

    @property
    def class_lists(self) -> list[str]:
        """The name of the list of classes in the folder, if there is one."""
        return [CLASSES] if CLASSES in self.found else []

    def below(self, inner: str) -> list[str]:
        """Returns the files below a folder in this one, by their paths relative to this one."""
        if inner not in self._walked:
            files = tree(self.store, posixpath.join(self.folder, inner) if inner else self.folder)
            self._walked[inner] = {posixpath.join(inner, name): one for name, one in files.items() if one.is_file}
            self._known.update(self._walked[inner])
        return list(self._walked[inner])

    def has(self, name: str) -> bool:
        """Returns whether the store has a file, without a list of its folder."""
        if name not in self._known:
            found = self.store.status(posixpath.join(self.folder, name))
            if found is None or not found.is_file:
                return False
            self._known[name] = found
        return True

    def where(self, name: str = "") -> str:
        """Returns what messages call the data set, or a file of it."""
        return place_of(self.store, posixpath.join(self.place.address.path, name) if name else self.place.address.path)

    def named(self, text: str) -> str:
        """Returns a text with addresses in place of the paths of copies, or of the files that stand for them."""
        for folder in (self.copy.files, self.copy.outlined):
            text = text.replace(str(folder), f"{self.place.address.server}{self.folder}")
        return text

    @property
    def path(self) -> str:
        """The path of the data set on this machine."""
        return str(self.copy.files / self.name)

    def file(self, name: str, sha256: Optional[str] = None) -> RemoteFile:
        """Returns a file of the folder, or of one below it that has been listed."""
        status = self._known[name] if name in self._known else self.found[name]
        return RemoteFile(name, status.size, status.modified, sha256, status.version)

    def keep(self, files: Sequence[RemoteFile], begin: int = 0) -> None:
        """Claims files until `copy.close`, fetches those that are missing, and waits for those that others fetch.

        Args:
            files: The files.
            begin: The file to begin with, so that ranks share the work.

        Raises:
            ConfigError: The cache is too small, or cannot be written.
            StorageError: The store does not give them.
            WrongDataError: A file has changed.
        """
        self.copy.claim(files)
        self.fetch_all(files, begin)

    def forget_others(self) -> None:
        """Removes copies of files that the store no longer has, in the folders that have been listed.

        Raises:
            ConfigError: A running process uses one of them.
        """
        listed = {"": self.found} if "_listed" in self.__dict__ else {}
        for inner, names in {**listed, **self._walked}.items():
            is_deep = inner in self._walked
            start = f"{inner}/" if inner else ""

            def is_read(name: str, start: str = start, is_deep: bool = is_deep) -> bool:
                return name.startswith(start) and (is_deep or "/" not in name)

            self.copy.forget_others(names, is_read)

    def is_gone(self, name: str) -> bool:
        """Returns whether the store has no file of a name, as far as its folder has been listed."""
        is_listed = "_listed" in self.__dict__
        if name in self._known or (is_listed and name in self.found):
            return False
        return (is_listed and "/" not in name) or any(
            not inner or name.startswith(f"{inner}/") for inner in self._walked
        )

    def fetch_all(self, files: Sequence[RemoteFile], begin: int = 0) -> None:
        """Fetches files that are claimed, except for those that other ranks of this machine fetch: waits for these.

        Args:
            files: The files.
            begin: The file to begin with, so that ranks share the work.
        """
        left = [*files[begin:], *files[:begin]]
        total = sum(file.size for file in files if not self.copy.is_whole(file))
        if not total:
            return
        logger.info(
            "fetching %s (%s) of %s to %s",
            counted(len(files), "file"),
            size_text(total),
            self.where(),
            self.cache.directory,
        )
        progress = Progress(self.where(), total)
        while left:
            done: set[str] = set()

            def fetch(file: RemoteFile) -> None:
                if self.copy.try_fetch(file, progress.add):
                    done.add(file.name)  # noqa: B023 - it is called at once

            streams = STREAMS if total > _SMALL * len(files) else _SMALL_STREAMS
            each(self.store, fetch, [(file,) for file in left], streams)
            left = [file for file in left if file.name not in done]
            if left and self._stop.wait(_POLL_SECONDS):
                raise StorageError(f"{self.where()}: stopped")
        logger.info("%s; all of them are whole", progress.line())


def open_folder(place: Place, stop: threading.Event) -> RemoteFolder:
    """Opens the folder of a data set, and lists its files."""
    folder = RemoteFolder(place, stop)
    folder.found  # noqa: B018 - it is listed now, where all ranks learn of an error
    return folder


def size_of(files: Iterable[RemoteFile]) -> int:
    """Returns the bytes of some files."""
    return sum(file.size for file in files)


def belongs(name: str, wanted: str) -> bool:
    """Returns whether a file of a folder belongs to its data set, or to the part of it that a name or pattern names."""
    if name in NAMES or name == wanted:
        return True
    if not name.lower().endswith((*DATA, *TEXTS)):
        return False
    if not PATTERN.search(wanted):
        return not wanted or name.startswith(posixpath.splitext(wanted)[0] + ".")
    stem, is_named = posixpath.splitext(name)[0], _matcher(wanted)
    return is_named(name) or any(is_named(stem + end) for end in DATA)


@functools.lru_cache(maxsize=16)
def _matcher(pattern: str) -> Callable[[str], bool]:
    """Returns a function that returns whether a pattern names a file."""
    names = list(itertools.islice(without_braces(pattern), MOST_FILES))
    patterns = [name for name in names if glob.has_magic(name)]
    plain = frozenset(names)
    return lambda name: name in plain or any(fnmatch.fnmatchcase(name, one) for one in patterns)
