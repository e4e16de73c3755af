"""Machines for tests: network, disk, process ids and host name of their own, on one real machine.

Each machine is a network namespace that a cable (a veth pair) connects to a switch (a bridge in a namespace of its
own). Programs of a machine also have their own mounts, where the folder `disk` is that machine's, their own process
ids and their own host name. It needs root and iproute2; `reason_to_skip` says what is missing.

    with Network(folder, ["machine-a", "machine-b"]) as network:
        a, b = network.machines
        process = a.start("run", "--nnodes", "2", "--master", f"{a.address}:29500", "train.py")
        b.cut_cable()
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from killed_runs import children_of
from ranks import HELPERS, TIMEOUT, environment

_numbers = itertools.count()
# The arguments of `sh -c`: the host name, the machine's disk, where all machines see theirs, and a command.
_BECOME = 'hostname "$0" && mount --bind "$1" "$2" && cd "$2" && shift 2 && exec "$@"'


@functools.cache
def reason_to_skip() -> Optional[str]:
    """Returns why there can be no such machines here, or None."""
    if os.geteuid() != 0:
        return "namespaces need root"
    missing = [name for name in ("ip", "unshare", "mount") if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    name = f"plsc{os.getpid()}try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"namespaces cannot be made here: {made.stderr.strip()}"
    try:
        words = ["ip", "netns", "exec", name, "unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "true"]
        tried = subprocess.run(words, capture_output=True, text=True)
        return f"namespaces cannot be used here: {tried.stderr.strip()}" if tried.returncode else None
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


class Machine:
    """A machine of a `Network`.

    Attributes:
        name: Its host name.
        address: Its IPv4 address.
        disk: The folder that its programs see as `Network.disk`.
    """

    def __init__(self, network: Network, number: int, name: str) -> None:
        self._network = network
        self.name, self.address = name, f"10.77.0.{number + 1}"
        self.disk = network.folder / f"disk of {name}"
        self.disk.mkdir()
        self.namespace = f"{network.prefix}n{number}"
        self.port = f"{network.prefix}p{number}"

    def start(self, *arguments: Any, variables: Sequence[tuple[str, str]] = ()) -> Program:
        """Starts `python -m plsc <arguments>` on this machine."""
        words = [sys.executable, "-m", "plsc", *map(str, arguments)]
        program = Program(
            [
                *("ip", "netns", "exec", self.namespace, "unshare", "--mount", "--uts", "--pid", "--fork"),
                *("--kill-child", "--mount-proc", "sh", "-c", _BECOME, self.name, str(self.disk)),
                *(str(self._network.disk), *words),
            ],
            {**environment(), **dict(variables)},
        )
        self._network.programs.append(program)
        return program

    def cut_cable(self) -> None:
        """Unplugs the network."""
        _ip("-n", self._network.switch, "link", "set", self.port, "down")

    def mend_cable(self) -> None:
        """Plugs the network in again."""
        _ip("-n", self._network.switch, "link", "set", self.port, "up")

    def slow_cable(self, milliseconds: float, loss: float) -> None:
        """Delays everything that comes and goes, and loses a share of the packets; needs no support by the kernel."""
        switch, inner, outer = self._network.switch, f"{self.port}i", f"{self.port}o"
        _ip("-n", switch, "link", "add", inner, "type", "veth", "peer", "name", outer)
        _ip("-n", switch, "link", "set", self.port, "nomaster")
        _ip("-n", switch, "link", "set", inner, "master", "bridge", "up")
        _ip("-n", switch, "link", "set", outer, "up")
        words = ["ip", "netns", "exec", switch, sys.executable, str(HELPERS / "slow_cable.py")]
        self._network.helpers.append(
            subprocess.Popen([*words, self.port, outer, str(milliseconds), str(loss)], stdout=subprocess.PIPE)
        )
        stdout = self._network.helpers[-1].stdout
        assert stdout is not None and stdout.readline() == b"ready\n"

    def lose_disk(self) -> None:
        """Replaces the disk by an empty one."""
        for path in self.disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class Program:
    """A running `plsc` of a machine. A thread collects what it writes to stderr.

    Attributes:
        lines: Its lines so far.
        seconds: When it ended, on the clock of `time.monotonic`; None while it runs.
    """

    def __init__(self, command: Sequence[str], variables: dict[str, str]) -> None:
        self.lines: list[str] = []
        self.ended: Optional[float] = None
        self.process = subprocess.Popen(
            command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
        self.process.wait()
        self.ended = time.monotonic()

    @property
    def text(self) -> str:
        """What it has written so far."""
        return "\n".join(self.lines)

    @property
    def launcher(self) -> int:
        """The process id of the launcher, as this test sees it."""
        return children_of(self.process.pid)[0]

    @property
    def ranks(self) -> list[int]:
        """The process ids of its ranks."""
        return children_of(self.launcher)

    def wait(self) -> int:
        """Waits until the machine has ended and returns its status."""
        self._reader.join(TIMEOUT)
        assert self.ended is not None, self.text
        return self.process.returncode

    def wait_for(self, words: str, times: int = 1) -> None:
        """Waits until it has written these words."""
        deadline = time.monotonic() + TIMEOUT
        while self.text.count(words) < times:
            assert self.ended is None and time.monotonic() < deadline, self.text
            time.sleep(0.01)

    def kill(self) -> None:
        """Ends the launcher and its ranks at once, as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def signal(self, number: int) -> None:
        """Sends a signal to the launcher."""
        os.kill(self.launcher, number)


