"""The threads of this process."""

import os

import pytest

from plsc.machine import threads as of_plsc
from plsc.machine.threads import computing_threads


@pytest.mark.parametrize(
    ("chosen", "threads"), [("3", 3), ("4,2", 4), (" 2 ", 2), ("0", 1), ("", 1), ("many", 1), ("-2", 1), (None, 1)]
)
def test_threads_are_those_of_the_outermost_level(chosen, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    assert computing_threads() == threads


@pytest.mark.parametrize("text", ["x", "-1", "1e3", "9" * 5000, "\u0663"])
def test_an_environment_of_garbage_does_not_keep_plsc_from_being_imported(text, monkeypatch):
    for name in ("PADDLE_LOCAL_SIZE", "PADDLE_TRAINERS_NUM"):
        monkeypatch.setenv(name, text)
    monkeypatch.delenv("OMP_NUM_THREADS")
    of_plsc.set_threads_per_rank()
    assert int(os.environ["OMP_NUM_THREADS"]) >= 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
