"""A conversion whose output is in a store: shards are uploaded as they are made, and removed from this machine.

    <parent>/.<name>.converting/plan.json                  what must be the same when it is resumed
    <parent>/.<name>.converting/records/shard-00000.json   a shard whose files have arrived
    <parent>/.<name>.converting/data/                      the files of the output
    <parent>/.<name>.converting/last/                      those that come last, in a store that cannot rename
    <parent>/.<name>.converting/publishing                 their names, once all of them are there

The output appears when `data` gets its name. A store that cannot rename copies the files one by one; until the hidden
folder is gone, the conversion is not finished.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import posixpath
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from plsc.datasets.image_tree import DATA
from plsc.datasets.staging import LAST, ShardRecord, Staging, as_record, check_same
from plsc.errors import ConfigError
from plsc.machine import threads
from plsc.machine.json_files import as_integer, as_list, as_object, as_text, json_text, parse_json
from plsc.storage.base import Status, read_bytes, write_bytes
from plsc.storage.transfer import OpenFile, each, write_file
from plsc.storage.working import StorePlace

_PLAN, _RECORDS, _PUBLISHING, _LATER = "plan.json", "records", "publishing", "last"
_AHEAD = 2  # shards that wait for their upload
_STREAMS = 2
_POLL_SECONDS = 0.1


def check_target(target: StorePlace) -> None:
    """Checks that nothing stands at a target but what an interrupted conversion has begun to publish.

    Raises:
        ConfigError: Something does.
    """
    store = target.store
    if store.status(target.path) is None:
        return
    if store.status(posixpath.join(target.converting, _PUBLISHING)) is None:
        raise ConfigError(f"{target.address}: already exists; give a new place, because nothing is overwritten")


class RemoteStaging(Staging):
    """The hidden folders of a conversion: shards are made on this machine, and kept in the store.

    Args:
        output: Folder of this machine in which shards are made.
        target: Where the output goes.
    """

    def __init__(self, output: Path, target: StorePlace) -> None:
        super().__init__(output)
        self._target, self._store = target, target.store
        self._hidden = target.converting
        self._records: dict[int, ShardRecord] = {}
        self._files: dict[int, dict[str, int]] = {}  # names and sizes of the files of each of these shards

    def begin(self, plan: dict[str, Any]) -> None:
        """Makes the hidden folder, or takes over the one that a run of the same plan left.

        Raises:
            ConfigError: Something stands where the output goes, or the conversion has another plan.
            StorageError: The store does not answer, or refuses.
        """
        self._target.check_claim()
        check_target(self._target)
        earlier = self.plan()
        if earlier is None:
            self._store.delete(self._hidden)
            self._store.mkdirs(self._at(DATA))
            write_bytes(self._store, self._at(_PLAN), json_text(plan, indent=1).encode())
        else:
            check_same(self._target.address, earlier, plan)
            self._read_records()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def plan(self) -> Optional[dict[str, Any]]:
        """Returns the plan of the unfinished conversion; None if there is none."""
        found = self._read(_PLAN)
        return found if isinstance(found, dict) and "--to" in found else None

    @property
    def is_publishing(self) -> bool:
        """Whether the shards are complete, and some may be in the output already."""
        return self._read(_PUBLISHING) is not None

    def keep(self, number: int) -> Optional[ShardRecord]:
        """Returns the record of a shard that an earlier run uploaded; None if it has to be made."""
        return self._records.get(number)

    def record(self, number: int) -> ShardRecord:
        """Returns the record of a shard that the store has."""
        return self._records[number]

    def engine(self, make: Any) -> Any:
        """Returns an engine that makes shards as `make` does, and uploads them meanwhile."""

        def engine(job: Any, records: Any, todo: list[int], report: Callable[[int], None]) -> Any:
            workers = min(job.conversion.workers or threads.cores(), len(todo))
            room = multiprocessing.get_context("fork").Semaphore(workers + _AHEAD)
            with self._shipping(todo, room) as check:

                def watch(count: int) -> None:
                    check()
                    report(count)

                return make(job._replace(room=room), records, todo, watch)

        return engine

    def write_lists(self, lists: dict[str, bytes]) -> None:
        """Writes the small files that describe the output."""
        self._target.check_claim()
        for name, data in lists.items():
            write_bytes(self._store, self._at(self._part_of(name), name), data)
        files = [name for number in self._records for name in self._files[number]]
        text = json_text([*files, *lists])
        write_bytes(self._store, self._at(_PUBLISHING), text.encode())

    def publish(self, folders: Sequence[Path], prepare: Optional[Callable[[], None]] = None) -> None:
        """Has the output appear, and removes the hidden folder. A run that is killed meanwhile is finished by the next.

        Args:
            folders: Not used: the files are in the store.
            prepare: Not used.
        """
        self._target.check_claim()
        store, path = self._store, self._target.path
        if store.renames and store.status(self._at(DATA)) is not None:
            store.rename(self._at(DATA), path)
        elif not store.renames:
            names = [as_text(name) for name in as_list(self._read(_PUBLISHING))]
            if store.status(path) is None:
                store.rename(self._at(DATA), path)
            else:
                each(store, self._move, [(name,) for name in names if self._part_of(name) == DATA])
            each(store, self._move, [(name,) for name in names if self._part_of(name) == _LATER])
        store.delete(self._hidden)

    def _part_of(self, name: str) -> str:
        """Returns the part of the hidden folder that holds a file of the output."""
        return _LATER if name in LAST and not self._store.renames else DATA

    def _move(self, name: str) -> None:
        """Gives a file of the output its place, unless an earlier run has done so."""
        source, place = self._at(self._part_of(name), name), posixpath.join(self._target.path, name)
        before, there = self._store.status(source), self._store.status(place)
        if before is None and there is not None:
            return
        if there is not None and before is not None and there.size == before.size:  # the copy is whole
            self._store.delete(source)
        else:
            self._store.rename(source, place)

    def _at(self, *names: str) -> str:
        return posixpath.join(self._hidden, *names)

    def _read(self, name: str) -> Any:
        """Returns what a file of the hidden folder holds; None if it is missing or was not written to its end."""
        place = self._at(name)
        if self._store.status(place) is None:
            return None
        try:
            return parse_json(read_bytes(self._store, place))
        except ValueError:
            return None

    def _read_records(self) -> None:
        """Learns which shards are complete."""
        listed = self._store.status(self._at(_RECORDS)) and self._store.list(self._at(_RECORDS))
        found = self._store.status(self._at(DATA)) and self._store.list(self._at(DATA))
        sizes = {name: status.size for name, status in (found or {}).items()}
        is_publishing = self.is_publishing

        def read(name: str) -> None:
            record = self._read(posixpath.join(_RECORDS, name))
            with contextlib.suppress(ValueError, KeyError):
                files = {key: as_integer(size) for key, size in as_object(record["files"]).items()}
                shard = as_record(record["record"])
                if is_publishing or all(self._size(key, sizes) == size for key, size in files.items()):
                    number = as_integer(record["number"])
                    self._records[number], self._files[number] = shard, files

        each(self._store, read, [(name,) for name in listed or {} if name.endswith(".json")])

    def _size(self, name: str, sizes: Mapping[str, int]) -> Optional[int]:
        if name not in sizes and not self._store.renames:  # which may list files late
            status: Optional[Status] = self._store.status(self._at(DATA, name))
            return None if status is None else status.size
        return sizes.get(name)

    @contextlib.contextmanager
    def _shipping(self, todo: Sequence[int], room: Any) -> Iterator[Callable[[], None]]:
        """Uploads shards, as they are made, in a thread. Yields a function that raises the error of the thread."""
        ended, failed = threading.Event(), list[BaseException]()

        def work() -> None:
            left = list(todo)
            try:
                while left:
                    is_last = ended.is_set()
                    made = [number for number in left if self.shard(number).exists()]
                    each(self._store, self._ship, [(number, room) for number in made], _STREAMS)
                    left = [number for number in left if number not in self._records]
                    if is_last:
                        return
                    ended.wait(0 if made else _POLL_SECONDS)
            except BaseException as problem:  # the command raises it
                failed.append(problem)

        def check() -> None:
            if failed:
                raise failed[0]

        thread = threading.Thread(target=work, name="plsc-upload", daemon=True)
        thread.start()
        try:
            yield check
            ended.set()
            while thread.is_alive():  # without a limit, Ctrl-C would wait too
                thread.join(1.0)
        except BaseException:
            ended.set()
            self._store.stop()
            raise
        check()

    def _ship(self, number: int, room: Any) -> None:
        """Uploads the files of a complete shard, records it, and removes it from this machine."""
        self._target.check_claim()
        data = self.shard(number) / DATA
        record = super().record(number)
        files: dict[str, int] = {}
        for name in sorted(os.listdir(data)):
            file = OpenFile.open(data / name)
            try:
                self._send(name, file)
                files[name] = file.size
            finally:
                file.close()
        text = json.dumps({"number": number, "files": files, "record": record._asdict()})
        write_bytes(self._store, self._at(_RECORDS, f"shard-{number:05d}.json"), text.encode())
        self._files[number] = files
        shutil.rmtree(self.shard(number), ignore_errors=True)
        self._records[number] = record
        room.release()

    def _send(self, name: str, file: OpenFile) -> None:
        """Uploads a file, which gets its name when it is complete."""
        place = self._at(DATA, name)
        if not self._store.renames:
            write_file(self._store, place, file)
            return
        part = self._at(f"{name}.part")
        write_file(self._store, part, file)
        self._store.delete(place)
        self._store.rename(part, place)