class Network:
    """Machines at one switch. They end, with all their programs, at the end of the `with` block.

    Args:
        folder: An empty folder for their disks.
        names: Their host names.

    Attributes:
        disk: Where every machine sees its own disk.
        machines: The machines.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.prefix = f"p{os.getpid()}x{next(_numbers)}"
        self.switch = f"{self.prefix}s"
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.programs: list[Program] = []
        self.helpers: list[subprocess.Popen] = []
        self.machines = [Machine(self, number, name) for number, name in enumerate(names)]

    def __enter__(self) -> Network:
        _remove_leftovers()
        try:
            _ip("netns", "add", self.switch)
            _ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self.switch, "link", "set", "bridge", "up")
            for machine in self.machines:
                self._connect(machine)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _connect(self, machine: Machine) -> None:
        inside = machine.namespace
        _ip("netns", "add", inside)
        _ip("-n", inside, "link", "set", "lo", "up")
        _ip("-n", inside, "link", "add", "eth7", "type", "veth", "peer", "name", machine.port, "netns", self.switch)
        _ip("-n", inside, "address", "add", f"{machine.address}/24", "dev", "eth7")
        _ip("-n", inside, "link", "set", "eth7", "up")
        _ip("-n", self.switch, "link", "set", machine.port, "master", "bridge", "up")

    def __exit__(self, *exception: object) -> None:
        for program in self.programs:
            program.kill()
        for helper in self.helpers:
            helper.kill()
            helper.communicate()
        for namespace in (self.switch, *(machine.namespace for machine in self.machines)):
            _remove(namespace)


def _remove_leftovers() -> None:
    """Removes the namespaces of tests that were killed."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for match in re.finditer(r"^p(\d+)x\d+(s|n\d+)\b", listed, re.MULTILINE):
        if not Path(f"/proc/{match[1]}").exists():
            _remove(match[0])


def _remove(namespace: str) -> None:
    # Its interfaces go with it.
    subprocess.run(["ip", "netns", "del", namespace], capture_output=True)


def pause(pid: int, seconds: float) -> None:
    """Stops a process for a while."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _ip(*words: str) -> None:
    process = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert process.returncode == 0, f"ip {' '.join(words)}: {process.stderr}"
