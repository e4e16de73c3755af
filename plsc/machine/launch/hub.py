"""The meeting point of the launchers of a run, on the machine that `--master` names.

Every launcher, the one on this machine too, connects and says hello. When all are ready, the hub numbers the machines
and has them start their ranks. The first failure, loss of a machine, or signal makes it tell all of them to stop, and
to get ready again where a restart is left. It sends no commands to run: every launcher starts what its own command line
says.
"""

from __future__ import annotations

import contextlib
import hmac
import selectors
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from plsc.machine.launch import messages
from plsc.machine.launch.local_ranks import NOT_RESTARTED, SIGNALS
from plsc.machine.launch.messages import GarbageError, Lines, encode, proof_of

_SECONDS_TO_SAY_HELLO = 10.0
_SECONDS_FOR_THE_FIRST_CAUSE = 0.5  # other machines may report an earlier failure a little later
_SECONDS_BETWEEN_NOTES = 30.0
_SUSPICIOUS_SECONDS = 5.0
_STRANGERS = 64  # connections that have not said hello
_MOST_UNSENT = 1 << 24  # bytes
_LARGEST_NUMBER = 1 << 20


@dataclass(eq=False)
class _Member:
    """A connection; a launcher of this run once it has said hello.

    Attributes:
        name: The host name of the launcher; empty before its hello.
        asked_rank: Its `--node-rank`.
        former_rank: The number that it had before its connection broke.
        ready: Its last message that it is ready to start; None while its ranks run.
        node_rank: Its number, since the last start.
        is_done: Whether all its ranks have succeeded.
        signals: How often its launcher has been asked to stop.
    """

    connection: socket.socket
    heard: float
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)
    lines: Lines = field(default_factory=lambda: Lines(messages.LONGEST_FROM_MEMBER))
    unsent: bytes = b""
    name: str = ""
    asked_rank: Optional[int] = None
    former_rank: Optional[int] = None
    ready: Optional[dict[str, Any]] = None
    node_rank: Optional[int] = None
    is_done: bool = False
    signals: int = 0

    @property
    def title(self) -> str:
        """The name for log lines."""
        return self.name if self.node_rank is None else f"{self.name} (node rank {self.node_rank})"


@dataclass(frozen=True)
class _Failure:
    moment: float
    cause: str
    tail: list[str] = field(default_factory=list)
    tail_is_reason: bool = True
    is_mistake: bool = False


