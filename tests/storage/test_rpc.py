"""The part of the store by RPC that needs no server: reading ahead."""

import threading
import time

import pytest

from plsc.storage import answers, rpc


def threads():
    return [one for one in threading.enumerate() if one.name == "plsc-rpc"]


def wait_until(is_so):
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_reading_ahead_is_bounded_and_ends_with_its_reader():
    taken = []

    def stream():
        while True:
            taken.append(1)
            yield bytes(10)

    batches = rpc._read_ahead(stream())
    most = (1 + rpc._BATCHES_AHEAD + 1) * rpc._PARTS_IN_BATCH  # one here, those that wait, and one that cannot yet
    assert len(next(batches)) == rpc._PARTS_IN_BATCH
    wait_until(lambda: len(taken) == most)
    time.sleep(0.05)
    assert len(taken) == most and len(threads()) == 1
    batches.close()
    wait_until(lambda: not threads())


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 1000])
def test_all_parts_of_a_stream_come_in_order(count):
    parts = [b"%d" % number for number in range(count)]
    assert [part for batch in rpc._read_ahead(iter(parts)) for part in batch] == parts
    wait_until(lambda: not threads())


def test_a_failure_comes_after_what_was_read_before_and_silence_has_an_end(monkeypatch):
    def failing():
        yield from [b"x"] * rpc._PARTS_IN_BATCH
        raise OSError("broke")

    batches = rpc._read_ahead(failing())
    assert len(next(batches)) == rpc._PARTS_IN_BATCH
    with pytest.raises(OSError, match="broke"):
        next(batches)

    def silent():
        released.wait(60)
        yield b"x"

    released = threading.Event()
    monkeypatch.setattr(answers, "_LEAST_SECONDS", 0.1)
    with answers.within(lambda: 0.1), pytest.raises(TimeoutError, match="no answer in time"):
        next(rpc._read_ahead(silent()))
    released.set()
    wait_until(lambda: not threads())
