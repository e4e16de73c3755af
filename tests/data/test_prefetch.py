from __future__ import annotations

import threading
import time

import pytest

from plsc.data.prefetch import prefetch
from plsc.errors import StoppedError


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_results_come_in_order_and_errors_where_they_belong(num_workers: int) -> None:
    assert list(prefetch(lambda item: item * item, range(20), num_workers, num_workers + 1)) == [
        i * i for i in range(20)
    ]
    results = prefetch(lambda item: 1 // (3 - item), range(20), num_workers, num_workers + 1)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_abandoned_iterator_stops_its_threads_and_starts_no_more_calls() -> None:
    begun: list[int] = []
    results = prefetch(begun.append, range(1000), 2, 4)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 4
    assert not [one for one in threading.enumerate() if one.name.startswith("plsc-images")]


def test_a_wait_ends_when_it_is_to_stop_even_if_the_call_hangs() -> None:
    begun, release, stop = threading.Event(), threading.Event(), threading.Event()
    results = prefetch(lambda item: item == 0 or begun.set() or release.wait(60), range(9), 1, 3, stop.is_set)
    assert next(results) and begun.wait(60)
    stop.set()
    began = time.monotonic()
    with pytest.raises(StoppedError):
        next(results)
    assert time.monotonic() - began < 30
    # Before it ends, Python waits for threads that are no daemons.
    hanging = [one for one in threading.enumerate() if one.name.startswith("plsc-images")]
    assert hanging and all(one.daemon for one in hanging)
    release.set()
