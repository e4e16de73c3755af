"""What commands read from stores: an address becomes a path of this machine, whose files the data cache keeps.

Whatever takes a path can so take an address. Its files are fetched before they are read, and stay claimed until the
inputs are closed. Of data that is larger than the cache, split base64 data is read file by file instead, and images,
tars, Parquet and RecordIO files are read in place.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Optional

from plsc.data.base64_parts import MANIFEST_NAME
from plsc.data.distant import DistantFolder, is_distant, mount
from plsc.data.place import Place
from plsc.data.records import Records
from plsc.data.remote_folder import RemoteFolder, size_of
from plsc.data.store_files import NoSuchSetError, check_number, check_size, of_data, of_file, of_split, of_test
from plsc.data.test_sets import has_set
from plsc.errors import PlscError
from plsc.machine.logs import reworded
from plsc.storage.address import check_path, is_address


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
        return self._local(path, lambda remote: of_data(remote, data_format), in_place=True)

    def images(self, path: str) -> str:
        """Fetches images to embed or to test on: whatever `open_collection` takes, or a test set. See `data`."""
        return self._local(path, lambda remote: of_data(remote, "auto", lists_first=True), in_place=True)

    def file(self, path: str) -> str:
        """Fetches a single file. See `data`."""
        return self._local(path, of_file)

    def some_of(self, path: str, names: Sequence[str]) -> str:
        """Fetches those files of a folder that it still has; returns its path, or '' if the store does not give them.

        It is for what is shown in addition, and can be missing.
        """
        try:
            return self._local(path, lambda remote: [name for name in names if remote.has(name)])
        except PlscError:
            return ""

    def test_sets(self, paths: Sequence[str], targets: str) -> list[str]:
        """Fetches the test sets of some data sets, each from the first that has it; returns folders that hold them.

        Args:
            paths: The data sets: folders, or a file or a pattern of files in one.
            targets: Names of the test sets, separated by commas.

        Raises:
            NoSuchSetError: Some data sets are in stores, and none of all has one of the test sets.
            PlscError: As for `data`.
        """
        wanted = dict.fromkeys(target.strip() for target in targets.split(",") if target.strip())
        found: set[str] = set()
        missing: dict[str, NoSuchSetError] = {}

        def choose(remote: RemoteFolder) -> Iterator[str]:
            for one in wanted:
                try:
                    names = () if one in found else tuple(of_test(remote, one))
                except NoSuchSetError as problem:
                    missing.setdefault(one, problem)
                else:
                    found.add(one)
                    yield from names

        folders = []
        for path in paths:
            if is_address(path):
                self._local(path, choose)
                folders.append(str(self._opened[path].copy.files))
            else:
                folders.append(self._local(path, choose))
                found.update(one for one in wanted if has_set(path, one))
        for one, problem in missing.items():
            if one not in found:
                raise problem
        return folders

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
        if size_of(map(remote.file, of_split(remote))) <= remote.cache.size:
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
            check_number(remote, files)
            if in_place and size_of(files) > remote.cache.size and any(is_distant(file.name) for file in files):
                self._mounted.append(mount(remote, files, self._stop, self._working))
                self._distant[path] = self._mounted[-1]
                return self.path_of(path)
            check_size(remote, files)
            remote.keep(files, begin=len(files) * self._rank // self._world_size)
            remote.forget_others()
        return remote.path
