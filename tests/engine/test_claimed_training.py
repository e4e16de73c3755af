"""Trainings with one folder for uploads: the second one ends at its start, and a dead one keeps nobody out."""

import contextlib
import json
import re
import signal
import time
from pathlib import Path

import pytest
from ranks import popen_ranks, start, wait_until

from plsc.checkpoint import remote
from plsc.storage import StorageError, open_hdfs, rpc
from plsc.storage.base import read_bytes, write_bytes

FOREIGN = {"token": "x", "holder": "process 7 on far-away", "since": "2026-11-27 03:04:05 UTC", "count": 1}


class Folder:
    """A folder of a store that receives uploads."""

    def __init__(self, address, ugi, path):
        self.store, self.path, self.claim = open_hdfs(address, ugi), path, f"{path}/.plsc.claim"
        self.options = (
            "with_test=false",
            "log_period=1",
            "train_epochs=2",
            "background_save=false",
            f"hdfs_info={json.dumps([address, ugi, path])}",
            'hdfs_upload=["epoch", 60]',
        )

    def names(self):
        return sorted(self.store.list(self.path))

    def runs(self):
        """Returns the run that has saved each checkpoint."""
        found = remote.list_remote(self.store, self.path)
        return {one.path.rpartition("/")[2]: one.checkpoint.meta["run"] for one in found}

    def holder(self):
        """Returns what the claim says; HDFS shows it empty while it is written."""
        found = []

        def read():
            with contextlib.suppress(ValueError, StorageError):
                found.append(json.loads(read_bytes(self.store, self.claim)))
            return bool(found)

        wait_until(read)
        return found[0]

    def wait_for_writing(self):
        """Waits until the claim has just been written again, so that what follows comes between two of its writings."""
        count = self.holder()["count"]
        wait_until(lambda: time.sleep(0.2) or self.holder()["count"] > count)


@pytest.fixture(params=["hdfs", "s3"])
def folder(request, tmp_path):
    server = request.getfixturevalue(request.param)
    if request.param == "s3":
        return Folder("s3://bucket", None, tmp_path.name)
    return Folder(server.address if rpc.is_installed() else server.web, "root,", f"/{tmp_path.name}")


@contextlib.contextmanager
def held_in_step(step, *arguments):
    """Starts two ranks that wait in a step; yields their launcher once they do, and what rank 0 has said."""
    process, said = popen_ranks("train_glyphs.py", 2, *arguments, f"--hold-step={step}"), []
    try:
        for line in process.stderr:
            said.append(line)
            if f"holding step {step}" in line:
                break
        else:
            raise AssertionError("".join(said)[-3000:])
        yield process, said
    finally:
        process.kill_group()


def test_the_second_training_ends_at_its_start_and_a_killed_first_one_keeps_nobody_out(folder, glyphs, tmp_path):
    with held_in_step(5, glyphs, tmp_path / "first", *folder.options) as (first, _):
        wait_until(lambda: "0" in folder.names())
        earlier = folder.runs()
        second = start("train_glyphs.py", 2, glyphs, tmp_path / "second", *folder.options)
        assert second.returncode == 1 and "Traceback" not in second.stderr, second.stderr[-3000:]
        holder = folder.holder()
        begin = (
            f"{folder.path}: {holder['holder']} has been writing there since {holder['since']}; wait for it to end, or"
        )
        lines = [line for line in second.stderr.splitlines() if begin in line]
        assert lines and all(line.endswith("or choose another folder with set_hdfs_info") for line in lines), lines
        assert "epoch 0, step 1" not in second.stderr and not list((tmp_path / "second").glob("*/meta.json"))
        assert folder.runs() == earlier and folder.names() == [".plsc.claim", "0"]
        folder.wait_for_writing()
        first.kill_group()
        first.communicate()
    third = start("train_glyphs.py", 2, glyphs, tmp_path / "third", *folder.options, "train_epochs=1")
    assert third.returncode == 0, third.stderr[-3000:]
    assert "has ended; taking over" in third.stderr and "waiting up to" not in third.stderr
    assert folder.names() == ["0", "earlier_1"] and set(folder.runs().values()).isdisjoint(earlier.values())


def test_a_restart_after_a_kill_takes_the_claim_over_at_once(folder, glyphs, tmp_path):
    kill = ("--kill-rank=0", "--kill-step=5")
    process = start("train_glyphs.py", 2, glyphs, tmp_path / "run", *folder.options, *kill, restarts=1)
    assert process.returncode == 0 and "resumed from" in process.stderr, process.stderr[-3000:]
    assert "has ended; taking over" in process.stderr and "waiting up to" not in process.stderr
    assert folder.names() == ["0", "1"] and len(set(folder.runs().values())) == 1


def test_a_claim_ends_with_sigterm(folder, glyphs, tmp_path):
    with held_in_step(2, glyphs, tmp_path / "run", *folder.options) as (process, said):
        assert folder.names() == [".plsc.claim"]
        process.terminate()
        for line in process.stderr:
            said.append(line)
            if "received SIGTERM" in line:
                Path(f"{tmp_path}/run.release").touch()
        assert process.wait() == 128 + signal.SIGTERM and "in time" in "".join(said), "".join(said)[-3000:]
    assert folder.names() == list(folder.runs()) and len(folder.names()) == 1


def test_a_training_that_loses_its_claim_continues_and_replaces_nothing(folder, glyphs, tmp_path):
    """As when the store was away for more than a minute for this training, and not for the other one."""
    with held_in_step(5, glyphs, tmp_path / "run", *folder.options) as (process, said):
        wait_until(lambda: "0" in folder.names())
        folder.wait_for_writing()
        write_bytes(folder.store, folder.claim, json.dumps(FOREIGN).encode())
        folder.store.mkdirs(f"{folder.path}/earlier_1")
        folder.store.rename(f"{folder.path}/0", f"{folder.path}/earlier_1/0")
        write_bytes(folder.store, f"{folder.path}/1/of the other", b"x")
        Path(f"{tmp_path}/run.release").touch()
        said.append(process.stderr.read())
        text = "".join(said)
        assert process.wait() == 1 and "Traceback" not in text and "epoch 1, step 3/3" in text, text[-3000:]
    lost = (
        r"NOT UPLOADED to \S+: \S+/run/1, which are complete on disk\. \S+: process 7 on far-away has taken the place"
    )
    assert re.search(lost, text), text[-3000:]
    assert [name for name in folder.names() if not name.endswith(".writing")] == [".plsc.claim", "1", "earlier_1"]
    assert list(folder.store.list(f"{folder.path}/1")) == ["of the other"] and folder.holder() == FOREIGN
