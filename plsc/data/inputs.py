"""What commands read from stores: an address becomes a path of this machine, whose files the data cache keeps.

Whatever takes a path can so take an address. Its files are fetched before they are read, and stay claimed until the
inputs are closed. Of data that is larger than the cache, split base64 data is read file by file instead, and images,
tars, Parquet and RecordIO files are read in place.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Optional

from plsc.data.base64_parts import FILE_LIST_NAME, MANIFEST_NAME
from plsc.data.distant import DistantFolder, is_distant, mount
from plsc.data.image_folders import has_image_suffix, may_be_image
from plsc.data.image_lists import columns_of, read_list
from plsc.data.place import Place
from plsc.data.records import Records
from plsc.data.remote_folder import DATA, PATTERN, RemoteFolder, belongs, size_of
from plsc.data.shard_files import SUBFOLDERS
from plsc.errors import ConfigError, DataError, PlscError, counted
from plsc.machine.logs import reworded
from plsc.machine.memory import size_text
from plsc.storage.address import check_path, is_address

_LABELS = "label.txt"
_PARTS = ("file_list.txt", FILE_LIST_NAME)  # lists of base64 parts
_CONTAINERS = ("auto", "recordio", "tar", "parquet")
_PAIR_FOLDERS = ("", "images/", "lfw/")  # where the images of a pairs file may be
_MOST_SINGLE = 200_000  # image files, each of which costs three requests and a record in the cache


class Inputs:
    """Addresses that a command reads, and the paths of this machine that stand for them. Ordinary paths stay the same.

    At the end of a `with` block the space in the cache is given up. An error of the block, and what the block logs,
    name the address in place of the path.

    Args:
        place_of: Returns where an address is and which cache keeps its files.
        rank: Rank of this process; all ranks fetch the same files, and share the work.
        world_size: Number of ranks.
        working: `parallel.working` where the ranks wait for each other, which may take longer than they do.
    """

    def __init__(
        self,
        place_of: Callable[[str], Place],
        rank: int = 0,
        world_size: int = 1,
        working: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self._place_of, self._rank, self._world_size, self._working = place_of, rank, world_size, working
        self._stop = threading.Event()
        self._opened: dict[str, RemoteFolder] = {}
        self._distant: dict[str, DistantFolder] = {}  # data that is read in place
        self._mounted: list[DistantFolder] = []  # more of them, if an address is asked for in several ways
        self._streamed: list[Records] = []
        self._reworded = reworded(self.named)

    def __enter__(self) -> Inputs:
        self._reworded.__enter__()
        return self

    def __exit__(self, kind: Any, problem: Optional[BaseException], trace: Any) -> None:
        try:
            self._reworded.__exit__(kind, problem, trace)
        finally:
            self.close()

    def close(self) -> None:
        """Gives up the space in the cache. The files stay there until others need it."""
        self._stop.set()
        for records in self._streamed:
            records.close()
        for distant in self._mounted:
            distant.close()
        for remote in self._opened.values():
            remote.copy.close()

    def named(self, text: str) -> str:
        """Returns a text with addresses in place of the paths that stand for them."""
        for remote in list(self._opened.values()):  # another thread may log something meanwhile
            text = remote.named(text)
        return text

    def data(self, path: str, data_format: str = "auto") -> str:
        """Fetches a data set in any format that plsc reads, also base64 parts that are not split.

        Args:
            path: A folder, a file, a pattern of files, or the address of one.
            data_format: Its format, as in `set_data_format`.

        Raises:
            ConfigError: The cache is too small, or cannot be written.
            DataError: The address names no such data, or a file has changed meanwhile.
            StorageError: The store does not answer, or refuses.
        """
        return self._local(path, lambda remote: _of_data(remote, data_format), in_place=True)

    def images(self, path: str) -> str:
        """Fetches images to embed or to test on: whatever `open_collection` takes, or a test set. See `data`."""
        return self._local(path, lambda remote: _of_data(remote, "auto", lists_first=True), in_place=True)

    def file(self, path: str) -> str:
        """Fetches a single file. See `data`."""
        return self._local(path, _of_file)

    def some_of(self, path: str, names: Sequence[str]) -> str:
        """Fetches those files of a folder that it still has; returns its path, or '' if the store does not give them.

        It is for what is shown in addition, and can be missing.
        """
        try:
            return self._local(path, lambda remote: [name for name in names if remote.has(name)])
        except PlscError:
            return ""

    def test_sets(self, path: str, targets: str) -> str:
        """Fetches the test sets of a data set, and returns the folder that holds them. See `data`.

        Args:
            path: The data set: a folder, or a file or a pattern of files in it.
            targets: Names of the sets, separated by commas.
        """
        wanted = [target.strip() for target in targets.split(",") if target.strip()]
        found = self._local(path, lambda remote: [name for one in wanted for name in _of_test(remote, one)])
        return found if found == path else str(self._opened[path].copy.files)

    def in_order(self, path: str, data_format: str) -> Optional[Records]:
        """Opens split base64 data that is larger than the cache, to be read in the order of its files.

        Returns:
            The data; None if it is on this machine, fits into the cache, or is something else.
        """
        if not is_address(path) or data_format not in ("auto", "base64"):
            return None
        remote = self._open(path)
        if remote.name or MANIFEST_NAME not in remote.found:
            return None
        if size_of(map(remote.file, _of_split(remote))) <= remote.cache.size:
            return None
        from plsc.data.remote import open_in_order  # imports Paddle

        streamed = open_in_order(remote, self._stop)
        self._streamed.append(streamed)
        return streamed

    def path_of(self, path: str) -> str:
        """Returns the path of this machine that stands for what one of the other methods has fetched."""
        if path in self._distant:
            return os.path.join(self._distant[path].root, self._opened[path].name)
        return self._opened[path].path if path in self._opened else path

    def _open(self, path: str) -> RemoteFolder:
        if path not in self._opened:
            self._opened[path] = RemoteFolder(self._place_of(path), self._stop)
        return self._opened[path]

    def _local(self, path: str, choose: Callable[[RemoteFolder], Iterable[str]], in_place: bool = False) -> str:
        if not is_address(path):
            check_path("address", path)
            return path
        with self._working():
            remote = self._open(path)
            names = dict.fromkeys(choose(remote))
            files = [remote.file(name) for name in names]
            _check_number(remote, files)
            if in_place and size_of(files) > remote.cache.size and any(is_distant(file.name) for file in files):
                self._mounted.append(mount(remote, files, self._stop, self._working))
                self._distant[path] = self._mounted[-1]
                return self.path_of(path)
            _check_size(remote, files)
            remote.keep(files, begin=len(files) * self._rank // self._world_size)
            remote.forget_others()
        return remote.path


def _check_size(remote: RemoteFolder, files: Sequence[Any]) -> None:
    """Raises ConfigError if files are too many, or have more bytes than the cache."""
    size = size_of(files)
    if size > remote.cache.size:
        raise ConfigError(
            f"{remote.where()}: {counted(len(files), 'file')} with {size_text(size)} are needed at the same time, and "
            f"the data cache {remote.cache.directory} may have {size_text(remote.cache.size)}; give set_data_cache a "
            "larger size, as in --set data_cache='[/ssd/cache, 500GB]'"
        )


def _check_number(remote: RemoteFolder, files: Sequence[Any]) -> None:
    """Raises ConfigError if files are too many."""
    if len(files) > _MOST_SINGLE and any(has_image_suffix(file.name) for file in files):
        raise ConfigError(
            f"{remote.where()}: {counted(len(files), 'file')} are too many to be fetched one by one; copy them with "
            f"plsc fs get {remote.place.address.text} FOLDER, and give FOLDER here"
        )


def _of_data(remote: RemoteFolder, data_format: str, lists_first: bool = False) -> Iterable[str]:
    """Returns the names of the files that whoever opens a data set, or a collection of images, would read."""
    if remote.name:
        return _of_name(remote)
    found = remote.found
    lists = [name for name in _PARTS if name in found]
    if MANIFEST_NAME in found and data_format in ("auto", "base64") and not (lists_first and lists):
        return _of_split(remote)
    if _LABELS in found and data_format in ("auto", "jpeg"):
        return _of_list(remote, _LABELS)
    if lists and (data_format == "base64" or lists_first):
        return _of_list(remote, lists[0])
    if data_format in _CONTAINERS:
        names = [name for name in found if belongs(name, "")]
        folders = (one for one in SUBFOLDERS if one in remote.folders)
        while not _has_data(names) and (folder := next(folders, None)):
            names = [name for name in remote.below(folder) if belongs(posixpath.basename(name), "")]
        if _has_data(names):
            return names
    if lists and data_format == "auto":
        return _of_list(remote, lists[0])
    names = [name for name in remote.below("") if may_be_image(name)] if data_format in ("auto", "folder") else []
    if not names:
        raise DataError(
            f"{remote.where()}: holds no data that plsc can read: neither images, nor a {_LABELS} or a list of base64 "
            f"parts, nor files that end in {', '.join(DATA)}; check the address"
        )
    return [*remote.class_lists, *names]


def _of_file(remote: RemoteFolder) -> list[str]:
    if not remote.name or not remote.has(remote.name):
        raise DataError(f"{remote.where()}: is no file; name a single one")
    return [remote.name]


def _of_name(remote: RemoteFolder) -> Iterable[str]:
    """Returns the files that belong to a file or to a pattern."""
    name = remote.name
    if name.lower().endswith(DATA) or PATTERN.search(name):
        return [one for one in remote.found if belongs(one, name)]
    if name.endswith(".bin") or has_image_suffix(name):
        return [name]
    return _of_list(remote, name)


def _of_split(remote: RemoteFolder) -> list[str]:
    """Returns the files of base64 data that is split for the ranks."""
    return [name for name in remote.found if name.startswith("base64_")] + remote.class_lists


def _of_test(remote: RemoteFolder, target: str) -> Iterable[str]:
    """Returns the files of a test set, which is named as in `set_val_targets`.

    Raises:
        DataError: There is none.
    """
    folder, stem = posixpath.split(target)
    known = remote.below(folder) if folder else list(remote.found)
    for end in (".bin", ".txt"):
        name = target if target.endswith(end) else f"{target}{end}"
        if name in known:
            return [name] if end == ".bin" else _of_list(remote, name)
    if folder or stem in remote.folders:
        names = [name for name in remote.below(target) if may_be_image(name) or name.endswith(".txt")]
        if names:
            return names
    raise DataError(
        f"{remote.where(f'{target}.bin')}: no such test set, nor {target}.txt, nor a folder of images {target}; write "
        "it there, name others with set_val_targets (--targets in plsc test), or train without a test with "
        "set_with_test(False)"
    )


def _of_list(remote: RemoteFolder, name: str) -> Iterable[str]:
    """Returns a list, the files that it names, and the names of the classes. Fetches the list to read it."""
    file = remote.file(name)
    _check_size(remote, [file])
    remote.keep([file])
    folder = posixpath.dirname(name)
    below = {posixpath.relpath(one, folder) if folder else one: one for one in remote.below(folder)}
    listed = [below[one] for one in _named(read_list(remote.copy.files / name), below)]
    return [name, *remote.class_lists, *listed]


def _named(lines: Iterable[tuple[int, bytes]], files: Mapping[str, Any]) -> Iterator[str]:
    """Yields the files that the lines of a list name, of whatever kind: images, base64 parts, or pairs.

    A line that names no file may name folders, each of which stands for its images.
    """
    folders: dict[str, list[str]] = {}
    for name in files:
        parent = posixpath.dirname(name)
        while parent:
            folders.setdefault(parent, []).append(name)
            parent = posixpath.dirname(parent)
    for _, line in lines:
        words = [os.fsdecode(line.strip()), *columns_of(line), *columns_of(line, -1)]
        words = list(dict.fromkeys(posixpath.normpath(word) for word in words if word))
        names = [word for word in words if word in files]
        yield from names
        if not names:
            places = (start + word for word in words for start in _PAIR_FOLDERS)
            yield from (name for place in places for name in folders.get(place, ()) if may_be_image(name))


def _has_data(names: Iterable[str]) -> bool:
    return any(name.lower().endswith(DATA) for name in names)
