"""The connection of a launcher to the hub."""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import threading
import time
from typing import Any, Optional

from plsc.errors import TrainingError
from plsc.machine.launch import messages
from plsc.machine.launch.messages import GarbageError, Lines, encode, proof_of

_SECONDS_TO_ANSWER = 5.0


class OtherProgramError(TrainingError):
    """What listens at the master's address is no launcher of plsc."""


class Link:
    """A connection to the hub that has said hello. A thread reads it and sends signs of life.

    Args:
        address: IPv4 address of the hub.
        port: Its port.
        hello: The fields of the hello message, except for the proof.
        silence: Seconds without a sign of life after which the hub is lost.

    Attributes:
        lost: Why the connection has ended; None while it stands.

    Raises:
        OSError: Nothing answers there.
        OtherProgramError: Something else answers there.
    """

    def __init__(
        self, address: str, port: int, hello: dict[str, Any], silence: float = messages.SILENCE_SECONDS
    ) -> None:
        self.lost: Optional[str] = None
        self._silence = silence
        self._heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._lines = Lines(messages.LONGEST_FROM_HUB)
        self._sending = threading.Lock()
        self._is_closed = False
        self._socket = socket.create_connection((address, port), timeout=_SECONDS_TO_ANSWER)
        try:
            nonce = self._read_nonce(f"{address}:{port}")
            self._socket.sendall(encode("hello", proof=proof_of(nonce, messages.secret()), **hello))
        except BaseException:
            self._socket.close()
            raise
        threading.Thread(target=self._serve, daemon=True, name="link").start()

    def send(self, kind: str, **values: Any) -> None:
        """Sends a message; a connection that cannot take it is lost, which `lost` tells."""
        try:
            with self._sending:
                self._socket.sendall(encode(kind, **values))
        except OSError as problem:
            self._lose(problem.strerror or str(problem))

    def next_message(self, seconds: float) -> Optional[dict[str, Any]]:
        """Returns the next message of the hub, or None when none comes within `seconds`."""
        with contextlib.suppress(queue.Empty):
            return self._heard.get(timeout=seconds)
        return None

    def close(self) -> None:
        """Ends the connection."""
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read_nonce(self, where: str) -> str:
        """Returns the nonce with which the hub greets."""
        greetings: list[dict[str, Any]] = []
        deadline = time.monotonic() + _SECONDS_TO_ANSWER
        try:
            while not greetings:
                data = self._socket.recv(1 << 12) if time.monotonic() < deadline else b""
                if not data:
                    raise ConnectionError("the connection was closed")
                greetings = self._lines.feed(data)
        except (GarbageError, socket.timeout):
            greetings = [{"kind": "nothing"}]
        for further in greetings[1:]:
            self._heard.put(further)
        if greetings[0]["kind"] != "hub":
            raise OtherProgramError(f"{where}: a program that is not plsc listens there; give --master another port")
        if greetings[0]["protocol"] != messages.PROTOCOL:
            raise OtherProgramError(f"{where}: another version of plsc listens there; install one version everywhere")
        return greetings[0]["nonce"]

    def _serve(self) -> None:
        last_heard, last_sent = time.monotonic(), 0.0
        while self.lost is None and not self._is_closed:
            now = time.monotonic()
            if now - last_sent > messages.ALIVE_SECONDS:
                last_sent = now
                self.send("alive")
            if now - last_heard > self._silence:
                self._lose(f"nothing was heard from it for {self._silence:.0f} s")
            try:
                if not select.select([self._socket], [], [], 0.2)[0]:
                    continue
                data = self._socket.recv(1 << 16)
                if not data:
                    raise ConnectionError("it has ended")
                last_heard = time.monotonic()
                for message in self._lines.feed(data):
                    if message["kind"] != "alive":
                        self._heard.put(message)
            except (OSError, ValueError, GarbageError) as problem:  # ValueError: closed meanwhile
                self._lose(str(problem))

    def _lose(self, reason: str) -> None:
        if self.lost is None and not self._is_closed:
            self.lost = reason
