"""Claims, which keep two machines from writing to one place of a store at the same time."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from made_images import encode
from ranks import TIMEOUT, environment

from plsc.machine.locks import FolderInUseError
from plsc.storage import Retrying, StorageUnavailableError, claims, open_hdfs
from plsc.storage.address import split_address
from plsc.storage.base import read_bytes, write_bytes
from plsc.storage.claims import claiming
from plsc.storage.local import LocalStorage

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
    for name, seconds in (("REFRESH", 0.2), ("SILENT", 1.5), ("POLL", 0.1), ("QUIET", 0.3)):
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


def test_who_has_lost_the_place_hears_so_and_leaves_the_claim_of_the_other(store, tmp_path, quick):
    with claiming(store, "/.x.claim", "slow://store/x") as claim:
        claim.check()
        (tmp_path / ".x.claim").write_text(json.dumps(FOREIGN))
        time.sleep(0.5)  # the thread that keeps the claim up finds it
        with pytest.raises(FolderInUseError, match="slow://store/x: process 7 on far-away has taken the place"):
            claim.check()
    assert json.loads((tmp_path / ".x.claim").read_text()) == FOREIGN


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
        assert err.splitlines()[-1].startswith(wanted) and "is writing there; wait for it to end" in err
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
