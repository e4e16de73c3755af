"""The threads of this process."""

import pytest

from plsc.machine.threads import computing_threads


@pytest.mark.parametrize(
    ("chosen", "threads"), [("3", 3), ("4,2", 4), (" 2 ", 2), ("0", 1), ("", 1), ("many", 1), ("-2", 1), (None, 1)]
)
def test_threads_are_those_of_the_outermost_level(chosen, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    assert computing_threads() == threads
