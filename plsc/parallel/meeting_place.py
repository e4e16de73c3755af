"""The server in a thread of rank 0 at which the ranks meet, and through which the first failure reaches all of them.

gloo waits 30 s for a late rank, and nccl waits forever for a dead one. So ranks meet here before a collective that may
follow long work of one of them. Each rank keeps one connection, and loses it when its process ends, however it ends.

Messages are lines of JSON. A rank sends

    {"token": "...", "rank": 1}           who it is
    {"at": [3, 17], "what": "..."}        it has come to meeting 17 of action 3, and waits for the others
    {"failure": {...}}                    it has failed; see `Failure`
    {"stops": 3}                          it has been asked to end, in action 3
    {"works": "..."}                      it does work that the others wait for; what it has warned about
    {"leaves": true}                      its process ends without a failure

and receives

    {"open": [3, 17]}                     all ranks have come to that meeting
    {"late": "..."}                       a line for the log: who has not come yet, and for what
    {"failure": {...}}                    the first failure of an action
    {"stops": 3}                          some rank has been asked to end, in action 3
    {"left": 1}                           a rank has said that it ends
    {"gone": 1}                           its process has ended
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import json
import math
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Optional

from plsc.machine.json_files import as_integer, as_text, parse_json

_REMINDER_SECONDS = 30.0
_SILENCE_SECONDS = 60  # after which a machine that does not even acknowledge packets counts as lost
_FRESH_SECONDS = 5.0  # for which what a rank says of its work counts
_MESSAGE_BYTES = 1 << 16
_SAME_CALLS = "every rank must make the same calls of train, test, predict and run.save"


@dataclass(frozen=True)
class Failure:
    """Why an action must end on all ranks.

    Attributes:
        rank: The rank that is the cause.
        text: One line for the user, which names the rank.
        action: The number of the action.
        mistake: Whether it would happen again in a restarted run.
        ends: Whether the rank has ended, so that later actions fail too.
    """

    rank: int
    text: str
    action: int
    mistake: bool = False
    ends: bool = False


@dataclass
class _Meeting:
    began: float
    what: str
    arrived: set[int] = field(default_factory=set)
    reminders: int = 0


@dataclass(eq=False)
class _Visitor:
    socket: socket.socket
    rank: Optional[int] = None
    action: int = 0
    buffer: bytes = b""


class MeetingPlace:
    """The server, which runs until the process of rank 0 ends.

    Args:
        host: The address of rank 0 that the other ranks know.
        ranks: The number of ranks.

    Attributes:
        port: The port that it listens on.
        token: What a rank must show.
        patience: Seconds that a meeting waits for late ranks, from the last time on that one of them said it works.
    """

    def __init__(self, host: str, ranks: int) -> None:
        self.patience, self.token, self._ranks = 1800.0, secrets.token_hex(), ranks
        try:
            self._listener = socket.create_server((host, 0), backlog=ranks)
        except OSError:  # the others may know this machine by an address that it does not know itself
            self._listener = socket.create_server(("", 0), backlog=ranks)
        self.port = int(self._listener.getsockname()[1])
        self._visitors: dict[int, _Visitor] = {}
        self._left: set[int] = set()
        self._meetings: dict[tuple[int, int], _Meeting] = {}
        self._failures: dict[int, Failure] = {}  # by action
        self._worked: dict[int, float] = {}  # when each rank last said that it works
        self._warnings: dict[int, str] = {}  # what it said then
        self._closed = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        threading.Thread(target=self._serve, name="plsc-meeting-place", daemon=True).start()

    def close(self) -> None:
        """Closes the sockets and ends the thread; a forked process must not keep its parent's connections open."""
        self._closed = True
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]

    def silence_of(self, ranks: Iterable[int]) -> float:
        """Returns for how many seconds none of some ranks has said that it works."""
        return time.monotonic() - max((self._worked.get(rank, -math.inf) for rank in ranks), default=-math.inf)

    def _serve(self) -> None:
        try:
            while not self._closed:
                for key, _ in self._selector.select(timeout=1.0):
                    if key.data is None:
                        self._accept()
                    else:
                        self._receive(key.data)
                self._remind(time.monotonic())
        finally:
            self.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the other side may have gone already, as a port scanner does
            connection = self._listener.accept()[0]
            prepare(connection)
            self._selector.register(connection, selectors.EVENT_READ, _Visitor(connection))

    def _receive(self, visitor: _Visitor) -> None:
        try:
            received = visitor.socket.recv(_MESSAGE_BYTES)
        except OSError:
            received = b""
        *lines, visitor.buffer = (visitor.buffer + received).split(b"\n")
        is_stranger = False
        for line in lines:
            if visitor.rank is None and not self._knows(visitor, line):
                is_stranger = True
                break
            try:
                self._handle(visitor, parse_json(line))
            except (ValueError, TypeError, KeyError, AttributeError):  # no rank of plsc sends this
                is_stranger = True
                break
        if not received or is_stranger or (visitor.rank is None and len(visitor.buffer) > _MESSAGE_BYTES):
            self._selector.unregister(visitor.socket)
            visitor.socket.close()
            self._lose(visitor)

    def _knows(self, visitor: _Visitor, line: bytes) -> bool:
        """Returns whether the first message of a visitor shows that it is a rank of this run."""
        try:
            message = parse_json(line)
            if not hmac.compare_digest(as_text(message["token"]).encode("utf-8", "replace"), self.token.encode()):
                return False
            if as_integer(message["rank"]) >= self._ranks:
                return False
            visitor.rank = message["rank"]
        except (ValueError, TypeError, KeyError):
            return False
        self._visitors[visitor.rank] = visitor
        if len(self._visitors) == self._ranks:  # nobody else has to come in
            self._selector.unregister(self._listener)
            self._listener.close()
        for failure in self._failures.values():  # what it has missed
            self._tell([visitor.rank], {"failure": dataclasses.asdict(failure)})
        for rank in self._left:
            self._tell([visitor.rank], {"left": rank})
        return True

    def _handle(self, visitor: _Visitor, message: dict[str, Any]) -> None:
        rank = visitor.rank
        assert rank is not None
        if "at" in message:
            visitor.action, number = message["at"]
            if visitor.action not in self._failures:
                self._arrive(rank, (visitor.action, number), message["what"])
                self._check_left()
        elif "failure" in message:
            self._announce(Failure(**message["failure"]))
        elif "stops" in message:
            self._tell(range(self._ranks), {"stops": as_integer(message["stops"])})
        elif "works" in message:
            self._worked[rank], self._warnings[rank] = time.monotonic(), as_text(message["works"])
        elif "leaves" in message:
            self._left.add(rank)
            self._tell(range(self._ranks), {"left": rank})
            self._check_left()

    def _arrive(self, rank: int, place: tuple[int, int], what: str) -> None:
        meeting = self._meetings.setdefault(place, _Meeting(time.monotonic(), what))
        if what != meeting.what:
            found = sorted([(min(meeting.arrived), meeting.what), (rank, what)])
            text = " while ".join(f"rank {one} came to {what}" for one, what in found)
            self._announce(Failure(rank, f"{text}; {_SAME_CALLS}", place[0]))
            return
        meeting.arrived.add(rank)
        if len(meeting.arrived) == self._ranks:
            del self._meetings[place]
            self._tell(range(self._ranks), {"open": place})

    def _lose(self, visitor: _Visitor) -> None:
        """Announces that a rank has gone without a word, if the connection was that of a rank."""
        if visitor.rank is None or self._visitors.get(visitor.rank) is not visitor:
            return
        del self._visitors[visitor.rank]
        if visitor.rank not in self._left:
            self._announce(lost(visitor.rank, visitor.action))
        self._tell(range(self._ranks), {"gone": visitor.rank})

    def _check_left(self) -> None:
        """Announces a failure if ranks wait for one that has left."""
        for (action, _), meeting in self._meetings.items():
            for rank in sorted(self._left - meeting.arrived):
                waiting = f"{_names(meeting.arrived)} waited for {meeting.what}"
                text = f"rank {rank}: its program has ended, while {waiting}; {_SAME_CALLS}"
                self._announce(Failure(rank, text, action, ends=True))

    def _remind(self, now: float) -> None:
        """Says for whom the ranks wait, and gives up a meeting that has waited too long."""
        for place, meeting in list(self._meetings.items()):
            waited, late = now - meeting.began, set(range(self._ranks)) - meeting.arrived
            if min(waited, self.silence_of(late)) >= self.patience:
                text = (
                    f"{_names(late)}: waited {self.patience / 60:g} min for {meeting.what}; find out what keeps that "
                    "process, or wait longer with set_rank_timeout"
                )
                self._announce(Failure(min(late), text, place[0]))
            elif waited >= _REMINDER_SECONDS * (meeting.reminders + 1):
                meeting.reminders += 1
                text = f"still waiting for {_names(late)} after {waited:.0f} s, for {meeting.what}"
                text += self._last_warning(late)
                self._tell(meeting.arrived | {0}, {"late": text})  # users read the log of rank 0

    def _last_warning(self, late: set[int]) -> str:
        """Returns what one of some late ranks that work has warned about, as the end of a line; may be empty."""
        for rank in sorted(late):
            warning = self._warnings.get(rank)
            if warning and self.silence_of([rank]) < _FRESH_SECONDS:
                return f"; rank {rank} says: {warning}"
        return ""

    def _announce(self, failure: Failure) -> None:
        """Tells all ranks the first failure of an action."""
        if failure.action not in self._failures:
            self._failures[failure.action] = failure
            self._meetings = {place: one for place, one in self._meetings.items() if place[0] != failure.action}
            self._tell(range(self._ranks), {"failure": dataclasses.asdict(failure)})

    def _tell(self, ranks: Any, message: dict[str, Any]) -> None:
        line = encode(message)
        for visitor in [self._visitors[rank] for rank in ranks if rank in self._visitors]:
            with contextlib.suppress(OSError):  # its connection is about to report that it has ended
                visitor.socket.sendall(line)


def lost(rank: int, action: int) -> Failure:
    """Returns the failure of a rank whose connection has ended without a word."""
    text = (
        f"rank {rank}: its process ended without an error message; it was killed, for instance because memory ran out, "
        "or its machine was lost"
    )
    return Failure(rank, text, action, ends=True)


def encode(message: dict[str, Any]) -> bytes:
    """Returns the line of a message."""
    return json.dumps(message).encode() + b"\n"


def prepare(connection: socket.socket) -> None:
    """Has a connection send at once, and end when the other machine is silent for a minute."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {
        "TCP_KEEPIDLE": _SILENCE_SECONDS // 2,
        "TCP_KEEPINTVL": _SILENCE_SECONDS // 6,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": _SILENCE_SECONDS * 1000,
    }.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _names(ranks: set[int]) -> str:
    """Returns 'rank 1', 'ranks 1 and 2', or for many 'ranks 1, 2, 3 and 60 more'."""
    numbers = [str(rank) for rank in sorted(ranks)]
    if len(numbers) > 5:
        numbers = [*numbers[:3], f"{len(numbers) - 3} more"]
    first, last = numbers[:-1], numbers[-1]
    return f"ranks {', '.join(first)} and {last}" if first else f"rank {last}"
