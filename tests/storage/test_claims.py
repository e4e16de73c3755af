"""Claims, which keep two machines from writing to one place of a store at the same time."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from made_images import encode
from ranks import TIMEOUT, environment, wait_until

from plsc.machine.locks import FolderInUseError
from plsc.storage import Retrying, StorageError, StorageUnavailableError, claims, open_hdfs
from plsc.storage.address import split_address
from plsc.storage.base import Status, read_bytes, write_bytes
from plsc.storage.claims import claiming, inside, is_claim, next_to
from plsc.storage.local import LocalStorage
from plsc.storage.transfer import get, put

FOREIGN = {"token": "x", "holder": "process 7 on far-away", "machine": "another", "process": 7, "count": 3}


class Slow(LocalStorage):
    """A store that takes its time, cannot rename, and may be down."""

    renames = False
    is_down = False

    def status(self, path):
        self._wait()
        return super().status(path)

    def write(self, path, chunks, size):
        self._wait()
        super().write(path, chunks, size)

    def _wait(self):
        time.sleep(random.uniform(0, 0.05))
        if self.is_down:
            raise StorageUnavailableError("the server is down")


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in (("REFRESH", 0.2), ("SILENT", 1.5), ("POLL", 0.1), ("QUIET", 0.3), ("OBJECTS_SETTLE", 0.5)):
        monkeypatch.setattr(claims, f"_{name}_SECONDS", seconds)


@pytest.fixture
def store(tmp_path):
    return Retrying(Slow(tmp_path, "slow://store"), 0.0)


def test_one_of_many_processes_that_begin_at_once_has_the_place(store, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(claims, "_has_ended", lambda text: False)
    begun, had, refused = threading.Barrier(8), [], []

    def run():
        begun.wait()
        try:
            with claiming(store, "/.x.claim", "slow://store/x") as claim:
                claim.check()
                had.append(claim)
                time.sleep(3)
                claim.check()
        except FolderInUseError as problem:
            refused.append(str(problem))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(had) == 1 and len(refused) == 7 and not os.listdir(tmp_path)
    assert all(one.startswith("slow://store/x: ") and " process " in one for one in refused), refused


def test_a_claim_that_nobody_keeps_up_is_taken_over(store, tmp_path, quick, caplog):
    (tmp_path / ".x.claim").write_text(json.dumps(FOREIGN))
    began = time.monotonic()
    with caplog.at_level("INFO", "plsc"), claiming(store, "/.x.claim", "slow://store/x") as claim:
        claim.check()
    assert time.monotonic() - began > 1.5 and not os.listdir(tmp_path)
    assert "slow://store/x: process 7 on far-away may be writing there; waiting up to 2 s to see" in caplog.text
    assert "slow://store/x: process 7 on far-away was writing there, and has ended; taking over" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"holder": "process 1 on a\\u001b[2J"}', "x" * 5000, "\udcff"])
def test_a_damaged_claim_blocks_nobody_for_ever(store, tmp_path, quick, caplog, text):
    (tmp_path / ".x.claim").write_bytes(text.encode("utf-8", "surrogateescape"))
    with caplog.at_level("INFO", "plsc"), claiming(store, "/.x.claim", "slow://store/x") as claim:
        claim.check()
    assert "another process was writing there" in caplog.text


def test_a_claim_of_a_dead_process_of_this_machine_is_taken_over_at_once(store, tmp_path, monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / ".x.claim").write_text(json.dumps({**FOREIGN, "machine": claims._machine(), "process": ended.pid}))
    monkeypatch.setattr(claims, "_POLL_SECONDS", 3600)  # it would be seen
    with claiming(store, "/.x.claim", "slow://store/x") as claim:
        claim.check()
    (tmp_path / ".x.claim").write_text(json.dumps({**FOREIGN, "machine": claims._machine(), "process": os.getpid()}))
    assert not claims._has_ended((tmp_path / ".x.claim").read_text())


def test_a_process_has_ended_before_its_parent_knows_and_when_another_one_has_its_number():
    running = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        start = claims._start_of(running.pid)
        about = {**FOREIGN, "machine": claims._machine(), "process": running.pid, "start": start}
        assert not claims._has_ended(json.dumps(about))
        assert claims._has_ended(json.dumps({**about, "start": start - 1}))
        running.kill()
        os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
        assert claims._has_ended(json.dumps(about))
    finally:
        running.kill()
        running.wait()


def test_who_has_lost_the_place_hears_so_and_leaves_the_claim_of_the_other(store, tmp_path, quick):
    with claiming(store, "/.x.claim", "slow://store/x") as claim:
        claim.check()
        (tmp_path / ".x.claim").write_text(json.dumps(FOREIGN))
        time.sleep(0.5)  # the thread that keeps the claim up finds it
        with pytest.raises(FolderInUseError, match="slow://store/x: process 7 on far-away has taken the place"):
            claim.check()
    assert json.loads((tmp_path / ".x.claim").read_text()) == FOREIGN


def test_a_claim_that_was_removed_is_lost_for_good(store, tmp_path, quick):
    with claiming(store, "/.x.claim", "slow://store/x", "name another folder") as claim:
        claim.check()
        (tmp_path / ".x.claim").unlink()
        time.sleep(0.5)  # the thread that keeps the claim up finds it
        words = "slow://store/x: the claim of this process was removed; start again .*, or name another folder"
        for _ in range(2):
            with pytest.raises(FolderInUseError, match=words):
                claim.check()
        assert not os.listdir(tmp_path)


@pytest.mark.parametrize("is_kept_up", [True, False])
def test_a_claim_whose_writing_has_failed_is_written_again(store, tmp_path, quick, monkeypatch, is_kept_up):
    """HDFS empties a file before it asks for a block, which a DataNode or a quota may refuse."""
    if not is_kept_up:
        monkeypatch.setattr(claims, "_REFRESH_SECONDS", 3600)
    with claiming(store, "/.x.claim", "slow://store/x") as claim:
        claim.check()
        for left in ("", '{"token": "'):
            (tmp_path / ".x.claim").write_text(left)
            if is_kept_up:
                wait_until(lambda: "token" in claims._parsed((tmp_path / ".x.claim").read_text()))
            claim.check()
        assert claim.loss is None


def test_a_store_that_returns_something_else_is_not_asked_for_ever(store, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(claims, "_OBJECTS_SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(claims, "read_bytes", lambda *arguments: b"<html>")
    words = "slow://store/x: the store does not return what was written there"
    with claiming(store, "/.x.claim", "slow://store/x") as claim, pytest.raises(StorageError, match=words):
        claim.check()


def test_an_object_store_may_take_a_second_longer_for_the_claim_of_one_process(store, tmp_path):
    """The first one has written its claim and seen it before that of the second one is written."""
    with claiming(store, "/.x.claim", "slow://store/x") as claim:
        threading.Timer(1.2, lambda: (tmp_path / ".x.claim").write_text(json.dumps(FOREIGN))).start()
        with pytest.raises(FolderInUseError, match="process 7 on far-away has taken the place of this process there"):
            claim.check()


@pytest.mark.parametrize("since", ["2026-11-27 03:04:05 UTC", "\u001b[2J", 7, None])
def test_a_holder_is_named_with_the_time_at_which_it_began(store, tmp_path, quick, since):
    claim = tmp_path / ".x.claim"
    claim.write_text(json.dumps({**FOREIGN, "since": since}))
    threading.Timer(0.2, lambda: claim.write_text(json.dumps({**FOREIGN, "since": since, "count": 4}))).start()
    does = f"has been writing there since {since}" if isinstance(since, str) and "UTC" in since else "is writing there"
    words = f"^slow://store/x: process 7 on far-away {does}; wait for it to end, or name another place$"
    with pytest.raises(FolderInUseError, match=words), claiming(store, "/.x.claim", "slow://store/x"):
        pass
    assert claim.exists()


@pytest.mark.parametrize("kind", ["hdfs", "rpc", "s3", "file"])
def test_one_of_many_that_begin_at_once_has_a_real_place(kind, request, tmp_path, monkeypatch):
    """Their claims replace each other while they are written, which a store may refuse; each of them is told why."""
    monkeypatch.setattr(claims, "_has_ended", lambda text: False)
    if kind == "file":
        address = f"file://{tmp_path}"
    else:
        server = request.getfixturevalue("s3" if kind == "s3" else "hdfs")
        if kind == "rpc":
            pytest.importorskip("hdfs_native")
        address = {"hdfs": getattr(server, "web", ""), "rpc": getattr(server, "address", "")}.get(kind, "s3://bucket")
    store = open_hdfs(address, None if kind in ("s3", "file") else "root,", patience=30)
    path = f"/{tmp_path.name}/.plsc.claim"
    begun, ended, had, refused = threading.Barrier(6), threading.Event(), [], []

    def run():
        begun.wait()
        try:
            with claiming(store, path, "the place") as claim:
                claim.check()
                had.append(claim)
                ended.wait(TIMEOUT)
                claim.check()
        except (FolderInUseError, StorageError) as problem:
            refused.append(problem)
            if len(refused) == 5:
                ended.set()

    threads = [threading.Thread(target=run, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert len(had) == 1 and all(isinstance(one, FolderInUseError) for one in refused), refused
    assert store.status(path) is None


def test_the_claim_of_another_user_of_hdfs_who_has_died_is_taken_over(hdfs, tmp_path, quick):
    """HDFS lets nobody replace the file of another user, and everybody remove it who may write to the folder."""
    hdfs.client().makedirs(f"/{tmp_path.name}", permission="777")
    write_bytes(open_hdfs(hdfs.web, "eve,"), f"/{tmp_path.name}/.x.claim", json.dumps(FOREIGN).encode())
    store = open_hdfs(hdfs.web, "name,")
    with claiming(store, f"/{tmp_path.name}/.x.claim", "the place") as claim:
        claim.check()
    assert not store.list(f"/{tmp_path.name}")


def test_a_folder_is_downloaded_without_the_claims_in_it(store, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/a").write_text("a")
    with claiming(store, inside("/there"), "slow://store/there"), claiming(store, next_to("/there/a"), "a"):
        assert set(store.list("/there")) == {".plsc.claim", ".a.claim", "a"}
        get(store, "/there", tmp_path / "here")
    assert os.listdir(tmp_path / "here") == ["a"]


@pytest.mark.parametrize("direction", ["put", "get"])
def test_files_of_a_user_that_are_named_like_claims_are_copied(store, tmp_path, direction):
    files = {
        ".notes.claim": b"of an insurance",
        ".empty.claim": b"",
        ".settled.claim": b'{"token": "x"}',
        ".large.claim": json.dumps(FOREIGN).encode() * 20,
        ".list.claim": b"[" * 900,
    }
    (tmp_path / "there").mkdir()
    for name, data in files.items():
        (tmp_path / "there" / name).write_bytes(data)
    put(store, tmp_path / "there", "/here") if direction == "put" else get(store, "/there", tmp_path / "here")
    assert {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()} == files


def test_a_claim_that_ends_while_a_folder_is_listed_is_no_file_of_it(store):
    assert is_claim(store, "/.x.claim", Status(300, False, 0.0))


def test_a_claim_outlasts_a_store_that_is_down(store, tmp_path, quick):
    with claiming(store, "/.x.claim", "slow://store/x") as claim:
        claim.check()
        store._storage.is_down = True
        time.sleep(0.6)
        store._storage.is_down = False
        before = (tmp_path / ".x.claim").read_bytes()
        time.sleep(0.6)
        claim.check()
        assert (tmp_path / ".x.claim").read_bytes() != before


@pytest.mark.parametrize("kind", ["hdfs", "s3", "file"])
def test_a_second_command_on_another_machine_gets_one_line_and_a_dead_first_one_does_not_block(kind, request, tmp_path):
    """Two folders for temporary files stand for two machines, since the locks in one are not seen in the other."""
    for name in ("ant", "bee"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(4):
            (tmp_path / "data" / name / f"{k}.png").write_bytes(encode(np.full((8, 8, 3), 100 + k, np.uint8)))
    if kind == "file":
        there = f"file://{tmp_path}/store"
    else:
        server = request.getfixturevalue(kind)
        there = f"{server.web.replace('http', 'webhdfs')}/{tmp_path.name}" if kind == "hdfs" else "s3://bucket/claims"
    words = ["data", "convert", str(tmp_path / "data"), f"{there}/tar", "--to", "tar", "--shards", "4"]
    slow = (
        "import time; from plsc import cli; from plsc.datasets.remote_staging import RemoteStaging as R\n"
        "lists = R.write_lists\nR.write_lists = lambda *a: (time.sleep(600), lists(*a))\n"
        "raise SystemExit(cli.main())"
    )

    def begin(number, *program):
        (tmp_path / f"machine{number}").mkdir(exist_ok=True)
        variables = {**environment(), "TMPDIR": str(tmp_path / f"machine{number}")}
        return subprocess.Popen(
            [sys.executable, *program, *words], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    address = split_address("x", f"{there}/tar")
    store = open_hdfs(address.server if kind != "file" else "file:///", None)
    claim = os.path.join(os.path.dirname(address.path), ".tar.claim")
    first = begin(1, "-c", slow)
    try:
        deadline = time.monotonic() + TIMEOUT
        while store.status(claim) is None:
            assert first.poll() is None and time.monotonic() < deadline, first.communicate()
            time.sleep(0.1)
        second = begin(2, "-m", "plsc")
        out, err = second.communicate(timeout=TIMEOUT)
        wanted = f"plsc: error: {there}/tar: process {first.pid} on "
        assert second.returncode == 1 and not out and "Traceback" not in err, err
        said = " has been writing there since 20.* UTC; wait for it to end, or name another place"
        assert err.splitlines()[-1].startswith(wanted) and re.search(said, err)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert b"token" in read_bytes(store, claim)
    third = begin(2, "-m", "plsc")
    out, err = third.communicate(timeout=TIMEOUT)
    assert third.returncode == 0 and "8 images of 2 classes" in out, err
    assert store.status(claim) is None


def test_put_of_a_folder_waits_for_no_other_where_files_appear_one_by_one(tmp_path, monkeypatch, capsys):
    pytest.importorskip("fsspec")
    from plsc import cli
    from plsc.storage.address import Address

    monkeypatch.setattr(Address, "is_fleeting", False)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a").write_text("a")
    store = open_hdfs("memory://claims", None)
    write_bytes(store, "/there/other", b"")
    with claiming(store, "/there/.x.claim", "memory://claims/there/x"):
        monkeypatch.setattr(claims, "_POLL_SECONDS", 0.1)
        threading.Timer(1, lambda: write_bytes(store, "/there/.x.claim", json.dumps(FOREIGN).encode())).start()
        assert cli.main(["fs", "put", str(tmp_path / "x"), "memory://claims/there"]) == 1
    err = capsys.readouterr().err
    assert "memory://claims/there/x: process 7 on far-away is writing there" in err
    store.delete("/there/.x.claim")
    assert cli.main(["fs", "put", str(tmp_path / "x"), "memory://claims/there"]) == 0
    assert sorted(store.list("/there")) == ["other", "x"]
