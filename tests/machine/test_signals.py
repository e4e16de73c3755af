import signal

import pytest

from plsc.machine.signals import deferred_signals, heeded


@pytest.fixture
def came():
    """The signals that reach the handlers of a process which ignores SIGHUP, as under nohup."""
    numbers: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: numbers.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


def test_deferred_signals_come_at_the_end_and_ignored_ones_never(came):
    assert heeded() == [signal.SIGINT, signal.SIGTERM]

    with deferred_signals():
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        assert came == []
    assert came == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
