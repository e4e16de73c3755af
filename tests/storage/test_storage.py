"""What every store must do: a folder, a real HDFS by RPC, WebHDFS and Spark, and what fsspec opens. Also retries."""

import errno
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest

from plsc.data.image_folders import INDEX
from plsc.data.tar_index_file import index_path
from plsc.errors import ConfigError, PlscError
from plsc.machine.locks import lock_folder
from plsc.storage import (
    LocalStorage,
    Retrying,
    Status,
    StorageError,
    StorageUnavailableError,
    answers,
    objects,
    open_hdfs,
)
from plsc.storage.base import missing, read_bytes, write_bytes
from plsc.storage.hadoop import HadoopStorage
from plsc.storage.objects import ObjectStorage
from plsc.storage.rpc import RpcStorage
from plsc.storage.transfer import OpenFile, get, put, tree


def open_store(kind, request, tmp_path):
    """Returns a store and a folder in it that does not exist yet."""
    if kind == "folder":
        (tmp_path / "root").mkdir()
        return LocalStorage(tmp_path / "root"), "some"
    if kind == "hadoop":
        context = request.getfixturevalue("spark").sparkContext
        return HadoopStorage(context), f"{request.getfixturevalue('hdfs').address}/tests/{tmp_path.name}"
    if kind == "rpc":
        pytest.importorskip("hdfs_native")
        opened = open_hdfs(request.getfixturevalue("hdfs").address, "alice,")
        assert type(opened._storage) is RpcStorage
        return opened, f"/tests/{tmp_path.name}"
    if kind == "s3":
        from s3_server import BUCKET

        request.getfixturevalue("s3")
        return open_hdfs(f"s3://{BUCKET}/tests", None), tmp_path.name
    if kind in ("gs", "abfs"):
        return open_hdfs(f"{request.getfixturevalue(kind).address}/tests", None), tmp_path.name
    if kind in ("memory", "local"):
        pytest.importorskip("fsspec")
        return open_hdfs(f"{kind}://{tmp_path}", None), "some"
    return open_hdfs(request.getfixturevalue("hdfs").web, "alice,"), f"/tests/{tmp_path.name}"


STORES = ["folder", "hdfs", "rpc", "hadoop", "memory", "local", "s3", "gs", "abfs"]


@pytest.fixture(params=STORES)
def store(request, tmp_path):
    """A store and a folder in it that does not exist yet."""
    return open_store(request.param, request, tmp_path)


@pytest.fixture(params=["folder", "hadoop"])
def durable(request, tmp_path):
    """The same for stores in which a data set can be put together."""
    return open_store(request.param, request, tmp_path)


def inside(store):
    """Returns the store that `Retrying` repeats."""
    return getattr(store, "_storage", store)


def keeps_folders(store):
    """Returns whether a folder without files exists."""
    return getattr(inside(store), "_has_folders", True)


def content(store, path, offset=0):
    return b"".join(store.read(path, offset, store.status(path).size - offset))


@pytest.mark.parametrize("name", ["plain", "a b", "中文 ü", "50+1=#;&?", "'\"[x]"])
def test_files_and_folders(store, name):
    store, folder = store
    assert store.status(folder) is None
    path = f"{folder}/in/{name}"
    data = os.urandom(3_000_000)
    store.write(path, lambda: [data[:10], b"", data[10:]], len(data))
    assert content(store, path) == data and content(store, path, 2_999_000) == data[2_999_000:]
    found = store.list(f"{folder}/in")
    assert list(found) == [name] and found[name].size == len(data) and not found[name].is_folder
    assert found[name].modified == store.status(path).modified > 1e9
    assert found[name].is_file and found[name].identity == store.status(path).identity
    knows = not isinstance(inside(store), (RpcStorage, ObjectStorage))  # which files are the same
    assert (found[name].identity is not None) == knows
    store.write(path, lambda: [b"new"], 3)
    assert content(store, path) == b"new"
    store.rename(path, f"{folder}/moved")
    assert store.status(path) is None
    if keeps_folders(store):
        assert store.list(f"{folder}/in") == {}
    else:
        assert store.status(f"{folder}/in") is None
    store.write(path, list, 0)
    assert not knows or store.status(path).identity != store.status(f"{folder}/moved").identity
    with pytest.raises(StorageError, match="moved: already exists"):
        store.rename(path, f"{folder}/moved")
    assert content(store, f"{folder}/moved") == b"new"
    store.mkdirs(f"{folder}/x/y")
    store.mkdirs(f"{folder}/x/y")
    if not keeps_folders(store):
        store.write(f"{folder}/x/y/file", lambda: [b"x"], 1)
    made = store.status(f"{folder}/x")
    assert made.is_folder and made.size == 0 and not made.is_file
    store.delete(folder)
    store.delete(folder)
    assert store.status(folder) is None


