"""The lock on a folder, held by real processes."""

import errno
import fcntl
import logging
import os
import platform
import signal
import subprocess
import sys
import threading

import pytest

from plsc.errors import ConfigError
from plsc.machine.locks import LOCK_NAME, FolderInUseError, lock_folder

ADVICE = "choose another folder"
HOLD = """
import sys
from plsc.machine.locks import lock_folder
with lock_folder(sys.argv[1], "choose another folder"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock on `tmp_path / "o"` until its stdin is closed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "o")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def take(folder, patience=0.0):
    with lock_folder(folder, ADVICE, patience) as is_protected:
        return is_protected


def test_a_second_process_is_refused_and_the_error_names_the_folder_and_the_holder(holder, tmp_path):
    with pytest.raises(FolderInUseError) as refused:
        take(tmp_path / "o")
    assert str(refused.value) == (
        f"{tmp_path}/o: process {holder.pid} on {platform.node()} is writing there; wait for it to end, or {ADVICE}"
    )


def test_the_lock_file_goes_with_the_lock(holder, tmp_path):
    assert os.listdir(tmp_path / "o") == [LOCK_NAME]
    holder.communicate()
    assert os.listdir(tmp_path / "o") == []
    assert take(tmp_path / "o")


def test_a_killed_holder_frees_the_folder_and_the_file_it_left_does_not_count(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert os.listdir(tmp_path / "o") == [LOCK_NAME]
    assert take(tmp_path / "o")
    assert os.listdir(tmp_path / "o") == []


def test_patience_waits_for_the_holder_to_end(holder, tmp_path):
    threading.Timer(0.3, holder.stdin.close).start()
    assert take(tmp_path / "o", patience=60)


def test_a_wait_is_reported_and_names_the_holder(holder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("plsc.machine.locks._QUIET_SECONDS", 0.0)
    threading.Timer(0.3, holder.stdin.close).start()
    with caplog.at_level(logging.INFO, "plsc"):
        assert take(tmp_path / "o", patience=60)
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"o: process {holder.pid} on " in line and "waiting up to 60 s" in line


def test_many_processes_take_turns(tmp_path):
    """Each one removes the lock file, which the next one may have opened already."""
    script = """
import os, sys
from pathlib import Path
from plsc.machine import locks
locks._POLL_SECONDS = 0
for _ in range(20):
    with locks.lock_folder(sys.argv[1], "", patience=120):
        inside = Path(sys.argv[1]) / "inside"
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        inside.unlink()
"""
    command = [sys.executable, "-c", script, str(tmp_path / "o")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[1] for process in processes] == [""] * 3
    assert os.listdir(tmp_path / "o") == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF])
def test_a_file_system_without_locks_is_never_taken_for_a_free_folder(tmp_path, monkeypatch, caplog, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING, "plsc"), lock_folder(tmp_path / "o", ADVICE) as is_protected:
        assert not is_protected
        assert take(tmp_path / "o") is False  # the second one continues too, with a warning of its own
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith(f"{tmp_path}/o: its file system has no locks ({os.strerror(number)})")
    assert "nothing keeps a second process from writing there" in caplog.messages[0]
    assert os.listdir(tmp_path / "o") == []


def test_a_lock_that_fails_for_another_reason_is_an_error(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ConfigError, match=r"cannot be locked \(Input/output error\); choose another folder"):
        take(tmp_path)


def test_a_network_file_system_may_call_a_held_lock_a_missing_permission(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(FolderInUseError, match="another process is writing there"):
        take(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/self"):
        with pytest.raises(ConfigError, match=f"{place}: cannot write there .*; choose another folder"):
            take(place)


def test_forked_children_do_not_keep_the_lock_of_a_parent_that_was_killed(tmp_path):
    script = """
import os, sys, time
from plsc.machine.locks import lock_folder
with lock_folder(sys.argv[1], ""):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "o")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        try:
            with pytest.raises(FolderInUseError):
                take(tmp_path / "o")
            parent.kill()
            parent.wait()
            os.kill(child, 0)  # the child still runs
            assert take(tmp_path / "o")
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_forked_child_that_leaves_the_block_leaves_the_lock_to_its_parent(tmp_path):
    script = """
import os, sys
from plsc.machine.locks import lock_folder
with lock_folder(sys.argv[1], ""):
    child = os.fork()
    if child == 0:
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), os.listdir(sys.argv[1]))
"""
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert process.stdout == f"7 {[LOCK_NAME]}\n", process.stderr


@pytest.mark.parametrize("kind", ["symbolic", "hard", "folder", "pipe"])
def test_something_else_with_the_name_of_the_lock_file_is_refused_and_keeps_its_bytes(tmp_path, kind):
    (tmp_path / "o").mkdir()
    (tmp_path / "precious").write_text("mine")
    lock = tmp_path / "o" / LOCK_NAME
    {
        "symbolic": lambda: lock.symlink_to(tmp_path / "precious"),
        "folder": lock.mkdir,
        "pipe": lambda: os.mkfifo(lock),
    }.get(kind, lambda: os.link(tmp_path / "precious", lock))()
    with pytest.raises(ConfigError, match=rf"{tmp_path}/o.*\.plsc\.lock: (is a link|Is a directory).*{ADVICE}"):
        take(tmp_path / "o")
    assert (tmp_path / "precious").read_text() == "mine"
    assert os.path.lexists(lock)
