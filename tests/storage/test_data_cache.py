"""The cache of files of a store: each is fetched once, the bound holds, and nothing else is touched."""

import hashlib
import os
import subprocess
import sys
import threading
import time

import pytest
from ranks import TIMEOUT, environment

from plsc.errors import ConfigError, DataError
from plsc.storage import LocalStorage, Retrying, StorageError, StorageUnavailableError
from plsc.storage.data_cache import CachedFolder, DataCache, RemoteFile


class Counting(LocalStorage):
    """A store that counts what is read, and can wait or fail while it is."""

    def __init__(self, root):
        super().__init__(root)
        self.reads, self.gate, self.act = [], None, None

    def read(self, path, offset, count):
        self.reads.append(path)
        if self.gate is not None:
            self.gate.wait(20)
        for number, chunk in enumerate(super().read(path, offset, count)):
            if self.act is not None:
                self.act(number)
            yield chunk


@pytest.fixture
def server(tmp_path):
    """A store with the files 0 to 5 of 1,000 bytes each in its folder `data`."""
    store = Counting(tmp_path / "server")
    for number in range(6):
        store.write(f"data/{number}", lambda number=number: [bytes([number]) * 1000], 1000)
    return store


def files_in(server):
    return [RemoteFile(name, one.size, one.modified) for name, one in server.list("data").items()]


def open_copy(tmp_path, server, size=10_000, patience=0.0, stop=None):
    cache = DataCache(tmp_path / "cache", size)
    return CachedFolder(cache, Retrying(server, patience, stop), "data")


def bytes_in(tmp_path):
    return sum(path.stat().st_size for path in (tmp_path / "cache").glob("plsc_*/files/*"))


def test_what_is_whole_is_not_fetched_again_and_what_has_changed_is(tmp_path, server):
    files = files_in(server)
    copy = open_copy(tmp_path, server)
    copy.claim(files)
    assert all(copy.try_fetch(file) for file in files) and len(server.reads) == 6
    copy.close()
    assert [path.read_bytes() for path in sorted(copy.files.iterdir())] == [bytes([n]) * 1000 for n in range(6)]
    os.truncate(copy.files / "1", 999)  # a disk that lost the end
    (copy.files / "2").write_bytes(b"x" * 1000)  # someone wrote to it
    server.write("data/3", lambda: [b"new" * 400], 1200)
    server.reads = []
    again, files = open_copy(tmp_path, server), files_in(server)
    again.claim(files)
    assert all(again.try_fetch(file) for file in files)
    assert server.reads == ["data/1", "data/2", "data/3"] and (copy.files / "3").read_bytes() == b"new" * 400
    # A digest says more than a time.
    sums = [RemoteFile("0", 1000, 5.0, hashlib.sha256(bytes(1000)).hexdigest()), files[3]._replace(sha256="0" * 64)]
    assert [again.is_whole(file) for file in sums] == [True, False]


def test_the_bound_holds_and_unused_files_make_room(tmp_path, server):
    files = files_in(server)
    mine = tmp_path / "cache" / "mine.txt"
    mine.parent.mkdir()
    mine.write_bytes(b"x" * 5000)
    copy = open_copy(tmp_path, server, 3500)
    copy.claim(files[:1], budget=2000)
    for file in files[:3]:
        assert copy.try_fetch(file)
    copy.release(files[2])
    assert copy.try_fetch(files[3]) and sorted(os.listdir(copy.files)) == ["0", "1", "3"]
    copy.release(files[1])
    own = copy.files / "1"
    assert copy.try_fetch(files[1]) and server.reads.count("data/1") == 1, "it was still there"
    copy.release(files[1])
    assert own.exists()
    other = open_copy(tmp_path, server, 3500)
    with pytest.raises(ConfigError, match=r"cache of 3.5 kB is too small: 1 running processes use 3 kB.*needs 1 kB"):
        other.claim(files[4:5])
    other.claim(files[:1])  # a file that both claim counts once
    copy.close()
    other.claim(files[4:], budget=500)
    assert all(other.try_fetch(file) for file in files[4:]) and bytes_in(tmp_path) <= 3500
    assert (other.files / "0").exists() and mine.exists()


def test_all_files_count_also_in_subfolders(tmp_path, server):
    copy = open_copy(tmp_path, server)
    (copy.files / "a" / "b").mkdir(parents=True)
    (copy.files / "a" / "b" / "1").write_bytes(bytes(300))
    (copy.files / "2").write_bytes(bytes(20))
    (copy.files.parent / "parts" / "3").write_bytes(bytes(1000))  # is abandoned, and removed
    assert copy._cache._used() == 320 and not list(copy.files.parent.glob("parts/*"))


def test_files_are_counted_only_when_there_may_be_no_room(tmp_path, server, monkeypatch):
    counts, count = [], DataCache._used
    monkeypatch.setattr(DataCache, "_used", lambda cache: counts.append(1) or count(cache))
    files = files_in(server)
    copy = open_copy(tmp_path, server, 4500)
    copy.claim(files[:1], budget=3000)
    for number, file in enumerate(files[:4]):
        assert copy.try_fetch(file) and len(counts) == 1, number
        copy.release(file)
    assert copy.try_fetch(files[4]) and len(counts) == 2 and bytes_in(tmp_path) == 4000
    (tmp_path / "cache" / "plsc_data_cache_used.json").write_text('{"bytes": 1')  # a kill cut it off
    assert copy.try_fetch(files[5]) and len(counts) == 3 and bytes_in(tmp_path) == 4000