def test_an_impossible_request_is_one_line_that_names_the_path(store):
    store, folder = store
    store.write(f"{folder}/file", lambda: [b"x"], 1)
    for action in (
        lambda: store.list(f"{folder}/absent"),
        lambda: list(store.read(f"{folder}/absent", 0, 1)),
        lambda: store.mkdirs(f"{folder}/file/below"),
        lambda: store.rename(f"{folder}/absent", f"{folder}/other"),
    ):
        with pytest.raises(StorageError) as error:
            action()
        assert folder in str(error.value) and "\n" not in str(error.value)
        assert error.value.reason in str(error.value)
        assert not isinstance(error.value, StorageUnavailableError)


def test_small_files(store):
    store, folder = store
    write_bytes(store, f"{folder}/file", b"abc")
    assert read_bytes(store, f"{folder}/file") == b"abc"
    with pytest.raises(StorageError, match="absent: no such file or folder"):
        read_bytes(store, f"{folder}/absent")
    store.mkdirs(f"{folder}/sub")
    write_bytes(store, f"{folder}/sub/file", b"abc")
    with pytest.raises(StorageError, match=f"{folder}/sub: is a folder"):
        read_bytes(store, f"{folder}/sub")


def test_free_space_and_sync(durable):
    store, folder = durable
    store.mkdirs(folder)
    assert store.free(folder) > 1e6
    store.sync(folder)
    write_bytes(store, f"{folder}/file", b"x")
    store.sync(f"{folder}/file")


def test_the_local_store_syncs_what_it_writes_and_knows_links_and_pipes(tmp_path, monkeypatch):
    store, synced, fsync = LocalStorage(tmp_path), [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino) or fsync(descriptor))
    write_bytes(store, "file", b"x")
    store.sync("")
    assert synced == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]
    os.link(tmp_path / "file", tmp_path / "hard")
    os.symlink("file", tmp_path / "soft")
    assert store.status("file").identity == store.status("hard").identity == store.status("soft").identity
    os.symlink("nowhere", tmp_path / "dangling")
    os.mkfifo(tmp_path / "pipe")
    for name in ("dangling", "pipe"):
        assert store.status(name).is_special and not store.status(name).is_file
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    os.symlink("kept", tmp_path / "link")
    store.delete("link")
    assert list(store.list("")) == ["dangling", "file", "hard", "kept", "pipe", "soft"] and store.list("kept")


