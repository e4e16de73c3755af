"""Runs the ranks of several machines as one: starts, watches, ends and restarts them together."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

from plsc.errors import ConfigError, TrainingError
from plsc.machine.launch.hub import Hub
from plsc.machine.launch.link import Link
from plsc.machine.launch.local_ranks import SIGNALS, LocalRanks, Place, check_ranks, say, unseen, variables_of_run
from plsc.machine.launch.network import (
    address_of_interface,
    address_towards,
    interface_of,
    is_own_address,
    parse_address,
    reserved_ports,
    resolve,
)
from plsc.machine.launch.one_machine import POLL_SECONDS, caught_signals
from plsc.version import __version__

_SECONDS_BETWEEN_TRIES = 0.5
_SECONDS_TO_RESOLVE = 60.0  # Kubernetes gives a name to a machine when its launcher has started
_SECONDS_BETWEEN_NOTES = 30.0
_SECONDS_TO_ANSWER_A_SIGNAL = 3.0
_TAIL_LETTERS = 16000


@dataclass(frozen=True)
class Machines:
    """The machines of a run, as the command line names them.

    Attributes:
        nnodes: Their number.
        master: `host:port` where the launchers meet.
        ranks: The number of ranks on each machine.
        node_rank: The number of this machine; None lets the launchers choose.
        restarts: How many times to restart after a failure.
        interface: The network interface to the other machines; None takes that of the route to the master.
        patience: Seconds to wait for machines that are missing.
    """

    nnodes: int
    master: str
    ranks: int
    node_rank: Optional[int] = None
    restarts: int = 0
    interface: Optional[str] = None
    patience: float = 600.0


@dataclass(frozen=True)
class _End:
    """The reason why the ranks of all machines stop.

    Attributes:
        cause: One line; empty when all ranks have succeeded.
        tail: The last lines of the rank that failed first.
        tail_is_reason: Whether they say why.
        signal: The signal that stopped one of the launchers or ranks.
        again: Whether the run is to be restarted.
    """

    cause: str = ""
    tail: Sequence[str] = ()
    tail_is_reason: bool = True
    signal: Optional[int] = None
    again: bool = False

    @property
    def text(self) -> str:
        """What to show of it; the reason comes last."""
        cause = f"plsc: {self.cause}\n"
        tail = "".join(["plsc: the last lines of that rank:\n", *self.tail]) if self.tail else ""
        return cause + tail if self.tail_is_reason else tail + cause


def run_on_machines(command: Sequence[str], machines: Machines, variables: Mapping[str, str]) -> int:
    """Runs `command` as the ranks of this machine, together with the launchers of the other machines.

    The launcher on the master's machine serves as the meeting point. All launchers start their ranks together. When a
    rank fails, a machine is lost, or a launcher receives SIGTERM or SIGINT, all end their ranks and report the first
    cause. With restarts left they start again once every machine is there.

    Args:
        command: The words of the command line; the second one is the script.
        machines: The machines.
        variables: Environment variables of the ranks, in addition to those of this process.

    Returns:
        0; or 1 when a rank or a machine failed; or 128 + the signal that stopped one of the launchers or
        ranks.

    Raises:
        ConfigError: The options do not fit this machine, or those of the other machines.
        TrainingError: The other machines did not come.
    """
    check_ranks(machines.ranks)
    with caught_signals() as signals, contextlib.ExitStack() as resources:
        return _Launcher(command, machines, variables, signals, resources).run()


class _Launcher:
    def __init__(
        self,
        command: Sequence[str],
        machines: Machines,
        variables: Mapping[str, str],
        signals: list[int],
        resources: contextlib.ExitStack,
    ) -> None:
        self._command, self._machines = command, machines
        self._variables = variables_of_run(variables, machines.restarts)
        self._signals, self._sent = signals, 0  # the signals so far, and how many of them the hub knows
        self._signalled = self._noted = time.monotonic()  # when the hub learned of the last one; when a line was shown
        self._host, self._port = parse_address(machines.master)
        self._name = socket.gethostname()
        self._agreed = {
            "--nnodes": machines.nnodes,
            "--ranks": machines.ranks,
            "--restarts": machines.restarts,
            "plsc": __version__,
            "the script": Path(command[1]).name,
            "the SHA-256 of the script": hashlib.sha256(Path(command[1]).read_bytes()).hexdigest()[:16],
        }
        self._attempt = 0
        self._node_rank: Optional[int] = None
        self._link: Optional[Link] = None
        self._ports = resources.enter_context(contextlib.ExitStack())
        self._own_address = address_of_interface(machines.interface) if machines.interface else None
        self._address = self._resolve()
        self._asked_rank = self._open_hub(resources)
        resources.callback(self._disconnect)  # before the hub leaves, which waits for its launchers

    def run(self) -> int:
        """Starts the ranks, again after a failure if the hub says so; returns the status of `run_on_machines`."""
        while True:
            start = self._await_start()
            end = start if isinstance(start, _End) else self._run_once(start)
            if end.signal is not None:
                say(f"plsc: {end.cause}\n")
                return 128 + end.signal
            if not end.cause:
                return 0
            say(end.text)
            if not end.again:
                return 1
            self._attempt += 1
            restarts, patience = self._machines.restarts, self._machines.patience
            say(f"plsc: restart {self._attempt} of {restarts}; waiting up to {patience:.0f} s for all machines\n")

    # The meeting.

    def _resolve(self) -> str:
        """Returns the address of the master."""
        deadline = time.monotonic() + min(_SECONDS_TO_RESOLVE, self._machines.patience)
        is_noted = False
        while True:
            try:
                return resolve(self._host)
            except OSError as problem:
                reason = problem.strerror or str(problem)
            if time.monotonic() > deadline or self._signals:
                raise ConfigError(
                    f"--master {self._machines.master}: the name {self._host} has no IPv4 address here ({reason}); "
                    "correct it, or give the address itself"
                )
            if not is_noted:
                is_noted = True
                say(f"plsc: the name {self._host} has no address yet ({reason}); waiting\n")
            time.sleep(_SECONDS_BETWEEN_TRIES)

    def _open_hub(self, resources: contextlib.ExitStack) -> Optional[int]:
        """Starts the hub if it belongs on this machine; returns the node rank to ask for."""
        machines = self._machines
        is_own = is_own_address(self._address)
        if machines.node_rank != 0 and (machines.node_rank is not None or not is_own):
            return machines.node_rank
        # The address may be one that others have for this machine, or a name that means 127.0.1.1 only here (Debian).
        is_loopback = self._host in ("localhost", "127.0.0.1")
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._address if is_loopback else "", self._port))
            listener.listen(128)
        except OSError as problem:
            listener.close()
            if problem.errno == errno.EADDRINUSE and machines.node_rank is None:
                return None  # by another launcher of this run, or by another program, which the link will tell
            reason = problem.strerror
            raise ConfigError(
                f"--master {machines.master}: cannot listen there ({reason}); choose a free port"
            ) from None
        hub = Hub(listener, self._agreed, machines.nnodes, restarts=machines.restarts, patience=machines.patience)
        if not is_own:
            self._address = "127.0.0.1"
        hub.start()
        resources.callback(hub.leave)
        return 0

    def _await_start(self) -> Union[dict[str, Any], _End]:
        """Joins the other launchers and returns the hub's start message, or the `_End` of the run."""
        ready_on: Optional[Link] = None  # a new connection needs a new message
        deadline = time.monotonic() + self._machines.patience
        while True:
            link = self._connected(deadline)
            if link is not None and link is not ready_on:
                link.send("ready", **self._readiness())
                ready_on = link
            self._send_signals(link)
            message = None if link is None else link.next_message(POLL_SECONDS)
            if self._is_left_alone(link):
                return self._end_by_signal()
            if message is None:
                continue
            if message["kind"] == "start":
                return message
            if message["kind"] == "stop":
                return _end_of(message)
            if message["kind"] == "note":
                say(f"plsc: {message['text']}\n")
            if message["kind"] == "refused":
                if not message["retry"] or time.monotonic() > deadline:
                    kind = TrainingError if message["retry"] else ConfigError
                    raise kind(f"{self._machines.master}: {message['reason']}")
                self._disconnect()
                time.sleep(_SECONDS_BETWEEN_TRIES)

    def _connected(self, deadline: float) -> Optional[Link]:
        """Returns the connection to the hub; None when the hub does not answer now.

        Raises:
            TrainingError: It has not answered until the deadline.
        """
        if self._link is not None and self._link.lost is None:
            return self._link
        self._disconnect()
        hello = {
            "name": self._name,
            "asked_rank": self._asked_rank,
            "former_rank": self._node_rank,
            "agreed": self._agreed,
        }
        try:
            self._link = Link(self._address, self._port, hello)
        except OSError as problem:
            reason = "no answer" if isinstance(problem, socket.timeout) else problem.strerror or str(problem)
            text = (
                f"no launcher answers at {self._machines.master} ({reason}); check that plsc run runs on that machine, "
                "with --node-rank 0 if the address is not its own, and that the port is open"
            )
            now = time.monotonic()
            if now > deadline:
                raise TrainingError(f"{text}; gave up after {self._machines.patience:.0f} s") from None
            if now - self._noted > _SECONDS_BETWEEN_NOTES:
                self._noted = now
                say(f"plsc: {text}; trying again\n")
            time.sleep(_SECONDS_BETWEEN_TRIES)
        return self._link

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _readiness(self) -> dict[str, Any]:
        address = self._own_address or address_towards(self._address)
        self._ports.close()
        ports = self._ports.enter_context(reserved_ports(self._machines.ranks))  # until the next start
        return {"attempt": self._attempt, "address": address, "ports": ports}

    def _send_signals(self, link: Optional[Link]) -> None:
        """Tells the hub which signals this launcher has received since the last call."""
        while link is not None and self._sent < len(self._signals):
            link.send("signal", number=self._signals[self._sent])
            self._sent += 1
            self._signalled = time.monotonic()

    def _is_left_alone(self, link: Optional[Link]) -> bool:
        """Returns whether this launcher has received a signal and no hub says what follows."""
        if not self._signals:
            return False
        is_unanswered = self._sent > 0 and time.monotonic() - self._signalled > _SECONDS_TO_ANSWER_A_SIGNAL
        return link is None or link.lost is not None or is_unanswered

    def _end_by_signal(self) -> _End:
        return _End(f"stopped by {SIGNALS[self._signals[0]]}", signal=self._signals[0])

    # The ranks.

    def _run_once(self, start: dict[str, Any]) -> _End:
        """Runs the ranks of this machine until all machines stop."""
        node_rank, ranks, names = start["node_rank"], self._machines.ranks, start["names"]
        self._node_rank, self._attempt = node_rank, start["attempt"]
        place = Place(
            endpoints=start["endpoints"],
            ranks=ranks,
            node_rank=node_rank,
            interface=self._machines.interface
            or interface_of(start["endpoints"][node_rank * ranks].rpartition(":")[0]),
            is_restart=self._attempt > 0,
        )
        last = place.first_rank + ranks - 1
        own = f"rank {last}" if ranks == 1 else f"ranks {place.first_rank} to {last}"
        shown = "" if node_rank == 0 else f"; rank 0 writes on {names[0]}"
        say(f"plsc: {self._name} has node rank {node_rank} among {len(names)} machines, with {own}{shown}\n")
        running = LocalRanks(self._command, place, self._variables)
        late: list[_End] = []  # what the hub says while the ranks end: a signal, or a second one

        def is_hurried() -> bool:
            """Passes on what comes while the ranks end; says whether a second signal is among it."""
            is_second = len(self._signals) > 1
            if self._link is not None:
                self._send_signals(self._link)
                message = self._link.next_message(0)
                if message is not None and message["kind"] == "stop":
                    late.append(_end_of(message))
                    is_second |= message["hurry"]
            return is_second

        end: Optional[_End] = None
        try:
            end = self._watch(running, names)
        finally:
            running.end(None if end is None else end.signal, is_hurried)
        end = next((one for one in late if one.signal is not None), end)
        return dataclasses.replace(end, tail=unseen(end.tail, running.shown))

    def _watch(self, running: LocalRanks, names: Sequence[str]) -> _End:
        """Waits until the hub tells all machines to stop, and tells it how this one fares."""
        assert self._link is not None
        has_reported = False
        while True:
            self._send_signals(self._link)
            failure = running.first_failure()
            running.note_early_end()
            if not has_reported and (failure is not None or running.have_ended):
                has_reported = True
                if failure is None:
                    self._link.send("done")
                elif failure.request is not None:
                    self._link.send("stopped", rank=failure.rank, number=failure.request)
                else:
                    tail = "".join(failure.tail)[-_TAIL_LETTERS:].splitlines(keepends=True)
                    self._link.send(
                        "failed",
                        cause=f"rank {failure.rank} on {self._name} {failure.how}",
                        tail_is_reason=failure.status > 0,
                        tail=tail,
                        ago=time.monotonic() - failure.moment,
                        is_mistake=failure.is_mistake,
                    )
            message = self._link.next_message(POLL_SECONDS)
            if message is not None and message["kind"] == "finish":
                return _End()
            if message is not None and message["kind"] == "stop":
                return _end_of(message)
            if message is not None:
                continue
            if self._is_left_alone(self._link):
                return self._end_by_signal()
            if self._link.lost is not None:
                cause = f"{names[0]} (node rank 0, the master) was lost: {self._link.lost}; the ranks here were stopped"
                return _End(cause, again=self._attempt < self._machines.restarts)


def _end_of(message: dict[str, Any]) -> _End:
    return _End(
        cause=message["cause"],
        tail=[str(line) for line in message["tail"]],
        tail_is_reason=message["tail_is_reason"],
        signal=message["signal"],
        again=message["again"],
    )