def test_a_file_is_fetched_once_by_threads_and_processes(tmp_path, server):
    server.gate = threading.Event()
    files = files_in(server)
    copy, other = open_copy(tmp_path, server), open_copy(tmp_path, server)
    for one in (copy, other):
        one.claim(files)
    first = threading.Thread(target=copy.try_fetch, args=(files[0],))
    first.start()
    while not server.reads:
        time.sleep(0.01)
    assert not other.try_fetch(files[0]) and not copy.try_fetch(files[0])
    server.gate.set()
    first.join()
    assert other.try_fetch(files[0]) and server.reads == ["data/0"]


KILLED = """
import os, sys
from pathlib import Path
from plsc.storage import LocalStorage, Retrying
from plsc.storage.data_cache import CachedFolder, DataCache, RemoteFile
store = LocalStorage(Path(sys.argv[1]))
copy = CachedFolder(DataCache(Path(sys.argv[2]), 2500), Retrying(store, 0), "data")
files = [RemoteFile(name, one.size, one.modified) for name, one in store.list("data").items()]
copy.claim(files[:1], budget=1500)
copy.try_fetch(files[0])
copy.try_fetch(files[1], lambda count: os._exit(9))
"""


def test_a_killed_process_leaves_its_whole_files_and_its_space(tmp_path, server):
    command = [sys.executable, "-c", KILLED, tmp_path / "server", tmp_path / "cache"]
    assert subprocess.run(command, env=environment(), timeout=TIMEOUT).returncode == 9
    assert list((tmp_path / "cache").glob("plsc_*/parts/*")) and list((tmp_path / "cache" / "plsc_claims").iterdir())
    copy, files = open_copy(tmp_path, server, 2500), files_in(server)
    copy.claim(files[:2])
    assert copy.is_whole(files[0]) and copy.try_fetch(files[1]) and server.reads == ["data/1"]
    assert len(list((tmp_path / "cache" / "plsc_claims").iterdir())) == 1
    assert not list((tmp_path / "cache").glob("plsc_*/parts/*"))


def test_damage_changes_and_disks_are_named(tmp_path, server, monkeypatch):
    files = files_in(server)
    copy = open_copy(tmp_path, server)
    copy.claim(files)
    with pytest.raises(DataError, match="data/0: its sha256 differs from the manifest"):
        copy.try_fetch(files[0]._replace(sha256="0" * 64))
    assert server.reads == ["data/0"] * 2, "once more, in case the transfer was at fault"
    server.act = lambda number: server.write("data/1", lambda: [b"y" * 1000], 1000)
    with pytest.raises(DataError, match="data/1: has changed on the server since this run listed the folder"):
        copy.try_fetch(files[1])
    server.act = None
    server.delete("data/2")
    with pytest.raises(DataError, match="data/2: was removed on the server"):
        copy.try_fetch(files[2])
    (copy.files / "3").write_text("of the user")
    with pytest.raises(ConfigError, match="files/3: is in the data cache, but plsc has not fetched it; move it away"):
        copy.try_fetch(files[3])
    assert (copy.files / "3").read_text() == "of the user"
    monkeypatch.setattr("shutil.disk_usage", lambda folder: FREE)
    with pytest.raises(ConfigError, match="no room in the data cache for another 1 kB.*its disk has 10 B free"):
        copy.try_fetch(files[4])
    monkeypatch.undo()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(ConfigError, match="the data cache cannot be written .No space left on device.; make room"):
        copy.try_fetch(files[5])
    monkeypatch.undo()
    assert not list((tmp_path / "cache").glob("plsc_*/parts/*")) and copy.try_fetch(files[4])


class FREE:
    """A disk that is almost full."""

    free = 10


def test_directories_that_cannot_be_used(tmp_path, server, monkeypatch):
    (tmp_path / "file").write_text("")
    for place, words in (("file/cache", "cannot be written .Not a directory"), ("file", "cannot be written .File ex")):
        with pytest.raises(ConfigError, match=f"{words}.*choose another folder with set_data_cache"):
            DataCache(tmp_path / place, 1000)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "plsc_data_cache.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"plsc_data_cache.json: is not that of a data cache"):
        DataCache(tmp_path / "other", 1000)

    def read_only(path, **options):
        raise OSError(30, "Read-only file system", path)

    monkeypatch.setattr("plsc.storage.data_cache.hold_file", read_only)
    with pytest.raises(ConfigError, match="cannot be locked .Read-only file system.; choose another folder"):
        DataCache(tmp_path / "cache", 1000)


def test_a_server_that_goes_away_is_waited_for(tmp_path, server):
    def breaks(number):
        server.act = None
        raise StorageUnavailableError("data/0: Connection refused")

    files, arrived = files_in(server), []
    copy = open_copy(tmp_path, server, patience=20)
    copy.claim(files)
    server.act = breaks
    assert copy.try_fetch(files[0], arrived.append) and sum(arrived) == 1000
    stop = threading.Event()
    stop.set()
    given_up = open_copy(tmp_path, server, patience=1000, stop=stop)
    given_up.claim(files)
    server.act = breaks
    with pytest.raises(StorageError, match="Connection refused"):
        given_up.try_fetch(files[1])
