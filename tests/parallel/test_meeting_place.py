"""The server at which the ranks meet, and what comes to it from outside."""

import contextlib
import json
import re
import socket

import pytest
from ranks import wait_until
from thread_checks import plsc_threads

from plsc.parallel import meeting_place
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
        for line in (b'{"token": "%s", "rank": 2}\n', b'{"token": "%s", "rank": -1}\n', b'{"token": "%s"}\n'):
            with socket.create_connection(address, timeout=10) as stranger:  # one that knows the token
                stranger.sendall(line.replace(b"%s", place.token.encode()))
                with contextlib.suppress(ConnectionResetError):
                    assert stranger.recv(1) == b""
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


def test_who_waits_for_a_rank_reads_what_it_has_warned_about(monkeypatch):
    monkeypatch.setattr(meeting_place, "_REMINDER_SECONDS", 0.0)
    place = MeetingPlace("127.0.0.1", 2)
    try:
        ranks = [socket.create_connection(("127.0.0.1", place.port), timeout=10) for _ in range(2)]
        said = [{"at": (1, 1), "what": "the batch of step 1"}, {"works": "store: Connection refused; trying again"}]
        for rank, connection in enumerate(ranks):
            for message in ({"token": place.token, "rank": rank}, said[rank]):
                connection.sendall(json.dumps(message).encode() + b"\n")
        with ranks[0], ranks[0].makefile() as lines, ranks[1]:
            late = next(text for line in lines for text in [json.loads(line)["late"]] if "says" in text)
            expected = (
                r"still waiting for rank 1 after \d+ s, for the batch of step 1; rank 1 says: store: Conn.* again"
            )
            assert re.fullmatch(expected, late)
            monkeypatch.setattr(meeting_place, "_FRESH_SECONDS", 0.0)  # what it said is old
            assert any("says" not in json.loads(line)["late"] for line in lines)
    finally:
        place.close()


@pytest.mark.parametrize(
    "garbage", [b"[" * 100_000, b'{"at": 1}', b'{"works": 1}', b'{"at": [1, 2]}', b'{"failure": 3}', b"\xff", b"7"]
)
def test_a_rank_that_sends_garbage_counts_as_lost(garbage):
    place = MeetingPlace("127.0.0.1", 2)
    try:
        ranks = [socket.create_connection(("127.0.0.1", place.port), timeout=10) for _ in range(2)]
        for rank, connection in enumerate(ranks):
            connection.sendall(json.dumps({"token": place.token, "rank": rank}).encode() + b"\n")
        ranks[1].sendall(garbage + b"\n")
        with ranks[0], ranks[0].makefile() as lines, ranks[1]:
            assert json.loads(lines.readline())["failure"]["rank"] == 1
    finally:
        place.close()
        wait_until(lambda: not plsc_threads())