class Hub:
    """The meeting point, served by a thread between `start` and `leave`.

    Args:
        listener: A listening socket, which the hub closes.
        agreed: What must be the same on all machines, by the words that name it in messages.
        nnodes: The number of machines.
        restarts: How many times to restart after a failure.
        patience: Seconds to wait for missing machines.
        silence: Seconds without a sign of life after which a machine is lost.
    """

    def __init__(
        self,
        listener: socket.socket,
        agreed: dict[str, Any],
        nnodes: int,
        *,
        restarts: int,
        patience: float,
        silence: float = messages.SILENCE_SECONDS,
    ) -> None:
        self._thread = threading.Thread(target=self._serve_all, daemon=True, name="hub")
        self._listener, self._agreed, self._nnodes = listener, agreed, nnodes
        self._restarts, self._patience, self._silence = restarts, patience, silence
        self._secret = messages.secret()
        self._members: list[_Member] = []
        self._numbers: dict[int, str] = {}  # the name of the machine that last had each number
        self._phase = "gathering"  # then "running"; and again, or "over"
        self._attempt = 0
        self._failures: list[_Failure] = []
        self._gathering_since = self._noted = time.monotonic()
        self._leave_at: Optional[float] = None
        self._selector = selectors.DefaultSelector()

    def start(self) -> None:
        """Begins to serve."""
        self._thread.start()

    def leave(self, seconds: float = 3.0) -> None:
        """Ends when all launchers have left, or after `seconds`."""
        self._leave_at = time.monotonic() + seconds
        self._thread.join()

    def _serve_all(self) -> None:
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        heartbeat = 0.0
        while self._leave_at is None or (self._members and time.monotonic() < self._leave_at):
            for key, events in self._selector.select(0.05):
                if key.data is None:
                    self._accept()
                elif key.data in self._members:  # an earlier event may have dropped it
                    self._serve(key.data, events)
            now = time.monotonic()
            if now - heartbeat > messages.ALIVE_SECONDS:
                heartbeat = now
                self._tell_all("alive")
            self._watch(now)
        for member in list(self._members):
            self._drop(member)
        self._listener.close()
        self._selector.close()

    # Connections.

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the other side may have gone already, or this process has too many files
            connection, _ = self._listener.accept()
            if sum(not member.name for member in self._members) >= _STRANGERS:
                connection.close()
                return
            connection.setblocking(False)
            member = _Member(connection, time.monotonic())
            self._members.append(member)
            self._selector.register(connection, selectors.EVENT_READ, member)
            self._tell(member, "hub", protocol=messages.PROTOCOL, nonce=member.nonce)

    def _serve(self, member: _Member, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._send(member)
            if events & selectors.EVENT_READ:
                data = member.connection.recv(1 << 16)
                if not data:
                    raise ConnectionError("its launcher has ended")
                for message in member.lines.feed(data):
                    if member in self._members:
                        self._hear(member, message)
        except BlockingIOError:
            pass
        except OSError as problem:
            self._lose(member, "its launcher has ended" if isinstance(problem, ConnectionError) else str(problem))
        except GarbageError as problem:
            self._lose(member, f"it sent what no launcher sends ({problem})")

    def _tell(self, member: _Member, kind: str, **values: Any) -> None:
        member.unsent += encode(kind, **values)
        try:
            self._send(member)
        except OSError:
            member.unsent = b""  # reading from the connection will tell the reason

    def _tell_all(self, kind: str, **values: Any) -> None:
        for member in [member for member in self._members if member.name]:
            self._tell(member, kind, **values)

    def _send(self, member: _Member) -> None:
        with contextlib.suppress(BlockingIOError):
            while member.unsent:
                member.unsent = member.unsent[member.connection.send(member.unsent) :]
        if len(member.unsent) > _MOST_UNSENT:
            member.unsent = b""
            raise OSError("it takes no messages")
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if member.unsent else 0)
        self._selector.modify(member.connection, events, member)

    def _drop(self, member: _Member) -> None:
        self._members.remove(member)
        self._selector.unregister(member.connection)
        member.connection.close()

    def _lose(self, member: _Member, reason: str, since: Optional[float] = None) -> None:
        self._drop(member)
        if not member.name or self._phase == "over":
            return
        if self._phase == "running" and not member.is_done:
            self._failures.append(_Failure(since or time.monotonic(), f"{member.title} was lost: {reason}"))
        elif self._phase == "gathering":
            self._tell_all("note", text=f"{member.title} has left: {reason}")

    # Messages.

    def _hear(self, member: _Member, message: dict[str, Any]) -> None:
        now, kind = time.monotonic(), message["kind"]
        if not member.name:
            if kind == "hello":
                self._welcome(member, message)
            else:
                self._drop(member)
            return
        member.heard = now
        if kind == "ready" and self._phase == "gathering":
            member.ready = message
            self._start_if_all_are_ready()
        elif kind == "failed" and self._phase == "running":
            tail = [str(line) for line in message["tail"]]
            moment, tail_is_reason, is_mistake = now - message["ago"], message["tail_is_reason"], message["is_mistake"]
            self._failures.append(_Failure(moment, message["cause"], tail, tail_is_reason, is_mistake))
        elif kind == "done":
            member.is_done = True
            launchers = [one for one in self._members if one.name]
            if self._phase == "running" and not self._failures and all(one.is_done for one in launchers):
                self._phase = "over"
                self._tell_all("finish")
        elif kind == "stopped" and self._phase == "running":  # ranks of several machines may report the same request
            number = _known_signal(message["number"])
            cause = f"rank {message['rank']} on {member.title} ended after {SIGNALS[number]}"
            self._stop(f"{cause}; all ranks of all machines were stopped", number=number)
        elif kind == "signal":
            self._hear_signal(member, _known_signal(message["number"]))

    def _welcome(self, member: _Member, hello: dict[str, Any]) -> None:
        """Makes a connection a launcher of this run, or refuses it."""
        reason, retry = self._objection(member, hello)
        if reason:
            self._tell(member, "refused", reason=reason, retry=retry)
            if not retry:
                self._tell_all("note", text=f"{hello['name'][:200]} was refused: {reason}")
            with contextlib.suppress(OSError):
                member.connection.shutdown(socket.SHUT_WR)  # it has said all; the other side closes
            return
        member.name = hello["name"][:200] or "a machine without a name"
        member.asked_rank, member.former_rank = hello["asked_rank"], hello["former_rank"]
        member.heard = time.monotonic()

    def _objection(self, member: _Member, hello: dict[str, Any]) -> tuple[str, bool]:
        """Returns why a launcher cannot join, or an empty text; and whether it may be right a little later."""
        proof = proof_of(member.nonce, self._secret)
        if not hmac.compare_digest(hello["proof"].encode("utf-8", "replace"), proof.encode()):
            return f"{messages.SECRET_VARIABLE} differs between the machines; set it to one value on all of them", False
        for words, value in self._agreed.items():
            given = hello["agreed"].get(words)
            if given is None:
                return f"{words} is not given there; start the same version of plsc on every machine", False
            if given != value:
                return (
                    f"{words} is {given} there and {value} on the master's machine; start the same command, script and "
                    "version of plsc on every machine"
                ), False
        asked = hello["asked_rank"]
        launchers = [member for member in self._members if member.name]
        for other in launchers:
            if asked is not None and other.asked_rank == asked:
                is_silent = time.monotonic() - other.heard > 3 * messages.ALIVE_SECONDS
                return f"node rank {asked} is taken by {other.name}; give each machine its own --node-rank", is_silent
        if self._phase != "gathering":
            return "the run has not noticed yet that a machine is missing, or has all its machines", True
        return ("all machines are here already", True) if len(launchers) == self._nnodes else ("", False)

    def _hear_signal(self, member: _Member, number: int) -> None:
        # A cluster that reclaims its machines sends the signal to every launcher, which is one request.
        member.signals += 1
        self._stop(f"{member.title} was stopped by {SIGNALS[number]}", number=number, hurry=member.signals > 1)

    # Phases.

    def _watch(self, now: float) -> None:
        """Does what is due: loses the silent, decides on failures, and gives up waiting."""
        for member in list(self._members):
            silent = now - member.heard
            # A rank that fails while a machine is silent has most likely failed because of that machine.
            longest = min(self._silence, _SUSPICIOUS_SECONDS) if self._failures else self._silence
            if not member.name and silent > _SECONDS_TO_SAY_HELLO:
                self._drop(member)
            elif member.name and silent > longest:
                self._lose(member, f"nothing was heard from it for {silent:.0f} s", since=member.heard)
        first = min(self._failures, key=lambda one: one.moment, default=None)
        if first is not None and now - first.moment > _SECONDS_FOR_THE_FIRST_CAUSE:
            again = self._attempt < self._restarts and not first.is_mistake
            cause = f"{first.cause}; all ranks of all machines were stopped"
            if self._attempt < self._restarts and not again:
                cause += f"; {NOT_RESTARTED}"
            self._stop(cause, first.tail, tail_is_reason=first.tail_is_reason, again=again)
        if self._phase == "gathering":
            if now - self._gathering_since > self._patience:
                self._stop(f"{self._missing()} within {self._patience:.0f} s")
            elif now - self._noted > _SECONDS_BETWEEN_NOTES:
                self._noted = now
                self._tell_all("note", text=f"{self._missing()} yet; waiting up to {self._patience:.0f} s")

    def _missing(self) -> str:
        launchers = [member for member in self._members if member.name]
        names = ", ".join(sorted(member.name for member in launchers)) or "none"
        return f"only {len(launchers)} of {self._nnodes} machines ({names}) came"

    def _stop(
        self,
        cause: str,
        tail: Sequence[str] = (),
        *,
        tail_is_reason: bool = True,
        number: Optional[int] = None,
        again: bool = False,
        hurry: bool = False,
    ) -> None:
        self._tell_all(
            "stop",
            cause=cause,
            tail=list(tail),
            tail_is_reason=tail_is_reason,
            signal=number,
            again=again,
            hurry=hurry,
        )
        self._failures.clear()
        self._phase = "gathering" if again else "over"
        self._attempt += again
        self._gathering_since = self._noted = time.monotonic()
        for member in self._members:
            member.ready, member.is_done = None, False

    def _start_if_all_are_ready(self) -> None:
        members = [member for member in self._members if member.ready is not None]
        if len(members) < self._nnodes:
            return
        self._number(members)
        members.sort(key=lambda member: member.node_rank or 0)
        ready = [member.ready for member in members if member.ready is not None]
        # A hub that is new since its machine came back learns from the others how far the run is.
        self._attempt = max([self._attempt, *(min(one["attempt"], _LARGEST_NUMBER) for one in ready)])
        endpoints = [
            f"{self._address_of(member, one['address'])}:{port}"
            for member, one in zip(members, ready)
            for port in one["ports"]
        ]
        for member in members:
            self._tell(
                member,
                "start",
                node_rank=member.node_rank,
                attempt=self._attempt,
                endpoints=endpoints,
                names=[one.name for one in members],
            )
            member.ready = None
        self._phase = "running"

    def _number(self, members: list[_Member]) -> None:
        """Numbers the machines: as they ask, as before, or in the order of their names, which a new start repeats."""
        numbers: dict[int, _Member] = {}
        waiting = sorted(members, key=lambda member: member.name)

        def remembered(member: _Member) -> Optional[int]:
            return next((n for n, name in self._numbers.items() if name == member.name and n not in numbers), None)

        wishes: list[Callable[[_Member], Optional[int]]] = [
            lambda member: member.asked_rank,
            lambda member: member.former_rank,
            remembered,
            lambda member: min(set(range(self._nnodes)) - set(numbers)),
        ]
        for wish in wishes:
            for member in list(waiting):
                number = wish(member)
                if number is not None and 0 <= number < self._nnodes and number not in numbers:
                    numbers[number] = member
                    waiting.remove(member)
        for number, member in numbers.items():
            member.node_rank = number
            self._numbers[number] = member.name

    def _address_of(self, member: _Member, address: str) -> str:
        """Returns the address that other machines know a machine by.

        On the master's machine its name may mean 127.0.0.1; the connections of the others show the right address.
        """
        if address.startswith("127."):
            for other in self._members:
                with contextlib.suppress(OSError):
                    own = other.connection.getsockname()[0]
                    if not own.startswith("127."):
                        return own
        return address


def _known_signal(number: int) -> int:
    if number not in SIGNALS:
        raise GarbageError("an unknown signal")
    return number
