"""Starts the ranks of a run on one machine, shows the output of rank 0, and ends all ranks when one fails."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Optional

from plsc.machine.launch.local_ranks import LocalRanks, Place, say
from plsc.machine.launch.network import free_ports

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
        0; or 1 when a rank failed, and with a single rank its own status; or 128 + the signal that ended all ranks.
    """
    began = time.time()
    with caught_signals() as signals:
        for attempt in range(restarts + 1):
            status, can_restart = _run_once(command, ranks, variables or {}, began if attempt else None, signals)
            if signals:
                return 128 + signals[0]
            if not status or not can_restart:
                return status
            if attempt < restarts:
                say(f"plsc: restart {attempt + 1} of {restarts}\n")
        return status


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Yields the list to which SIGINT and SIGTERM add themselves inside the `with` block, in place of their effect."""
    signals: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, frame: signals.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run_once(
    command: Sequence[str], ranks: int, variables: Mapping[str, str], restart_of: Optional[float], signals: list[int]
) -> tuple[int, bool]:
    """Runs the ranks until all have ended; returns the status of `run`, and whether a restart may help."""
    endpoints = [f"127.0.0.1:{port}" for port in free_ports(ranks)]
    running = LocalRanks(command, Place(endpoints, ranks, restart_of=restart_of), variables)
    try:
        while not signals and running.first_failure() is None and not running.have_ended:
            time.sleep(POLL_SECONDS)
        failure = None if signals else running.first_failure()
    finally:
        running.end(signals[0] if signals else None, lambda: len(signals) > 1)
    if failure is None:
        return 0, False
    if ranks == 1:  # what the script wrote is the last line already
        say(f"plsc: the script {failure.how}\n" if failure.status < 0 else "")
    else:
        say(
            f"plsc: rank {failure.rank} {failure.how}; all ranks were stopped. The last lines of rank {failure.rank}:\n"
        )
        say("".join(failure.tail))
    return max(1, failure.status) if ranks == 1 else 1, not failure.is_mistake
