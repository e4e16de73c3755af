"""Finds threads that plsc has left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest


def plsc_threads() -> list[str]:
    """Returns the names of the threads that plsc has started and not ended."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("plsc-")]


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    """Fails a test that leaves a thread behind."""
    yield
    assert plsc_threads() == []
