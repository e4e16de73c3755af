"""The connection of this rank to the meeting place, and what it learns there about the other ranks."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import math
import os
import socket
import sys
import threading
import time
from typing import Any, Callable, Optional

from paddle import distributed

from plsc.errors import RankError, exit_status_of
from plsc.machine.json_files import parse_json
from plsc.machine.names import readable
from plsc.parallel.meeting_place import Failure, MeetingPlace, encode, lost, prepare
from plsc.parallel.ranks import rank, world_size

logger = logging.getLogger("plsc")

THREAD = "plsc-peers"  # which logs what it hears about the other ranks
_CONNECT_SECONDS = 60.0
_ANSWER_SECONDS = 2.0  # for an announcement to travel to rank 0 and back
_GRACE_SECONDS = 3.0  # in which a rank may end by itself after another one has failed
_SECONDS_FOR_THE_CAUSE = 3.0  # in which the rank that failed ends before the others
_SECONDS_TO_CLOSE = 60.0  # in which a rank may end by itself after rank 0 has ended without a failure

_peers: Optional[Peers] = None


class Peers:
    """The other ranks, as this one sees them.

    An action is one call of a method of `Entry`, in which all ranks take part. Actions are counted, and so are the
    meetings in each; both counts are equal on all ranks. The time between two actions counts as an action too.

    Args:
        connection: A connection to the meeting place.
        token: What the meeting place wants to see.
        place: The meeting place, if it is in this process.
    """

    def __init__(self, connection: socket.socket, token: str, place: Optional[MeetingPlace]) -> None:
        self._connection, self._place = connection, place
        self._action, self._meeting, self._depth = 0, 0, 0
        self._patience = 1800.0
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        # What the thread has received.
        self._open, self._heard = (0, 0), 0.0
        self._stopping = -1  # the last action that a rank has been asked to end
        self._failures: list[Failure] = []
        self._left: set[int] = set()
        self._gone: set[int] = set()
        prepare(connection)
        self._send({"token": token, "rank": rank()})
        threading.Thread(target=self._receive, name=THREAD, daemon=True).start()

    def begin(self, patience: float) -> None:
        """Begins an action, unless one is under way in this process already.

        Args:
            patience: Seconds that a meeting waits for late ranks, the same on every rank.
        """
        with self._changed:
            self._depth += 1
            if self._depth > 1:
                return
            self._patience = patience
            self._action, self._meeting = self._action + 1, 0
        if self._place is not None:
            self._place.patience = patience

    def end(self) -> None:
        """Ends the action; afterwards the failure of another rank does not end this process."""
        with self._changed:
            self._depth -= 1
            if self._depth == 0:
                self._action, self._meeting = self._action + 1, 0

    def meet(self, what: str, wait: bool = True) -> None:
        """Tells the other ranks that this one is here, and waits until all of them are. Only the main thread calls it.

        Args:
            what: What a late rank is waited for, in the log and in errors.
            wait: Without it the ranks only learn about each other, and what has failed already is raised.

        Raises:
            RankError: Another rank has failed or left, or was waited for too long.
        """
        self._meeting += 1
        place = (self._action, self._meeting)
        self._send({"at": place, "what": what})
        with self._changed:
            came = not wait or self._wait(lambda: self._open >= place or self._failure() is not None)
            failure = None if self._open >= place else self._failure()
        if failure is not None:
            raise RankError(failure.text, failure.mistake)
        if not came:
            raise RankError(
                f"rank 0: waited {self._patience / 60:g} min for its answer about {what}; find out what keeps that "
                "process or its network, or wait longer with set_rank_timeout"
            )

    def announce_stop(self) -> None:
        """Tells the other ranks that this one has been asked to end the action. Any thread may call it."""
        self._send({"stops": self._action})

    @property
    def stopping(self) -> bool:
        """Whether some rank has announced that it has been asked to end the action."""
        return self._stopping == self._action

    def _wait(self, is_over: Callable[[], bool]) -> bool:
        """Waits until something is true, with the lock held. Returns False once rank 0 has been silent for too long."""
        self._heard = time.monotonic()
        while not self._changed.wait_for(is_over, self._heard + self._patience + _CONNECT_SECONDS - time.monotonic()):
            # While others work, rank 0 says every 30 s that it waits for them.
            if time.monotonic() >= self._heard + self._patience + _CONNECT_SECONDS:
                return False
        return True

    def say_it_works(self, warning: str) -> None:
        """Tells rank 0 that this rank does work for which the others have to wait. Any thread may call it.

        Args:
            warning: What it has warned about, for the log of rank 0; may be empty.
        """
        self._send({"works": warning})

    def silence_of_others(self) -> float:
        """Returns for how many seconds no other rank has said that it works; infinite where this is not rank 0."""
        ranks = range(world_size())
        return math.inf if self._place is None else self._place.silence_of(one for one in ranks if one != rank())

    def fail(self, text: str, mistake: bool, ends: bool = False) -> None:
        """Announces that this rank has failed; returns when all ranks know it, or after some seconds.

        Args:
            text: One line for the user.
            mistake: Whether it would happen again in a restarted run.
            ends: Whether the process ends, so that later actions fail too.
        """
        failure = Failure(rank(), f"rank {rank()}: {text}", self._action, mistake, ends)
        self._send({"failure": dataclasses.asdict(failure)})
        self.wait_for_failure()

    def wait_for_failure(self) -> Optional[Failure]:
        """Returns the first failure of the action; waits a little for it, since news of it may be under way."""
        with self._changed:
            self._changed.wait_for(self._failure, _ANSWER_SECONDS)
            return self._failure()

    def leave(self) -> None:
        """Tells the other ranks that this process ends without a failure of its own.

        After the failure of another rank, that one ends first: launchers show the last lines of the rank that does, and
        a traceback is among its lines alone.
        """
        with self._changed:
            cause = {one.rank for one in self._failures[-1:]} - {rank()}
            self._changed.wait_for(lambda: cause <= self._gone, _SECONDS_FOR_THE_CAUSE)
        self._send({"leaves": True})
        with self._changed:
            self._changed.wait_for(lambda: rank() in self._left or 0 in self._gone, _ANSWER_SECONDS)

    def close(self) -> None:
        """Closes the sockets in a forked process."""
        with contextlib.suppress(OSError):
            os.close(self._connection.detach())  # `close` would wait for the file that the thread reads from
        if self._place is not None:
            self._place.close()

    def _failure(self) -> Optional[Failure]:
        """Returns the first failure of the action, with the lock held."""
        action = self._action
        return next((one for one in self._failures if one.action == action or (one.ends and one.action < action)), None)

    def _send(self, message: dict[str, Any]) -> None:
        with self._sending, contextlib.suppress(OSError):  # if rank 0 has ended, the thread learns it too
            self._connection.sendall(encode(message))

    def _receive(self) -> None:
        try:
            with self._connection.makefile("rb") as lines:
                for line in lines:
                    self._handle(parse_json(line))
        except (OSError, ValueError, TypeError, KeyError):  # rank 0 has ended, or sends what plsc does not
            pass
        with self._changed:
            self._gone.add(0)
            self._changed.notify_all()
            if 0 not in self._left:
                self._add(lost(0, self._action), _GRACE_SECONDS)
            elif rank() not in self._left:
                # After a signal rank 0 may end while others still close their files. If one waits for it, gloo fails
                # at once; nccl does not.
                self._add(Failure(0, "rank 0: its program has ended", self._action, ends=True), _SECONDS_TO_CLOSE)

    def _handle(self, message: dict[str, Any]) -> None:
        self._heard = time.monotonic()
        if "late" in message:
            logger.warning(message["late"])
            return
        with self._changed:
            if "open" in message:
                self._open = tuple(message["open"])
            elif "failure" in message:
                self._add(Failure(**message["failure"]), _GRACE_SECONDS)
            elif "stops" in message:
                self._stopping = message["stops"]
            elif "left" in message:
                self._left.add(message["left"])
            elif "gone" in message:
                self._gone.add(message["gone"])
            self._changed.notify_all()

    def _add(self, failure: Failure, seconds: float) -> None:
        """Notes a failure, and has it end this process after some seconds unless it ends by itself; with the lock held.

        The lock is that of `_changed`.
        """
        self._failures.append(failure)
        self._changed.notify_all()
        if self._depth and self._failure() is failure and failure.rank != rank():
            timer = threading.Timer(seconds, self._end_process, (failure, self._action))
            timer.daemon = True
            timer.start()

    def _end_process(self, failure: Failure, action: int) -> None:
        """Ends this process if it is still in the action, for instance in a collective that will never be complete."""
        if self._action != action:
            return
        error = RankError(failure.text, failure.mistake)
        print(f"plsc: error: {readable(str(error))}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(exit_status_of(error))


def join() -> None:
    """Connects the ranks, which have just been joined by `paddle.distributed`, to a meeting place in rank 0."""
    global _peers
    host = os.environ.get("PADDLE_CURRENT_ENDPOINT", "").rpartition(":")[0] or "127.0.0.1"
    place = MeetingPlace(host, world_size()) if rank() == 0 else None
    found: list[Any] = []
    distributed.all_gather_object(found, place and (host, place.port, place.token))
    host, port, token = found[0]
    connection = socket.create_connection((host, port), _CONNECT_SECONDS)
    connection.settimeout(None)
    _peers = Peers(connection, token, place)
    atexit.register(_leave)
    os.register_at_fork(after_in_child=_forget)


def peers() -> Optional[Peers]:
    """Returns the other ranks; None with one rank, or before the ranks have been joined."""
    return _peers


def _leave() -> None:
    if _peers is not None:
        _peers.leave()


def _forget() -> None:
    """Has a forked process, such as a worker of a DataLoader, take no part in the run."""
    global _peers
    if _peers is not None:
        _peers.close()
        _peers = None
