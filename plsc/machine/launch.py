"""Starts the ranks of one machine, shows the output of rank 0, and ends all ranks when one fails."""

from __future__ import annotations

import collections
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from plsc.machine import threads

# Every Python process of a rank first runs the file in this folder, which makes `import paddle.fluid` mean plsc.fluid.
_SITE = Path(__file__).parent / "site"
_SECONDS_AFTER_FAILURE = 5.0
_SECONDS_TO_SAVE = 60.0  # after SIGTERM, for one step and a checkpoint


def run(command: Sequence[str], ranks: int, restarts: int = 0, variables: Optional[Mapping[str, str]] = None) -> int:
    """Runs `command` as `ranks` processes.

    When a rank fails, all ranks are ended, and restarted up to `restarts` times; training then resumes from its newest
    checkpoint. After SIGTERM or SIGINT (Ctrl-C) the ranks get SIGTERM and have a minute to save. A second signal kills
    them at once. Rank 0 writes directly to this terminal. The stderr of the other ranks is kept, and the last lines of
    the first rank that fails are shown at the end.

    Args:
        command: The words of the command line.
        ranks: The number of processes.
        restarts: How many times to restart after a failure.
        variables: Environment variables of the ranks, in addition to those of this process.

    Returns:
        0; or 1 when a rank failed, and with a single rank its own status; or 128 + the signal that ended all ranks.
    """
    signals: list[int] = []
    variables = {"PLSC_LAUNCH": uuid.uuid4().hex, **(variables or {})}
    began = time.time()
    previous = {
        number: signal.signal(number, lambda number, frame: signals.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        for attempt in range(restarts + 1):
            status = _run_once(command, ranks, variables, began if attempt else None, signals)
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
    """Runs the ranks until all have ended and returns the status of `run`; a restart names when they first began."""
    ports = _free_ports(ranks)
    # A terminal sends Ctrl-C to all processes at once. The ranks ignore it; this process asks them to save and end.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes = [_start(command, rank, ports, variables, restart_of) for rank in range(ranks)]
    signal.signal(signal.SIGINT, handler)
    tails = [collections.deque[str](maxlen=40) for _ in processes]
    ended: list[int] = []  # ranks in the order in which they ended; a rank that loses a peer ends after it
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
    if ranks == 1:  # what the script wrote is the last line already
        sys.stderr.write(f"plsc: the script {how}\n" if code < 0 else "")
    else:
        sys.stderr.write(f"plsc: rank {failed} {how}; all ranks were stopped. The last lines of rank {failed}:\n")
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
    environment.setdefault("GLOG_minloglevel", "1")  # the ports and addresses of every rank are noise
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
    """Returns the first rank that failed, or None when all succeeded or a signal came."""
    while not signals:
        failed = [rank for rank in list(ended) if processes[rank].returncode]
        if failed:
            return failed[0]
        if len(ended) == len(processes):
            return None
        time.sleep(0.05)
    return None


def _end(processes: Sequence[subprocess.Popen], signals: Sequence[int]) -> None:
    """Asks the running processes to end, and kills them when they take too long or a second signal comes."""
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
