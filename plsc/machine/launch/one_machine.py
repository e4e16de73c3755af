"""Starts the ranks of a run on one machine, shows the output of rank 0, and ends all ranks when one fails."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Optional

from plsc.machine.launch.local_ranks import (
    NOT_RESTARTED,
    SIGNALS,
    Failure,
    LocalRanks,
    Place,
    check_ranks,
    say,
    variables_of_run,
)
from plsc.machine.launch.network import reserved_ports
from plsc.machine.signals import Requests, heeded

POLL_SECONDS = 0.05


def run(command: Sequence[str], ranks: int, restarts: int = 0, variables: Optional[Mapping[str, str]] = None) -> int:
    """Runs `command` as `ranks` processes.

    When a rank fails, all ranks are ended, and restarted up to `restarts` times; training then resumes from its newest
    checkpoint. An error of the user is not repeated. After SIGTERM or SIGINT (Ctrl-C) the ranks get SIGTERM and have a
    minute to save. A second signal kills them at once. Rank 0 writes directly to this terminal. The stderr of the other
    ranks is kept, and the last lines of the first rank that fails are shown at the end.

    Args:
        command: The words of the command line.
        ranks: The number of processes.
        restarts: How many times to restart after a failure.
        variables: Environment variables of the ranks, in addition to those of this process.

    Returns:
        0; or 1 when a rank failed, and with a single rank its own status; or 128 + the signal that ended all ranks,
        whether this process or one of them received it.

    Raises:
        ConfigError: This machine has no memory for so many processes.
    """
    check_ranks(ranks)
    variables = variables_of_run(variables, restarts)
    with caught_signals() as signals:
        for attempt in range(restarts + 1):
            failure = _run_once(command, ranks, variables, attempt > 0, signals)
            if signals:
                return 128 + signals[0]
            if failure is None:
                return 0
            if failure.request is not None:
                return 128 + failure.request
            if restarts and failure.is_mistake:
                say(f"plsc: {NOT_RESTARTED}\n")
                return 1
            if attempt < restarts:
                say(f"plsc: restart {attempt + 1} of {restarts}\n")
        return max(1, failure.status) if failure is not None and ranks == 1 else 1


@contextlib.contextmanager
def caught_signals() -> Iterator[Requests]:
    """Yields the list to which SIGINT and SIGTERM add themselves inside the `with` block, in place of their effect."""
    signals = Requests()
    previous = {number: signal.signal(number, signals.note) for number in heeded((signal.SIGINT, signal.SIGTERM))}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run_once(
    command: Sequence[str], ranks: int, variables: Mapping[str, str], is_restart: bool, signals: list[int]
) -> Optional[Failure]:
    """Runs the ranks until all have ended, and reports and returns the first failure."""
    with reserved_ports(ranks) as ports:
        endpoints = [f"127.0.0.1:{port}" for port in ports]
        running = LocalRanks(command, Place(endpoints, ranks, is_restart=is_restart), variables)
        try:
            while not signals and running.first_failure() is None and not running.have_ended:
                running.note_early_end()
                time.sleep(POLL_SECONDS)
            failure = None if signals else running.first_failure()
        finally:
            running.end(signals[0] if signals else None, lambda: len(signals) > 1)
    if failure is not None and failure.request is not None and ranks > 1:
        say(f"plsc: rank {failure.rank} ended after {SIGNALS[failure.request]}; all ranks were stopped\n")
    elif failure is not None and ranks > 1:
        say(failure.text)
    elif failure is not None and failure.status < 0:  # otherwise the last line is that of the script already
        say(f"plsc: the script {failure.how}\n")
    return failure
