"""The server at which the ranks meet, and what comes to it from outside."""

import contextlib
import json
import socket

import pytest
from ranks import wait_until
from thread_checks import plsc_threads

from plsc.parallel.meeting_place import MeetingPlace

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"[" * 10_000 + b"\n", b'{"token": "\xc3\xa4"}\n', b"7\n"]
)
def test_strangers_are_turned_away_and_ranks_hear_of_each_other(garbage):
    place = MeetingPlace("127.0.0.1", 2)
    address = ("127.0.0.1", place.port)
    try:
        with socket.create_connection(address, timeout=10) as stranger:
            stranger.sendall(garbage)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
        ranks = [socket.create_connection(address, timeout=10) for _ in range(2)]
        for rank, connection in enumerate(ranks):
            for message in ({"token": place.token, "rank": rank}, {"at": (1, 1), "what": "a test"}):
                connection.sendall(json.dumps(message).encode() + b"\n")
        with ranks[0], ranks[0].makefile() as lines:
            assert json.loads(lines.readline()) == {"open": [1, 1]}
            with pytest.raises(OSError):
                socket.create_connection(address, timeout=10)
            with ranks[1], ranks[1].makefile() as other:
                assert json.loads(other.readline()) == {"open": [1, 1]}
            assert json.loads(lines.readline())["failure"]["rank"] == 1
            assert json.loads(lines.readline()) == {"gone": 1}
    finally:
        place.close()
        wait_until(lambda: not plsc_threads())
