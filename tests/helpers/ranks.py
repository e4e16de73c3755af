"""Runs `python -m plsc` on real processes, as a user would: helper scripts on several ranks, and other commands."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any, Callable, Optional

HELPERS = Path(__file__).parent
ROOT = HELPERS.parent.parent
TIMEOUT = 300  # seconds; ends what hangs, on a machine that is busy with other work too


def command(script: Any, number: int, *arguments: Any, restarts: int = 0) -> list[str]:
    """Returns the command line that runs a script of this folder on `number` ranks in fresh processes."""
    return [sys.executable, "-m", "plsc", *_run_arguments(script, number, arguments, restarts)]


def environment() -> dict[str, str]:
    """Returns the environment of a fresh process: this source tree, and one thread for each rank."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(script: Any, number: int, *arguments: Any, restarts: int = 0) -> subprocess.CompletedProcess:
    """Runs a script of this folder on `number` ranks; returns the finished process, whatever its exit status."""
    return run_plsc(*_run_arguments(script, number, arguments, restarts))


def run_ranks(script: Any, number: int, *arguments: Any, **options: Any) -> subprocess.CompletedProcess:
    """Runs a script of this folder on `number` ranks, and fails with its output unless it succeeds."""
    process = start(script, number, *arguments, **options)
    assert process.returncode == 0, f"{process.stdout[-3000:]}{process.stderr[-6000:]}status {process.returncode}"
    return process


def run_plsc(*arguments: Any, folder: Any = None) -> subprocess.CompletedProcess:
    """Runs `python -m plsc <arguments>`, in a process and ranks forked by `forking_server.py`."""
    return run_python("-m", "plsc", *arguments, folder=folder)


def run_python(
    *arguments: Any, folder: Any = None, variables: Optional[dict[str, str]] = None
) -> subprocess.CompletedProcess:
    """Runs `python <arguments>` in a fork of a Python that has imported Paddle and plsc; see `forking_server.py`.

    Args:
        arguments: `-m` and a module, `-c` and code, or a script, and what follows.
        folder: Where the process runs.
        variables: Its environment, if that is not `environment()`.
    """
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = _fork(arguments, [stdout.fileno(), stderr.fileno()], folder, variables)
        with process:
            try:
                status = process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill_group()
                raise
            finally:
                texts = [file.seek(0) or file.read().decode("utf-8", "replace") for file in (stdout, stderr)]
    return subprocess.CompletedProcess(process.args, status, *texts)


def run_joined(command: list[str], timeout: float = TIMEOUT, **streams: Any) -> subprocess.CompletedProcess:
    """Stands for a `subprocess.run` of Python whose stderr goes to its stdout: what runs is such a fork."""
    with tempfile.TemporaryFile() as output, _fork(tuple(command[1:]), [output.fileno()] * 2, None, None) as process:
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill_group()
            raise
        output.seek(0)
        return subprocess.CompletedProcess(command, status, output.read())


def popen_plsc(*arguments: Any) -> ForkedProcess:
    """Starts what `run_plsc` runs; its stderr is a pipe, its stdout is not kept."""
    return popen_python("-m", "plsc", *arguments)


def popen_ranks(script: Any, number: int, *arguments: Any) -> ForkedProcess:
    """Starts what `start` runs; its stderr is a pipe, its stdout is not kept."""
    return popen_plsc(*_run_arguments(script, number, arguments, 0))


def popen_python(*arguments: Any, variables: Optional[dict[str, str]] = None) -> ForkedProcess:
    """Starts what `run_python` runs; its stderr is a pipe, its stdout is not kept."""
    readable, writable = os.pipe()
    with open(os.devnull, "w") as nothing, open(writable, "wb") as stderr:
        return _fork(arguments, [nothing.fileno(), stderr.fileno()], None, variables, readable)


class ForkedProcess:
    """A process that `forking_server.py` has forked. It has what tests use of `subprocess.Popen`."""

    def __init__(self, args: list[str], pid: int, status: int, stderr: Optional[int]) -> None:
        self.args = args
        self.pid = pid
        self.returncode: Optional[int] = None
        self.stderr = None if stderr is None else os.fdopen(stderr, encoding="utf-8", errors="replace")
        self._status = os.fdopen(status, "rb")

    def __enter__(self) -> ForkedProcess:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._status.close()
        if self.stderr is not None:
            self.stderr.close()

    def poll(self) -> Optional[int]:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float = TIMEOUT) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            line = self._status.readline()
            assert line, "the forking server has ended"
            self.returncode = int(line)
        return self.returncode

    def communicate(self, timeout: float = TIMEOUT) -> tuple[None, str]:
        assert self.stderr is not None
        text = self.stderr.read()
        self.wait(timeout)
        return None, text

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """Kills the process and all ranks that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds, and fails when it never does."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def _run_arguments(script: Any, number: int, arguments: tuple, restarts: int) -> list[str]:
    return list(map(str, ("run", "--ranks", number, "--restarts", restarts, HELPERS / script, *arguments)))


def _fork(
    arguments: tuple, files: list[int], folder: Any, variables: Optional[dict[str, str]], stderr: Optional[int] = None
) -> ForkedProcess:
    """Has the server fork a process with these files as stdout and stderr."""
    words = [str(argument) for argument in arguments]
    request = {"arguments": words, "environment": variables or environment(), "folder": str(folder or Path.cwd())}
    readable, writable = os.pipe()
    server = _server()
    socket.send_fds(server, [json.dumps(request).encode()], [*files, writable])
    os.close(writable)
    return ForkedProcess(words, int(_read_line(server)), readable, stderr)


@cache
def _server() -> socket.socket:
    """A connection to this process's forking server, which ends when the connection is closed."""
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT)
    words = [sys.executable, str(HELPERS / "forking_server.py"), str(theirs.fileno())]
    variables = {**environment(), "GLOG_minloglevel": "1"}  # as the launcher sets it before a rank loads Paddle
    subprocess.Popen(words, env=variables, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    return ours


def _read_line(connection: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise RuntimeError("the forking server has ended")
        line += byte
    return line.decode()
