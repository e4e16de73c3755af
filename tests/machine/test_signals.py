"""Requests to stop, by signals that really come, and sections that wait for their end."""

import os
import signal
import subprocess
import sys

import pytest
from ranks import environment

from plsc.machine.signals import StopRequest, deferred_signals, heeded


@pytest.fixture(autouse=True)
def default_handlers():
    """Gives SIGINT and SIGTERM the handlers of a fresh Python."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def test_ctrl_c_is_a_request_and_the_second_one_interrupts():
    with StopRequest() as request:
        assert not request.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert (request.requested, request.number, request.name) == (True, signal.SIGINT, "Ctrl-C")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_where_ctrl_c_is_ignored_it_only_names_the_sigterm_that_follows():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as request:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert not request.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.requested and request.name == "Ctrl-C"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_handler_of_the_user_stays():
    came = []
    signal.signal(signal.SIGINT, lambda *_: came.append(1))
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert came and not request.requested


def test_sigterm_that_comes_several_times_at_once_is_one_request():
    """Clusters send it to the launcher and to the ranks; Linux, for each thread of a launcher that is killed."""
    with StopRequest() as request:
        for _ in range(4):
            os.kill(os.getpid(), signal.SIGTERM)
        assert request.requested and request.name == "SIGTERM"


def test_sigterm_that_comes_again_later_ends_the_process():
    code = (
        "import os, signal, time\nfrom plsc.machine import signals\nsignals._SECONDS_OF_ONE_REQUEST = 0\n"
        "with signals.StopRequest():\n"
        "    for _ in range(2): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.01)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == -signal.SIGTERM


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
