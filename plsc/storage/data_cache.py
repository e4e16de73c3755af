"""A cache of bounded size on a disk of this machine, for files of a store that ranks and runs read again and again.

    <directory>/plsc_data_cache.json        marks the cache, and shows ranks whether they share it
    <directory>/plsc_data_cache.lock        locked by the process that changes something
    <directory>/plsc_data_cache_used.json   the bytes of all files, or more if some were removed since they were counted
    <directory>/plsc_claims/<process>.json  what a process needs; it is locked as long as the process runs
    <directory>/plsc_<hash>/source.json     the folder of the store whose copy this is
    <directory>/plsc_<hash>/files/<name>    its files; all of them are whole
    <directory>/plsc_<hash>/records/<hash>  size, time and digest of each of these files
    <directory>/plsc_<hash>/outline/<name>  empty files that stand for those that are too large to be kept
    <directory>/plsc_<hash>/parts/<hash>    files that are being fetched; each is locked by the process that fetches it

Every change of this is made under the lock of the directory. The claims of all running processes together are at most
the size of the cache, and what a process uses at any time is at most its claim. So there is always room for the next
file, once files that no process uses are removed, and no process waits for another to give up space. Nothing is removed
but files with a record and abandoned parts.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import platform
import posixpath
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from plsc.errors import ConfigError, WrongDataError
from plsc.machine.files import refuse_links, replace_file, sync, write_synced
from plsc.machine.json_files import as_integer, as_object, as_text, json_text, read_json
from plsc.machine.locks import HeldFile, hold_file
from plsc.machine.memory import size_text
from plsc.storage.base import Status, StorageError, StorageUnavailableError, place_of
from plsc.storage.retry import Retrying
from plsc.storage.transfer import Advance, ignore

_MARKER, _CLAIMS = "plsc_data_cache.json", "plsc_claims"
_LOCK, _USED = "plsc_data_cache.lock", "plsc_data_cache_used.json"
_SMALL = 1_000_000  # bytes
_ADVICE = "choose another folder with set_data_cache"


class RemoteFile(NamedTuple):
    """A file of a folder in a store.

    Attributes:
        name: Its path relative to the folder.
        size: Its size in bytes.
        modified: Seconds since 1970 of its last change.
        sha256: What its SHA-256 must be, in hexadecimal; None if that is unknown.
        version: Another one after every change; None where the store knows none but size and time.
    """

    name: str
    size: int
    modified: float
    sha256: Optional[str] = None
    version: Optional[str] = None

    @property
    def state(self) -> tuple[int, float, Optional[str]]:
        """What differs once the file has changed."""
        return self.size, self.modified, self.version

    @property
    def local_time(self) -> int:
        """The time of its copies, in nanoseconds since 1970: that of the file, so that fetching again changes nothing.

        Stores with versions give whole seconds. The digits after them then stand for the version, so that whoever
        compares times notices every change.
        """
        if self.version is None:
            return int(self.modified * 1e9)
        digits = int(hashlib.sha256(self.version.encode()).hexdigest()[:8], 16)
        return int(self.modified) * 10**9 + digits % 10**9


class DataCache:
    """The directory of a cache.

    Args:
        directory: The directory, which is made if it is missing. Files of others in it are left alone and do not count.
        size: The most bytes that the files of the cache may have.

    Attributes:
        identity: Equal for two ranks that see the same directory.

    Raises:
        ConfigError: The directory cannot be written, or its file system has no locks.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self.directory, self.size = directory, size
        with self.worded():
            directory.mkdir(parents=True, exist_ok=True)
        with self.locked(), self.worded():
            (directory / _CLAIMS).mkdir(exist_ok=True)
            if not (directory / _MARKER).exists():
                replace_file(directory / _MARKER, json_text({"cache": secrets.token_hex(16)}).encode())
            try:
                self.identity = as_text(as_object(read_json(directory / _MARKER))["cache"])
            except (ValueError, KeyError):
                raise ConfigError(f"{directory / _MARKER}: is not that of a data cache; {_ADVICE}") from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock of the directory. Raises ConfigError if that is impossible."""
        try:
            lock = hold_file(self.directory / _LOCK, wait=True)
        except OSError as problem:
            raise ConfigError(
                f"{self.directory}: the data cache cannot be locked ({problem.strerror or problem}); {_ADVICE}, on a "
                "local disk"
            ) from None
        assert lock is not None
        try:
            yield
        finally:
            lock.close()

    @contextlib.contextmanager
    def worded(self) -> Iterator[None]:
        """Turns an OSError of the disk into a ConfigError."""
        try:
            yield
        except OSError as problem:
            raise ConfigError(
                f"{problem.filename or self.directory}: the data cache cannot be written "
                f"({problem.strerror or problem}); make room there, or {_ADVICE}"
            ) from None

    def claims(self) -> Iterator[dict[str, Any]]:
        """Yields the claims of the processes that run, and removes the others. Call it under the lock."""
        for path in sorted((self.directory / _CLAIMS).glob("*.json")):
            abandoned = hold_file(path, make=False)
            if abandoned is not None:
                path.unlink()
                abandoned.close()
                continue
            with contextlib.suppress(OSError, ValueError):
                yield as_object(read_json(path))

    def make_claim(self, files: Mapping[str, int], budget: int) -> tuple[HeldFile, dict[str, Any]]:
        """Claims space until the file that it returns is closed.

        Args:
            files: Files that must stay, by their paths in the directory, and their sizes. Several processes may claim
                a file, which counts once.
            budget: Bytes of further files, which the process names in its claim as long as it uses them.

        Raises:
            ConfigError: The cache is too small for what all processes claim.
        """
        with self.locked(), self.worded():
            others = list(self.claims())
            claimed: dict[str, int] = {}
            for one in others:
                claimed.update(one.get("files", {}))
            budgets = sum(one.get("budget", 0) for one in others)
            total = sum({**claimed, **files}.values()) + budgets + budget
            if total > self.size:
                used = sum(claimed.values()) + budgets
                raise ConfigError(
                    f"{self.directory}: the data cache of {size_text(self.size)} is too small: {len(others)} running "
                    f"processes use {size_text(used)} of it, and this one needs {size_text(total - used)}; wait for "
                    "them to end, give a larger size, or choose another folder with set_data_cache"
                )
            name = f"{platform.node()}.{os.getpid()}.{secrets.token_hex(4)}.json"
            held = hold_file(self.directory / _CLAIMS / name)
            assert held is not None  # nobody else can know its name
            claim = {"budget": budget, "files": dict(files), "used": []}
            _rewrite(held, claim)
            return held, claim

    def make_room(self, need: int) -> None:
        """Removes files that no process uses, those that were not used for the longest time first.

        Call it under the lock.

        Args:
            need: Bytes that are about to be added.

        Raises:
            ConfigError: There are not as many bytes in the cache or on the disk.
        """
        free, used = shutil.disk_usage(self.directory).free, self.size
        with contextlib.suppress(OSError, ValueError, KeyError):
            used = as_integer(as_object(read_json(self.directory / _USED))["bytes"])
        if max(used + need - self.size, need - free) > 0:
            used = self._used()
        over = max(used + need - self.size, need - free)
        removed = self._remove(over) if over > 0 else 0
        if removed < over:
            raise ConfigError(
                f"{self.directory}: there is no room in the data cache for another {size_text(need)}: it may have "
                f"{size_text(self.size)}, and its disk has {size_text(free)} free; make room there, or {_ADVICE}"
            )
        # What is removed elsewhere still counts, until there seems to be no room and all files are counted again.
        (self.directory / _USED).write_bytes(json_text({"bytes": used - removed + need}).encode())

    def _remove(self, least: int) -> int:
        """Removes files that no process uses until they had `least` bytes; returns the bytes that they had."""
        kept, removed = self.in_use(), 0
        for record in sorted(self.directory.glob("plsc_*/records/*"), key=lambda path: path.stat().st_mtime):
            folder = record.parent.parent
            with contextlib.suppress(OSError, ValueError, KeyError):
                name = as_text(as_object(read_json(record))["name"])
                if f"{folder.name}/{name}" not in kept and not name.startswith("/") and ".." not in name.split("/"):
                    place = folder / "files" / name
                    size = place.stat().st_size if place.exists() else 0
                    place.unlink(missing_ok=True)
                    removed += size
                    record.unlink()
            if removed >= least:
                break
        return removed

    def in_use(self) -> set[str]:
        """Returns the files that running processes use, by their paths in the directory. Call it under the lock."""
        return {name for claim in self.claims() for name in (*claim.get("files", ()), *claim.get("used", ()))}

    def _used(self) -> int:
        """Returns the bytes of all files, those that are being fetched included; removes abandoned parts."""
        for part in self.directory.glob("plsc_*/parts/*"):
            abandoned = hold_file(part, make=False)
            if abandoned is not None:
                part.unlink()
                abandoned.close()
        used = 0
        for pattern in ("plsc_*/files", "plsc_*/parts"):
            for folder in self.directory.glob(pattern):
                used += _size_of(folder)
        return used


class CachedFolder:
    """The copy of a folder of a store in a cache, with the files that this process has asked for.

    Args:
        cache: The cache.
        store: The store.
        path: The folder in the store.

    Attributes:
        files: The folder of this machine that holds the files.
        outlined: The one that `outline` makes.
    """

    def __init__(self, cache: DataCache, store: Retrying, path: str) -> None:
        self._cache, self._store, self._path = cache, store, path
        source = place_of(store, path.rstrip("/") or "/")
        self._folder = cache.directory / f"plsc_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
        self.files, self.outlined = self._folder / "files", self._folder / "outline"
        self._mutex = threading.Lock()  # of the claim
        self._claims: list[HeldFile] = []
        self._claimed: set[str] = set()
        self._budget: Optional[tuple[HeldFile, dict[str, Any]]] = None
        with cache.worded():
            for one in ("files", "records", "parts"):
                (self._folder / one).mkdir(parents=True, exist_ok=True)
            if not (self._folder / "source.json").exists():
                replace_file(self._folder / "source.json", json_text({"source": source}).encode())

    def claim(self, files: Iterable[RemoteFile], budget: int = 0) -> None:
        """Claims space: `files` stay until `close`, and further files may take `budget` bytes at a time.

        Raises:
            ConfigError: The cache is too small for what all processes claim.
        """
        wanted = {self._key(one): one.size for one in files}
        held, claim = self._cache.make_claim(wanted, budget)
        self._claims.append(held)
        self._claimed.update(wanted)
        if budget:
            self._budget = held, claim

    def is_whole(self, file: RemoteFile) -> bool:
        """Returns whether the cache holds a file as it is in the store now."""
        try:
            record = as_object(read_json(self._record(file)))
            found = (self.files / file.name).stat()
            unchanged = (found.st_size, found.st_mtime_ns) == (file.size, int(as_text(record["local"])))
            if file.sha256 is not None:
                return unchanged and record["sha256"] == file.sha256
            return unchanged and (record["size"], record["modified"], record.get("version")) == file.state
        except (OSError, ValueError, KeyError):
            return False

    def try_fetch(self, file: RemoteFile, advance: Advance = ignore) -> bool:
        """Fetches a file unless it is there already. It is then kept until `release`, or as long as it is claimed.

        Args:
            file: The file.
            advance: Receives the bytes that have arrived.

        Returns:
            False if another process or thread fetches the file, so that this must be called again later.

        Raises:
            StorageError: The store does not give the file.
            WrongDataError: The file has changed in the store, or is damaged.
            ConfigError: The disk cannot take it.
        """
        if self._key(file) in self._claimed and self.is_whole(file):
            return True
        with self._cache.locked(), self._cache.worded():
            if self.is_whole(file):
                os.utime(self._record(file))
                self._use(file, True)
                return True
            part = hold_file(self._part(file))
            if part is None:
                return False
            try:
                self._check_place(file)
                os.ftruncate(part.descriptor, 0)
                self._cache.make_room(file.size)
                os.ftruncate(part.descriptor, file.size)  # what is to come counts from now on
                self._use(file, True)
            except BaseException:
                self._give_up(part)
                raise
        try:
            self._download(file, part, advance)
        except BaseException:
            self._give_up(part)
            self.release(file)
            raise
        part.close()
        return True

    def forget_others(self, names: Container[str], is_read: Callable[[str], bool]) -> None:
        """Removes files that the store no longer has, and that whoever opens the folder would read.

        Args:
            names: Names of the files that the store has, relative to the folder.
            is_read: Returns whether a file of a name would be read.

        Raises:
            ConfigError: A running process uses one of them, or plsc has not fetched it.
        """
        with self._cache.locked(), self._cache.worded():
            others = [name for name in _files_below(self.files) if name not in names and is_read(name)]
            in_use = self._cache.in_use() if others else set()
            for name in others:
                file = RemoteFile(name, 0, 0.0)
                if self._key(file) in in_use:
                    raise ConfigError(
                        f"{self._source(file)}: was removed on the server, and a running process uses its copy "
                        f"{self.files / name}; wait for that process to end"
                    )
                self._check_place(file)

    def outline(
        self, distant: Iterable[RemoteFile], near: Iterable[RemoteFile], is_gone: Callable[[str], bool]
    ) -> Path:
        """Makes a folder with empty files that have the names, sizes and times of files of the store.

        They take no space. What has been derived from a file, and lies next to it, goes once the file has changed.

        Args:
            distant: These files.
            near: Files that have been fetched, which the folder gets links to.
            is_gone: Returns whether the store has no file of a name any more.

        Raises:
            ConfigError: The disk refuses it.
        """
        root = self.outlined
        with self._cache.locked(), self._cache.worded():
            for file in distant:
                place = root / file.name
                if not _is_outline(place, file):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    for old in (place, *place.parent.glob(f".{glob.escape(place.name)}.*"), place.with_suffix(".idx")):
                        old.unlink(missing_ok=True)
                    with open(place, "wb", opener=refuse_links) as stream:
                        os.ftruncate(stream.fileno(), file.size)
                        os.utime(stream.fileno(), ns=(time.time_ns(), file.local_time))
            for file in near:
                place, target = root / file.name, str(self.files / file.name)
                if not place.is_symlink() or os.readlink(place) != target:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    new = place.with_name(f".{place.name}.link")
                    new.unlink(missing_ok=True)
                    new.symlink_to(target)
                    new.replace(place)  # at once, since another process may read it
            for name in _files_below(root):
                place = root / name
                is_made = name.endswith(".idx") and place.with_suffix(".rec").exists() and not place.is_symlink()
                if not is_made and not place.name.startswith(".") and is_gone(name):
                    place.unlink()
        return root

    def release(self, file: RemoteFile) -> None:
        """Says that this process does not use a file any more. It stays until its space is needed."""
        with self._cache.locked(), self._cache.worded():
            self._use(file, False)

    def close(self) -> None:
        """Gives up all claims."""
        for claim in self._claims:
            with contextlib.suppress(OSError):
                claim.path.unlink(missing_ok=True)
            claim.close()
        self._claims, self._claimed = [], set()

    def _use(self, file: RemoteFile, now: bool) -> None:
        """Notes in the claim with a budget that this process uses a file, or does so no longer."""
        with self._mutex:
            key = self._key(file)
            if self._budget is None or key in self._claimed:
                return
            held, claim = self._budget
            if held in self._claims and (key in claim["used"]) != now:
                claim["used"] = [one for one in claim["used"] if one != key] + ([key] if now else [])
                _rewrite(held, claim)

    def _check_place(self, file: RemoteFile) -> None:
        """Raises ConfigError if something that this cache has not made has the name of a file; removes an old one."""
        place, record = self.files / file.name, self._record(file)
        if os.path.lexists(place) and not record.exists():
            raise ConfigError(f"{place}: is in the data cache, but plsc has not fetched it; move it away")
        place.unlink(missing_ok=True)
        record.unlink(missing_ok=True)

    def _download(self, file: RemoteFile, part: HeldFile, advance: Advance) -> None:
        """Fills a part with the bytes of a file, and gives it its name."""
        if file.size > _SMALL:  # it would be a pity to fetch all of it in vain
            self.check_unchanged(file)
        for last in (False, True):
            try:
                digest = self._copy(file, part, advance)
            except StorageError as problem:
                if not isinstance(problem, StorageUnavailableError):
                    self.check_unchanged(file)  # whose message says more if the file was removed
                raise
            if file.sha256 in (None, digest):
                break
            self.check_unchanged(file)
            advance(-file.size)
            if last:  # a second time, which rules out an error of the transfer
                raise WrongDataError(
                    f"{self._source(file)}: its sha256 differs from the manifest; the file on the server is damaged, "
                    "write it there again"
                )
        self.check_unchanged(file)
        with self._cache.worded():
            os.utime(part.descriptor, ns=(time.time_ns(), file.local_time))
            os.fsync(part.descriptor)
            place, found = self.files / file.name, os.fstat(part.descriptor)
            place.parent.mkdir(parents=True, exist_ok=True)
            record = {"name": file.name, "size": file.size, "modified": file.modified, "sha256": digest}
            record["version"] = file.version
            # The record comes first, so that every file has one. Its process claims the file, so that both stay. A
            # record that a kill cuts off counts as none.
            write_synced(self._record(file), json_text({**record, "local": str(found.st_mtime_ns)}).encode())
            sync(self._record(file).parent)
        with self._cache.locked(), self._cache.worded():
            os.rename(part.path, place)

    def _copy(self, file: RemoteFile, part: HeldFile, advance: Advance) -> str:
        """Copies the bytes of a file to a part; returns their SHA-256."""
        digest, done = hashlib.sha256(), 0
        for chunk in self._store.read(posixpath.join(self._path, file.name), 0, file.size):
            digest.update(chunk)
            with self._cache.worded():
                view = memoryview(chunk)
                while len(view):
                    count = os.pwrite(part.descriptor, view, done)
                    view, done = view[count:], done + count
            advance(len(chunk))
        return digest.hexdigest()

    def check_unchanged(self, file: RemoteFile) -> None:
        """Raises WrongDataError if a file is not in the store as it was when its folder was listed."""
        found: Optional[Status] = self._store.status(posixpath.join(self._path, file.name))
        if found is None or not found.is_file or (found.size, found.modified, found.version) != file.state:
            what = "was removed" if found is None else "has changed"
            raise WrongDataError(
                f"{self._source(file)}: {what} on the server since this run listed the folder; leave the data alone "
                "while it is read, and start again"
            )

    def _source(self, file: RemoteFile) -> str:
        return place_of(self._store, posixpath.join(self._path, file.name))

    def _give_up(self, part: HeldFile) -> None:
        with contextlib.suppress(OSError):
            part.path.unlink()
        part.close()

    def _key(self, file: RemoteFile) -> str:
        return f"{self._folder.name}/{file.name}"

    def _record(self, file: RemoteFile) -> Path:
        return self._folder / "records" / _name_of(file)

    def _part(self, file: RemoteFile) -> Path:
        return self._folder / "parts" / _name_of(file)


def is_copy(path: str) -> bool:
    """Returns whether a path is in the copy of a folder of a store, into which nothing goes but what is fetched."""
    folders = (one for one in (Path(path), *Path(path).parents) if one.name == "files")
    return any(one.parent.name.startswith("plsc_") and (one.parent / "source.json").exists() for one in folders)


def _name_of(file: RemoteFile) -> str:
    return hashlib.sha256(file.name.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _files_below(folder: Path) -> list[str]:
    """Returns the paths of all files in a folder and in those below it, relative to it, sorted."""
    found = []
    for place, _, names in os.walk(folder):
        inner = os.path.relpath(place, folder)
        found += names if inner == "." else [f"{inner}/{name}" for name in names]
    return sorted(found)


def _is_outline(place: Path, file: RemoteFile) -> bool:
    """Returns whether a path is the empty file that stands for a file of the store, as it is there now."""
    try:
        found = place.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and (found.st_size, found.st_mtime_ns) == (file.size, file.local_time)


def _size_of(folder: Union[str, Path]) -> int:
    """Returns the bytes of all files in a folder and in those below it."""
    size = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # a process gives up a part without the lock
                if entry.is_dir(follow_symlinks=False):
                    size += _size_of(entry.path)
                else:
                    size += entry.stat(follow_symlinks=False).st_size
    return size


def _rewrite(held: HeldFile, claim: Mapping[str, Any]) -> None:
    """Writes a claim into its file. No process reads it meanwhile, because both are done under the lock."""
    data = json_text(claim).encode()
    os.ftruncate(held.descriptor, 0)
    os.pwrite(held.descriptor, data, 0)
