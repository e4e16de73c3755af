"""For tests of what starts threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest


def our_threads() -> list[str]:
    """Names of the threads plsc has started and not ended."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("plsc-")]


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    """Fails a test that leaves a thread behind."""
    yield
    assert our_threads() == []
