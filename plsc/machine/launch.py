"""Starts the ranks of one machine, shows rank 0, and ends all when one fails."""

from __future__ import annotations

import collections
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from plsc.machine import threads

_SITE = Path(__file__).parent / "site"  # what every Python below runs first: `import paddle.fluid` means plsc.fluid
_SECONDS_AFTER_FAILURE = 5.0
_SECONDS_TO_SAVE = 60.0  # after SIGTERM: a step, and a checkpoint


def run(command: Sequence[str], ranks: int, restarts: int = 0, variables: Optional[Mapping[str, str]] = None) -> int:
    """Runs `command` as `ranks` processes; returns 0, 1 when one of them failed, or 128 + the signal that ended all.

    A single rank's own status is returned instead of 1.

    When a rank fails all are ended, and started again up to `restarts` times; training then goes on from its newest
    checkpoint. After SIGTERM or SIGINT (Ctrl-C) the ranks get SIGTERM, and a minute to save; the second one ends them at once.
    Rank 0 writes straight to this terminal. What the other ranks write to stderr is kept, and the last lines of the
    first one to fail are the last thing shown.

    Args:
        variables: of the environment, besides this process's own.
    """
    signals: list[int] = []
    began = time.time()
    previous = {
        number: signal.signal(number, lambda number, frame: signals.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        for attempt in range(restarts + 1):
            status = _run_once(command, ranks, variables or {}, began if attempt else None, signals)
            if signals:
                return 128 + signals[0]
            if not status:
                return 0
            if attempt < restarts:
                sys.stderr.write(f"plsc: restart {attempt + 1} of {restarts}\n")
        return status
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run_once(
    command: Sequence[str], ranks: int, variables: Mapping[str, str], restart_of: Optional[float], signals: list[int]
) -> int:
    """Status of the run, whose ranks have all ended. `restart_of` is when it was first started, if it was."""
    ports = _free_ports(ranks)
    # A terminal sends Ctrl-C to all of them at once; the ranks leave it to this process, which asks them to save and end.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes = [_start(command, rank, ports, variables, restart_of) for rank in range(ranks)]
    signal.signal(signal.SIGINT, handler)
    tails = [collections.deque[str](maxlen=40) for _ in processes]
    ended: list[int] = []  # ranks in the order they ended: those that lose a peer end after it
    readers = [
        threading.Thread(target=_collect, args=(process, tail, rank, ended), daemon=True)
        for rank, (process, tail) in enumerate(zip(processes, tails))
    ]
    for reader in readers:
        reader.start()
    failed = None
    try:
        failed = _wait(processes, ended, signals)
    finally:
        _end(processes, signals)
    for reader in readers:
        reader.join(timeout=2)
    if failed is None:
        return 0
    code = processes[failed].returncode
    how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
    sys.stderr.write(f"plsc: rank {failed} {how}; all {ranks} ranks were stopped. Its last words:\n")
    sys.stderr.writelines(tails[failed])
    sys.stderr.flush()
    return max(1, code) if ranks == 1 else 1


def _start(
    command: Sequence[str],
    rank: int,
    ports: Sequence[int],
    variables: Mapping[str, str],
    restart_of: Optional[float],
) -> subprocess.Popen:
    endpoints = [f"127.0.0.1:{port}" for port in ports]
    environment = {**os.environ, **variables}
    if not threads.user_chose:
        environment["OMP_NUM_THREADS"] = str(threads.threads_per_rank(len(ports)))
    environment.setdefault("GLOG_minloglevel", "1")  # ports and addresses of every rank help nobody
    environment.update(
        PADDLE_TRAINER_ID=str(rank),
        PADDLE_LOCAL_RANK=str(rank),
        PADDLE_RANK_IN_NODE=str(rank),
        PADDLE_TRAINERS_NUM=str(len(ports)),
        PADDLE_LOCAL_SIZE=str(len(ports)),
        PADDLE_TRAINER_ENDPOINTS=",".join(endpoints),
        PADDLE_CURRENT_ENDPOINT=endpoints[rank],
        FLAGS_selected_gpus=str(rank),
    )
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_SITE), environment.get("PYTHONPATH")]))
    if restart_of is not None:
        environment["PLSC_RESTART"] = repr(restart_of)
    return subprocess.Popen(
        command, env=environment, stdout=None if rank == 0 else subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _collect(process: subprocess.Popen, tail: collections.deque[str], rank: int, ended: list[int]) -> None:
    assert process.stderr is not None
    for line in iter(process.stderr.readline, b""):
        text = line.decode("utf-8", "replace")
        tail.append(text)
        if rank == 0:
            sys.stderr.write(text)
            sys.stderr.flush()
    process.wait()
    ended.append(rank)


def _wait(processes: Sequence[subprocess.Popen], ended: list[int], signals: Sequence[int]) -> Optional[int]:
    """The first rank that failed, or None when all succeeded or a signal came."""
    while not signals:
        failed = [rank for rank in list(ended) if processes[rank].returncode]
        if failed:
            return failed[0]
        if len(ended) == len(processes):
            return None
        time.sleep(0.05)
    return None


def _end(processes: Sequence[subprocess.Popen], signals: Sequence[int]) -> None:
    """Ends those that still run: asked to, and killed when they take too long or a second signal comes."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    seconds = _SECONDS_TO_SAVE if signals else _SECONDS_AFTER_FAILURE
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline or len(signals) > 1:
            for process in processes:
                process.kill()
        time.sleep(0.02)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