def test_a_file_that_appears_while_it_is_looked_for_is_no_broken_link(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    stat = Path.stat

    def too_early(self, **options):
        if options.get("follow_symlinks", True):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", too_early)
    assert LocalStorage(tmp_path).status("file") is None


def test_the_lock_of_a_run_is_not_uploaded_with_its_folder(tmp_path):
    store = Retrying(LocalStorage(tmp_path / "store"), 0)
    with lock_folder(tmp_path / "run", "choose another folder"):
        (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
        put(store, tmp_path / "run", "copy")
        assert (tmp_path / "run" / ".plsc.lock").exists()
    assert list(tree(store, "copy")) == ["metrics.jsonl"]


def test_the_indexes_of_this_disk_are_not_uploaded_with_their_data(tmp_path):
    (tmp_path / "data" / "x").mkdir(parents=True)
    kept = ["a.tar", ".hidden", "index.npz", "x/1.jpg"]
    for name in (*kept, os.fsdecode(INDEX), os.path.basename(index_path("a.tar")), "x/.plsc-folders.npz"):
        (tmp_path / "data" / name).write_text("x")
    store = Retrying(LocalStorage(tmp_path / "store"), 0)
    put(store, tmp_path / "data", "copy")
    assert sorted(tree(store, "copy")) == sorted(kept)


@pytest.fixture
def linked(tmp_path):
    """A folder with links of every kind, a pipe, and `other`, to which two of the links lead."""
    for name in ("folder/real", "other/deep"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").write_text("x")
    links = {"to folder": "../other", "to file": "../other/deep/1.jpg", "real/up": "..", "self": "self", "none": "no"}
    for name, target in links.items():
        os.symlink(target, tmp_path / "folder" / name)
    os.mkfifo(tmp_path / "folder" / "real" / "pipe")
    return tmp_path / "folder"


@pytest.mark.parametrize("direction", ["put", "get"])
def test_links_are_followed_and_what_cannot_be_copied_is_named(linked, direction, tmp_path, caplog):
    store = Retrying(LocalStorage(tmp_path), 0)
    put(store, linked, "copy") if direction == "put" else get(store, "folder", tmp_path / "copy")
    copied = sorted(path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*.*"))
    assert copied == ["real/1.jpg", "to folder/deep/1.jpg"] and (tmp_path / "copy" / "to file").read_text() == "x"
    assert sorted(os.listdir(tmp_path / "copy")) == ["real", "to file", "to folder"]
    (line,) = caplog.messages
    assert "folder: left out links that lead nowhere" in line and line.endswith("devices: 4 (such as none)")


@pytest.mark.parametrize("name", ["pipe", "broken"])
def test_a_pipe_or_a_broken_link_is_not_copied_as_an_empty_file(name, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("nowhere", tmp_path / "broken")
    store = Retrying(LocalStorage(tmp_path), 0)
    with pytest.raises(PlscError, match=f"{name}: (is neither a file nor a folder|no such file or folder)"):
        put(store, tmp_path / name, "copy")
    with pytest.raises(ConfigError, match=f"{name}: is neither a file nor a folder"):
        get(store, name, tmp_path / "copy")
    assert not os.path.lexists(tmp_path / "copy")


def test_an_upload_of_a_folder_that_cannot_be_listed_is_refused_and_loses_nothing_silently(tmp_path, monkeypatch):
    (tmp_path / "source" / "closed").mkdir(parents=True)
    (tmp_path / "source" / "closed" / "1.jpg").write_text("x")
    scan, names = os.scandir, os.listdir

    def refuse(function):
        def call(path="."):
            if os.fsdecode(path).endswith("closed"):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return function(path)

        return call

    monkeypatch.setattr(os, "listdir", refuse(names))
    monkeypatch.setattr(os, "scandir", refuse(scan))
    with pytest.raises(StorageError, match="closed: Permission denied"):
        put(Retrying(LocalStorage(tmp_path), 0), tmp_path / "source", "copy")


def test_what_is_removed_is_told_without_what_links_lead_to(linked, tmp_path):
    store = LocalStorage(tmp_path)
    found = tree(store, "folder", follow_links=False)
    assert sorted(found) == ["none", "real/1.jpg", "real/pipe", "real/up", "self", "to file", "to folder"]
    assert sum(status.size for status in found.values()) == 1
    os.symlink("other", tmp_path / "link")
    assert [status.size for status in tree(store, "link", follow_links=False).values()] == [0]
    store.delete("folder")
    assert (tmp_path / "other" / "deep" / "1.jpg").exists()


def test_folders_are_uploaded_and_downloaded(store, tmp_path):
    store, folder = store
    store = Retrying(store, 0)
    source = tmp_path / "源 folder"
    for number in range(30):
        path = source / f"d {number % 3}" / "e" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number * 1000))
    seen = []
    assert put(store, source, f"{folder}/target", seen.append) == f"{folder}/target"
    assert sum(seen) == sum(status.size for status in tree(store, f"{folder}/target").values()) == 435_000
    with pytest.raises(ConfigError, match="already exists; name another place"):
        put(store, source / "d 0" / "e" / "0", f"{folder}/target/d 0/e/0")
    assert put(store, source / "d 0" / "e" / "3", folder) == f"{folder}/3"
    assert get(store, f"{folder}/target", tmp_path / "back", seen.append) == tmp_path / "back"
    assert sum(seen) == 870_000
    for path in source.rglob("*"):
        twin = tmp_path / "back" / path.relative_to(source)
        assert twin.is_dir() if path.is_dir() else twin.read_bytes() == path.read_bytes()
    assert get(store, f"{folder}/3", tmp_path / "back").read_bytes() == (source / "d 0/e/3").read_bytes()
    with pytest.raises(ConfigError, match="already exists; name another place"):
        get(store, f"{folder}/3", tmp_path / "back")
    with pytest.raises(StorageError, match="absent: no such file or folder"):
        get(store, f"{folder}/absent", tmp_path / "absent")
    assert sorted(store.list(folder)) == ["3", "target"]
    assert not [path for path in (*tmp_path.iterdir(), *tmp_path.glob("back/*")) if path.name.startswith(".")]


CHANGES = {"other bytes": bytes(3_000_000), "fewer bytes": b"y" * 1_000_000}


@pytest.mark.parametrize("change", [*CHANGES, "no file"])
def test_a_file_that_changes_while_it_is_downloaded_is_refused(store, tmp_path, change):
    store, folder = store
    store, seen = Retrying(store, 0.3), []
    store.write(f"{folder}/in/file", lambda: [b"x" * 3_000_000], 3_000_000)

    def advance(count):
        if not seen:
            seen.append(count)
            data = CHANGES.get(change)
            if data is None:
                store.delete(f"{folder}/in/file")
            else:
                store.write(f"{folder}/in/file", lambda: [data], len(data))

    began = time.monotonic()
    with pytest.raises(StorageError, match="in/file: ") as error:
        get(store, f"{folder}/in", tmp_path / "back", advance)
    assert "try again when nothing writes there" in str(error.value) or change == "no file", error.value
    assert seen and time.monotonic() - began < 60 and not [path for path in tmp_path.iterdir() if "back" in path.name]


def test_a_file_that_changes_while_it_is_uploaded_is_refused_and_one_that_grows_is_cut(store, tmp_path):
    store, folder = store
    store, source = Retrying(store, 0.3), tmp_path / "source"
    for change, is_refused in (("r+b", True), ("wb", True), ("ab", False)):
        source.write_bytes(b"x" * 3_000_000)
        os.utime(source, (1, 1))
        seen = []

        def advance(count, change=change, seen=seen):
            if not seen:
                seen.append(count)
                with open(source, change) as stream:
                    stream.write(b"yyy")

        if is_refused:
            with pytest.raises(StorageError, match="source: (changed|became shorter) while it was read"):
                put(store, source, f"{folder}-{change}", advance)
            assert store.status(f"{folder}-{change}") is None
        else:
            assert content(store, put(store, source, f"{folder}-{change}", advance)) == b"x" * 3_000_000
            store.delete(f"{folder}-{change}")


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of a megabyte."""
    place = tmp_path / "full"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can make a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_fills_during_a_download_is_reported_and_left_as_it_was(store, full_disk, monkeypatch):
    store, folder = store
    store = Retrying(store, 0.3)
    for name in ("a", "b"):
        store.write(f"{folder}/in/{name}", lambda: [bytes(1_500_000)], 1_500_000)
    with pytest.raises(ConfigError, match="3 MB are to be downloaded, but its disk has 1.05 MB free"):
        get(store, f"{folder}/in", full_disk / "back")
    monkeypatch.setattr("plsc.storage.transfer.check_room", lambda folder, size: None)  # others fill it meanwhile
    with pytest.raises(ConfigError, match=r"back: cannot be written \(No space left on device\)"):
        get(store, f"{folder}/in", full_disk / "back")
    assert list(full_disk.iterdir()) == []


def test_a_disk_that_fills_during_an_upload_is_reported_and_left_as_it_was(full_disk, tmp_path):
    (tmp_path / "file").write_bytes(bytes(3_000_000))
    store = Retrying(LocalStorage(full_disk), 0)
    with pytest.raises(StorageError, match="No space left on device"):
        put(store, tmp_path / "file", "target")
    assert list(full_disk.iterdir()) == []


class Flaky:
    """A store that fails `failures` times, each time after half of the work."""

    name = "flaky"

    def __init__(self, failures):
        self.failures, self.files, self.calls = failures, {}, 0

    def fail(self):
        self.calls += 1
        if self.failures > 0:
            self.failures -= 1
            raise StorageUnavailableError("flaky: not now")

    def status(self, path):
        return Status(len(self.files[path]), False, 0.0) if path in self.files else None

    def read(self, path, offset, count):
        half = max(1, count // 2)
        yield self.files[path][offset : offset + half]
        self.fail()
        yield self.files[path][offset + half : offset + count]

    def write(self, path, chunks, size):
        data = b""
        for chunk in chunks():
            data += chunk
            self.fail()
        self.files[path] = data

    def rename(self, source, target):
        self.files[target] = self.files.pop(source)
        self.fail()


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr("plsc.storage.retry._FIRST_WAIT", 0.001)


def test_a_failure_that_passes_is_survived(no_waiting, tmp_path):
    flaky = Flaky(3)
    store = Retrying(flaky, 60)
    (tmp_path / "file").write_bytes(b"abcdef")
    file, seen = OpenFile.open(tmp_path / "file"), []
    (tmp_path / "file").unlink()
    store.write("x", lambda: file.chunks(seen.append), 6)
    assert flaky.files == {"x": b"abcdef"} and flaky.failures == 0 and sum(seen) == 6
    file.close()
    flaky.failures = 3  # each time further on
    assert b"".join(store.read("x", 1, 5)) == b"bcdef" and flaky.failures == 0
    flaky.failures = 1  # the file is renamed, but the answer is lost
    store.rename("x", "y")
    assert flaky.files == {"y": b"abcdef"}


class Repeating(LocalStorage):
    """A store whose client sends a renaming to another NameNode after the first has done it, and is refused there."""

    def rename(self, source, target):
        super().rename(source, target)
        raise missing(self, source)


def test_a_renaming_that_a_client_has_sent_twice_counts_as_done(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"x")
    Retrying(Repeating(tmp_path), 0).rename("a", "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]
    for source, target, words in (("a", "c", "already exists"), ("a", "d", "No such file"), ("b", "c", "already ex")):
        with pytest.raises(StorageError, match=words):
            Retrying(LocalStorage(tmp_path), 0).rename(source, target)


def test_a_file_that_shrinks_is_not_tried_again(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100))
    file = OpenFile.open(tmp_path / "file")
    os.truncate(tmp_path / "file", 50)
    with pytest.raises(StorageError, match="became shorter while it was read"):
        Retrying(LocalStorage(tmp_path), 3600).write("x", file.chunks, 100)
    file.close()
    with pytest.raises(ConfigError, match="absent: cannot be read"):
        OpenFile.open(tmp_path / "absent")


def test_it_gives_up_when_patience_is_over_or_it_is_stopped(no_waiting):
    flaky = Flaky(10**9)
    with pytest.raises(StorageUnavailableError, match="not now"):
        Retrying(flaky, 0.05).write("x", lambda: [b"x"], 1)
    assert flaky.calls > 1 and flaky.files == {}
    stop, calls = threading.Event(), flaky.calls
    stop.set()
    with pytest.raises(StorageUnavailableError):
        Retrying(flaky, 3600, stop).write("x", lambda: [b"x"], 1)
    assert flaky.calls == calls + 1


def test_a_long_upload_that_breaks_off_is_tried_again_but_not_for_ever(no_waiting, monkeypatch):
    """Patience counts from the last byte that no earlier attempt has reached."""
    taken, breaks, clock = [], iter([4, 2, 8, None]), [0.0]
    monkeypatch.setattr("plsc.storage.retry.time", SimpleNamespace(monotonic=lambda: clock[0]))

    class Slow(Flaky):
        def write(self, path, chunks, size):
            self.calls += 1
            stop, data = next(breaks, 3), b""
            for number, chunk in enumerate(chunks()):
                if number == stop:
                    raise StorageUnavailableError("broken off")
                clock[0] += 2
                data += chunk
            taken.append(data)

    store = Slow(0)
    Retrying(store, 5).write("x", lambda: [b"x"] * 10, 10)
    assert taken == [b"x" * 10] and store.calls == 4
    with pytest.raises(StorageUnavailableError, match="broken off"):
        Retrying(store, 5).write("x", lambda: [b"x"] * 10, 10)
    assert 4 < store.calls < 9


@pytest.mark.parametrize("action", ["get", "put"])
def test_ctrl_c_ends_a_transfer_at_once_though_the_server_hangs_or_is_away(action, tmp_path):
    """One thread waits for the next attempt, another for a server that never answers."""
    released, seen = threading.Event(), []

    class Hanging(LocalStorage):
        def wait(self, path):
            seen.append(path)
            if len(seen) == 2:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            if path.endswith("hangs"):
                released.wait(60)
            raise StorageUnavailableError("away")

        def read(self, path, offset, count):
            self.wait(path)
            yield b""

        def write(self, path, chunks, size):
            self.wait(path)

    (tmp_path / "source").mkdir()
    for name in ("away", "hangs"):
        (tmp_path / "source" / name).write_text("x")
    store, began = Retrying(Hanging(tmp_path), 3600), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        if action == "get":
            get(store, "source", tmp_path / "target")
        else:
            put(store, tmp_path / "source", "target")
    assert time.monotonic() - began < 30 and not (tmp_path / "target").exists()
    released.set()
    deadline = time.monotonic() + 60
    while [one for one in threading.enumerate() if one.name == "plsc-transfer"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_refusal_is_not_tried_again():
    calls = []

    class Refusing:
        name = "refusing"

        def delete(self, path):
            calls.append(path)
            raise StorageError("no")

    with pytest.raises(StorageError, match="no"):
        Retrying(Refusing(), 60).delete("x")
    assert calls == ["x"]


def test_a_failed_upload_leaves_nothing_behind(tmp_path):
    class Full(LocalStorage):
        def write(self, path, chunks, size):
            if path.endswith("2"):
                raise StorageError("full")
            super().write(path, chunks, size)

    for number in range(4):
        (tmp_path / f"{number}").write_text("x")
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(StorageError, match="full"):
        put(Retrying(Full(root), 0), tmp_path, "target")
    assert list(root.iterdir()) == []


class Lying(LocalStorage):
    """A store that lists names which it was told to."""

    names: tuple = ()

    def list(self, path):
        status = Status(1, False, 0.0)
        return dict.fromkeys(self.names, status)

    def read(self, path, offset, count):
        yield b"x"


@pytest.mark.parametrize("name", ["..", ".", "", "../x", "/etc/x", "a/../../x", "a\0b", "a/b", "\ud800"])
def test_names_that_lead_elsewhere_are_refused_before_anything_is_written(name, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "x").write_text("precious")
    store = Lying(tmp_path)
    store.names = ("good", name)
    with pytest.raises(StorageError, match="source/?: the server lists .*, which is not the name of a file"):
        get(Retrying(store, 0.0), "source", tmp_path / "target")
    assert os.listdir(tmp_path / "target") == [] and (tmp_path / "x").read_text() == "precious"


def test_a_folder_that_is_listed_in_itself_has_an_end(tmp_path):
    class Endless(LocalStorage):
        def list(self, path):
            return {"a": Status(0, True, 0.0)}

    with pytest.raises(StorageError, match="more than 128 levels deep"):
        tree(Retrying(Endless(tmp_path), 0.0), ".")


def test_what_killed_transfers_left_is_removed_in_time_and_nothing_else(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("x")
    there = tmp_path / "there"
    names = [f".source.{'0' * 12}.get", f".source.{'1' * 12}.get", f".other.{'0' * 12}.get", f".source.{'0' * 12}.put"]
    for name in [*names, ".source.mine.get"]:
        (there / name).mkdir(parents=True)
        (there / name / "part").touch()
        for path in (there / name / "part", there / name):
            os.utime(path, (1, 1))
    (there / names[1] / "part").touch()  # a download in progress
    store = Retrying(LocalStorage(tmp_path), 0.0)
    get(store, "source", there)
    assert sorted(os.listdir(there)) == sorted([*names[1:], ".source.mine.get", "source"])
    (there / "source" / "file").unlink()
    (there / "source").rmdir()
    put(store, tmp_path / "source", "there")
    assert sorted(os.listdir(there)) == sorted([*names[1:3], ".source.mine.get", "source"])


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "//x"])
def test_a_local_store_keeps_to_its_folder(tmp_path, path):
    (tmp_path / "store").mkdir()
    store = LocalStorage(tmp_path / "store")
    write_bytes(store, path, b"x")
    assert [one.name for one in tmp_path.iterdir()] == ["store"] and read_bytes(store, "x") == b"x"


class Silent(LocalStorage):
    """A store that asks a server, which does not answer, in the way that `ask` does."""

    def __init__(self, ask):
        super().__init__()
        self._ask = ask

    def status(self, path):
        return self._answer()

    def read(self, path, offset, count):
        yield self._answer()

    def write(self, path, chunks, size):
        self._answer()

    def _answer(self):
        try:
            return self._ask()
        except TimeoutError:
            raise StorageUnavailableError("no answer in time") from None


@pytest.mark.parametrize("way", ["answer", "fsspec", "requests"])
def test_a_silent_server_is_waited_for_no_longer_than_patience_lasts(way, monkeypatch):
    monkeypatch.setattr(answers, "_LEAST_SECONDS", 0.1)
    monkeypatch.setattr(objects, "_LEAST_SECONDS_OF_PARTS", 0.1)
    silence, asked = threading.Event(), []

    def of_requests():
        asked.append([*answers.Timeouts((60, 90))])
        raise TimeoutError

    ask = {
        "answer": lambda: answers.answer(silence.wait, 60),
        "fsspec": lambda: objects._result(Future(), objects._seconds_of_parts()),
        "requests": of_requests,
    }[way]
    store, began = Retrying(Silent(ask), 0.2), time.monotonic()
    for action in (
        lambda: store.status("x"),
        lambda: [*store.read("x", 0, 1)],
        lambda: store.write("x", lambda: [b"x"], 1),
    ):
        with pytest.raises(StorageUnavailableError, match="no answer in time"):
            action()
    silence.set()
    assert time.monotonic() - began < 30 and all(max(limits) <= 0.2 for limits in asked)
    assert answers.limited(60) == 60 and [*answers.Timeouts((5, 60))] == [5, 60]
