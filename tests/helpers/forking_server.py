"""Forks Python processes from one that has imported Paddle already, which saves each of them 2 s of processor time.

`ranks.py`, in the same folder, starts one server for each worker of pytest, and asks it to run what `python -m plsc
...` would run. The launcher of `plsc run` is the real one, but the ranks it starts are forks too. A fork differs from a
fresh process in two ways: its modules are loaded, and all forks share one hash seed. Tests of signals, of kills and of
other launchers start fresh processes instead.

A request is one message with the arguments of `python -m plsc`, the environment and the folder as JSON, and two file
descriptors for stdout and stderr. The server answers with the process id and, when the process has ended, its status.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Optional

import numpy as np
import paddle

import plsc.cli
import plsc.engine.trainer
import plsc.entry  # noqa: F401

start_process = subprocess.Popen
MESSAGE_BYTES = 1 << 20


class Become(BaseException):
    """Unwinds the stack of a forked process, so that its script runs at the top of this file."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__()
        self.arguments = arguments


class ForkedRank:
    """A process that runs a script as a fork of this one. It has what the launcher uses of `subprocess.Popen`."""

    def __init__(self, command: list[str], environment: dict[str, str], stdout: Optional[int]) -> None:
        readable, writable = os.pipe()
        self.returncode: Optional[int] = None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(readable)
            if stdout == subprocess.DEVNULL:
                stdout = os.open(os.devnull, os.O_WRONLY)
            replace_process(environment, os.getcwd(), stdout, writable)
            raise Become(command[1:])
        os.close(writable)
        self.stderr = os.fdopen(readable, "rb")

    def poll(self) -> Optional[int]:
        return self._wait(os.WNOHANG)

    def wait(self, timeout: Optional[float] = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._wait(os.WNOHANG) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a forked rank", timeout or 0)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def _wait(self, options: int) -> Optional[int]:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:  # another thread waits for it too, and is about to set the status
                return self.returncode
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork_ranks(command: Any, **options: Any) -> Any:
    """Replaces `subprocess.Popen` in a launcher: forks Python scripts, and starts all other processes as usual."""
    words = [os.fspath(word) for word in command]
    is_script = words[1:3] == ["-m", "plsc"] or not words[1].startswith("-")
    if words[0] != sys.executable or not is_script or options.get("stderr") != subprocess.PIPE:
        return start_process(command, **options)
    return ForkedRank(words, options["env"], options.get("stdout"))


def replace_process(environment: dict[str, str], folder: str, stdout: Optional[int], stderr: int) -> None:
    """Gives a forked process its own environment, folder, output and random state."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if stdout is not None:
        os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    random.seed()
    np.random.seed()
    paddle.seed(random.getrandbits(31))


def serve(connection: socket.socket) -> None:
    """Forks one process after another until the other side closes the connection; raises `Become` in each of them."""
    while True:
        message, files, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 2)
        if not message:
            return
        request = json.loads(message)
        pid = os.fork()
        if pid == 0:
            connection.close()
            os.setsid()
            replace_process(request["environment"], request["folder"], *files)
            raise Become(["-m", "plsc", *request["arguments"]])
        for file in files:
            os.close(file)
        connection.sendall(f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def import_site_module() -> None:
    """Imports the `sitecustomize` of PYTHONPATH, as Python does when it starts."""
    sys.modules.pop("sitecustomize", None)
    sys.path[1:1] = [folder for folder in os.environ["PYTHONPATH"].split(os.pathsep) if folder not in sys.path]
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")


def run_script(arguments: list[str]) -> None:
    """Runs what `python <arguments>` runs: `-m plsc ...`, or a script."""
    if arguments[:2] == ["-m", "plsc"]:
        sys.argv = arguments[1:]
        subprocess.Popen = fork_ranks  # type: ignore[misc,assignment]
        sys.exit(plsc.cli.main(arguments[2:]))
    subprocess.Popen = start_process  # type: ignore[misc]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the launcher has it for its ranks
    import_site_module()
    sys.argv = arguments
    sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
    runpy.run_path(arguments[0], run_name="__main__")


def leave(status: int) -> None:
    """Ends a fork as Python ends a process, without the destructors of Paddle, which can crash in a fork."""
    threading._shutdown()  # waits for the threads that are not daemons, and for executors
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        time.sleep(0.5)  # A process with Paddle takes about as long to end, and its peers may still be reading from it.
    os._exit(status)


def status_of(end: SystemExit) -> int:
    """Returns the exit status that Python gives for a SystemExit; prints a message, as Python does."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    if len(os.listdir("/proc/self/task")) > 1:
        sys.exit("this Paddle starts threads when it is imported, so a fork of it can wait for their locks forever")
    gc.freeze()
    job: Optional[list[str]] = None
    try:
        serve(socket.socket(fileno=int(sys.argv[1])))
    except Become as become:
        job = become.arguments
    while job is not None:
        current, job = job, None
        try:
            run_script(current)
            leave(0)
        except Become as become:  # a launcher has forked this rank
            job = become.arguments
        except SystemExit as end:
            leave(status_of(end))
        except BaseException:
            sys.excepthook(*sys.exc_info())
            leave(1)
