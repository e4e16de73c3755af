"""What launchers say to each other: JSON objects, one a line, over TCP."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from typing import Any

from plsc.machine.json_files import json_text, parse_json

PROTOCOL = 1
ALIVE_SECONDS = 1.0  # between signs of life
SILENCE_SECONDS = 30.0  # without a sign of life until a launcher is lost; TCP needs 13 s to recover from a cut of 10 s
SECRET_VARIABLE = "PLSC_SECRET"
LONGEST_FROM_MEMBER = 1 << 17  # bytes; the last lines of a rank that failed
LONGEST_FROM_HUB = 1 << 22  # the endpoints of all ranks

# The fields of the messages and their types. `float` accepts integers too.
_FIELDS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    # from a launcher to the hub
    "hello": {
        "name": (str,), "proof": (str,), "asked_rank": (int, type(None)), "former_rank": (int, type(None)),
        "agreed": (dict,),
    },
    "ready": {"attempt": (int,), "address": (str,), "ports": (list,)},
    "failed": {
        "cause": (str,), "tail": (list,), "tail_is_reason": (bool,), "ago": (int, float), "is_mistake": (bool,),
    },
    "done": {},
    "signal": {"number": (int,)},
    "stopped": {"rank": (int,), "number": (int,)},
    # from the hub to a launcher
    "hub": {"protocol": (int,), "nonce": (str,)},
    "refused": {"reason": (str,), "retry": (bool,)},
    "note": {"text": (str,)},
    "start": {"node_rank": (int,), "attempt": (int,), "endpoints": (list,), "names": (list,)},
    "stop": {
        "cause": (str,), "tail": (list,), "tail_is_reason": (bool,), "signal": (int, type(None)), "again": (bool,),
        "hurry": (bool,),
    },
    "finish": {},
    # both ways
    "alive": {},
}  # fmt: skip


class GarbageError(Exception):
    """Bytes that no launcher of plsc sends."""


def encode(kind: str, **values: Any) -> bytes:
    """Returns a message as a line."""
    return json_text({"kind": kind, **values}).encode() + b"\n"


class Lines:
    """A buffer that turns the bytes of a connection into messages.

    Args:
        longest: The most bytes of a message.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Returns the messages that are complete with these bytes.

        Raises:
            GarbageError: A line is too long or not a message.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > self._longest or any(len(line) > self._longest for line in lines):
            raise GarbageError("a line is too long")
        return [_parse(line) for line in lines]


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = parse_json(line)
        fields = _FIELDS[message["kind"]]
        for name, types in fields.items():
            value = message[name]
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                raise TypeError(name)
    except (ValueError, TypeError, KeyError) as problem:
        raise GarbageError(f"not a message ({type(problem).__name__})") from None
    return message


def secret() -> bytes:
    """Returns what only the launchers of a run know; empty unless the user has chosen a secret."""
    return os.environ.get(SECRET_VARIABLE, "").encode("utf-8", "surrogateescape")


def proof_of(nonce: str, secret: bytes) -> str:
    """Returns what shows, to the one that chose `nonce`, that this launcher knows the secret."""
    return hmac.new(secret, nonce.encode("utf-8", "replace"), hashlib.sha256).hexdigest()
