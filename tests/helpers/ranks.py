"""Runs `python -m plsc` on real processes, as a user would: helper scripts on several ranks, and other commands."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable

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
    """Runs `python -m plsc <arguments>`, on Paddle 3 in a process and ranks forked by `forking_server.py`.

    Paddle 2 starts a thread when it is imported. A fork can inherit a lock that this thread holds, and wait for it
    forever.
    """
    words = [str(argument) for argument in arguments]
    if version("paddlepaddle").startswith("2."):
        command = [sys.executable, "-m", "plsc", *words]
        return subprocess.run(command, env=environment(), cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)
    request = {"arguments": words, "environment": environment(), "folder": str(folder or Path.cwd())}
    server = _server()
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        socket.send_fds(server, [json.dumps(request).encode()], [stdout.fileno(), stderr.fileno()])
        pid = int(_read_line(server))
        try:
            status = int(_read_line(server))
        except socket.timeout:
            os.killpg(pid, signal.SIGKILL)
            _read_line(server)
            status = None
        texts = [file.seek(0) or file.read().decode("utf-8", "replace") for file in (stdout, stderr)]
    if status is None:
        raise subprocess.TimeoutExpired(words, TIMEOUT, *texts)
    return subprocess.CompletedProcess(words, status, *texts)


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds, and fails when it never does."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def _run_arguments(script: Any, number: int, arguments: tuple, restarts: int) -> list[str]:
    return list(map(str, ("run", "--ranks", number, "--restarts", restarts, HELPERS / script, *arguments)))


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
