"""Forks Python processes from one that has imported Paddle already, which saves each of them 2 s of processor time.

`ranks.py`, in the same folder, starts one server for each worker of pytest, and asks it to run what `python -m plsc
...` or another `python ...` would run. The launcher, of plsc or of Paddle, is the real one, but the ranks it starts are
forks too. A fork differs from a fresh process in two ways: its modules are loaded, and all forks share one hash seed.

A request is one message with the arguments of `python`, the environment and the folder as JSON, and three file
descriptors: stdout, stderr, and the end of a pipe that gets the status when the process has ended. The server answers
with the process id.
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
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Optional

import numpy as np
import paddle
import PIL.Image

import plsc.cli
import plsc.engine.trainer
import plsc.entry  # noqa: F401

start_process = subprocess.Popen
THREADS_OF_PADDLE: list[int] = []
MESSAGE_BYTES = 1 << 20
OPTIONS = {"env", "stdout", "stderr", "preexec_fn", "shell"}  # of `subprocess.Popen`, that a forked rank honours


class Become(BaseException):
    """Unwinds the stack of a forked process, so that its script runs at the top of this file."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__()
        self.arguments = arguments


class ForkedRank:
    """A process that runs a script as a fork of this one. It has what the launchers use of `subprocess.Popen`."""

    def __init__(self, words: list[str], options: dict[str, Any]) -> None:
        stdout, stderr, prepare = (options.get(name) for name in ("stdout", "stderr", "preexec_fn"))
        readable, writable = os.pipe() if stderr == subprocess.PIPE else (None, None)
        self.returncode: Optional[int] = None
        self.pid = fork()
        if self.pid == 0:
            if prepare is not None:
                prepare()
            files = [descriptor_of(stdout), descriptor_of(stderr) if writable is None else writable]
            replace_process(options["env"], os.getcwd(), files)
            raise Become(words)
        if readable is not None and writable is not None:
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


def fork() -> int:
    """Forks this process, as `os.fork` does, at a moment when no other thread of Paddle can hold a lock.

    When Paddle 2 is imported, its bRPC starts a thread that samples counters once a second, and sleeps otherwise; bRPC
    starts it again in a fork.
    """
    while not all(map(is_asleep, THREADS_OF_PADDLE)):
        time.sleep(0.001)
    pid = os.fork()
    if pid == 0:
        THREADS_OF_PADDLE[:] = other_threads()
    return pid


def other_threads() -> list[int]:
    """Returns the threads of this process that are not the main one."""
    return [int(thread) for thread in os.listdir("/proc/self/task") if int(thread) != os.getpid()]


def is_asleep(thread: int) -> bool:
    with open(f"/proc/self/task/{thread}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


def descriptor_of(file: Any) -> Optional[int]:
    """Returns the descriptor that `subprocess.Popen` would use for a file; None keeps that of this process."""
    if file == subprocess.DEVNULL:
        return os.open(os.devnull, os.O_WRONLY)
    return file.fileno() if hasattr(file, "fileno") else file


def fork_ranks(command: Any, **options: Any) -> Any:
    """Replaces `subprocess.Popen` in a launcher: forks Python scripts, and starts all other processes as usual."""
    words = [os.fspath(word) for word in command]
    script = words[2:] if words[1:2] == ["-u"] else words[1:]
    is_script = script[:2] == ["-m", "plsc"] or not script[0].startswith("-")
    if words[0] != sys.executable or not is_script or not options.keys() <= OPTIONS or options.get("shell"):
        return start_process(command, **options)
    return ForkedRank(["--rank", *script], options)


def replace_process(environment: dict[str, str], folder: str, files: list[Optional[int]]) -> None:
    """Gives a forked process its own environment, folder, output, signal handlers and random state."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, file in zip((1, 2), files):
        if file is not None:
            os.dup2(file, number)
    close_descriptors()
    for number in (signal.SIGTERM, signal.SIGABRT):
        if callable(signal.getsignal(number)):  # of a launcher; Paddle's own handlers, which Python cannot see, remain
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    np.random.seed()
    paddle.seed(random.getrandbits(31))


def close_descriptors() -> None:
    """Closes what `exec` would close, so that a pipe ends when it would. Objects that may close them again remain."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            if number > 2 and number != nothing and not os.get_inheritable(number):
                os.dup2(nothing, number, inheritable=False)
    os.close(nothing)


def serve(connection: socket.socket) -> None:
    """Forks processes until the other side closes the connection; raises `Become` in each of them."""
    with selectors.DefaultSelector() as events:
        events.register(connection, selectors.EVENT_READ)
        while True:
            for key, _ in events.select():
                if key.fileobj is not connection:
                    end_of(key, events)
                elif not answer(connection, events):
                    return


def answer(connection: socket.socket, events: selectors.BaseSelector) -> bool:
    """Forks the process of the next request; returns whether there was one."""
    message, files, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 3)
    if not message:
        return False
    for file in files:
        os.set_inheritable(file, False)
    request = json.loads(message)
    pid = fork()
    if pid == 0:
        os.setsid()
        replace_process(request["environment"], request["folder"], files[:2])
        raise Become(request["arguments"])
    os.close(files[0])
    os.close(files[1])
    events.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, files[2]))
    connection.sendall(f"{pid}\n".encode())
    return True


def end_of(key: selectors.SelectorKey, events: selectors.BaseSelector) -> None:
    """Writes the status of a process that has ended to its pipe, unless the other side has closed it."""
    pid, pipe = key.data
    _, status = os.waitpid(pid, 0)
    events.unregister(key.fileobj)
    os.close(key.fd)
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os.close(pipe)


def import_site_module() -> None:
    """Imports the `sitecustomize` of PYTHONPATH, as Python does when it starts."""
    sys.modules.pop("sitecustomize", None)
    sys.path[1:1] = [folder for folder in os.environ["PYTHONPATH"].split(os.pathsep) if folder not in sys.path]
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")


def run_script(arguments: list[str]) -> None:
    """Runs what `python <arguments>` runs: `-m <module> ...`, `-c <code> ...` or a script; `--rank` marks a rank."""
    is_rank = arguments[:1] == ["--rank"]
    arguments = arguments[is_rank:]
    subprocess.Popen = start_process  # type: ignore[misc]
    if is_rank:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the launcher has it for its ranks
    if arguments[0] == "-m" and not is_rank:
        subprocess.Popen = fork_ranks  # type: ignore[misc,assignment]
    import_site_module()
    if arguments[:2] == ["-m", "plsc"]:
        sys.argv = arguments[1:]
        sys.exit(plsc.cli.main(arguments[2:]))
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path[0] = ""
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
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
    if other_threads() and not paddle.__version__.startswith("2."):
        sys.exit("this Paddle starts threads when it is imported, so a fork of it can wait for their locks forever")
    THREADS_OF_PADDLE[:] = other_threads()
    PIL.Image.init()  # imports its 40 formats, which the first image would do in each fork
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
