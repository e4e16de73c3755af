"""The ranks that this launcher starts: their environment, what they write, and how they end."""

from __future__ import annotations

import codecs
import collections
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from plsc.errors import STATUS_OF_MISTAKE, VARIABLE_OF_MISTAKE, ConfigError
from plsc.machine import threads
from plsc.machine.memory import memory_limit, size_text
from plsc.machine.streams import passed_on

# Every Python process of a rank first runs the file in this folder, which makes `import paddle.fluid` mean plsc.fluid,
# and has the rank end with this launcher.
_SITE = Path(__file__).parent.parent / "site"
SIGNALS = {int(signal.SIGINT): "Ctrl-C", int(signal.SIGTERM): "SIGTERM"}
NOT_RESTARTED = "not restarted, because the same error would come again"
_SECONDS_AFTER_FAILURE = 5.0
_SECONDS_TO_SAVE = 60.0  # after SIGTERM, for one step and a checkpoint
_SECONDS_OF_OUTPUT = 2.0  # for the last lines of the ranks; a process that they leave behind may hold their stderr
_SECONDS_BETWEEN_ENDS = 30.0  # after which the ranks that still run may be waiting
_TAIL_LINES = 40
_ERROR = "plsc: error: "  # how the line about an error of plsc begins
_STATUSES_OF_SIGNALS = {128 + number: number for number in SIGNALS}  # of a rank that was asked to save and end
_BYTES_OF_A_RANK = 130_000_000  # of Paddle 3.3.1 on a CPU after its import, not counting what processes share
_RANKS_PER_CORE = 4
_GPUS = "FLAGS_selected_gpus"  # Paddle's variable
_LONGEST_LINE = 1 << 16  # bytes; longer ones are shown in parts


@dataclass(frozen=True)
class Place:
    """The part of a run that this launcher starts.

    Attributes:
        endpoints: `address:port` of every rank of the run, in the order of the ranks.
        ranks: The number of ranks on this machine.
        node_rank: The number of this machine, from 0.
        interface: The network interface to the other machines; None leaves the choice to the libraries.
        is_restart: Whether the run has failed before.
    """

    endpoints: Sequence[str]
    ranks: int
    node_rank: int = 0
    interface: Optional[str] = None
    is_restart: bool = False

    @property
    def first_rank(self) -> int:
        """The lowest rank on this machine."""
        return self.node_rank * self.ranks


@dataclass(frozen=True)
class Failure:
    """How a rank failed.

    Attributes:
        rank: The rank, counted over all machines.
        status: What `Popen.returncode` says.
        moment: When it ended, on the clock of `time.monotonic`.
        tail: Its last lines, each with its line end.
        shown: The last lines of rank 0 if they are on this terminal already.
    """

    rank: int
    status: int
    moment: float
    tail: Sequence[str]
    shown: Sequence[str] = ()

    @property
    def how(self) -> str:
        """The end of the process in words."""
        killed = f"was killed by signal {-self.status}"
        return killed if self.status < 0 else f"ended with status {self.status}"

    @property
    def request(self) -> Optional[int]:
        """The signal that asked the rank to save and end; None for a true failure."""
        return _STATUSES_OF_SIGNALS.get(self.status)

    @property
    def is_mistake(self) -> bool:
        """Whether the error would happen again in a restarted run, because it is a mistake of the user."""
        return self.status == STATUS_OF_MISTAKE

    @property
    def text(self) -> str:
        """What to show of it: the last lines, in which the rank gives the reason unless something has killed it."""
        how = f"plsc: rank {self.rank} {self.how}; all ranks were stopped"
        lines = unseen(self.tail, self.shown)
        if not lines:  # an error of plsc stays the last line
            return "" if self.tail and self.tail[-1].startswith(_ERROR) else f"{how}\n"
        tail = f"The last lines of rank {self.rank}:\n{''.join(lines)}"
        return f"plsc: {tail}{how}\n" if self.status < 0 else f"{how}. {tail}"


def unseen(tail: Sequence[str], shown: Sequence[str]) -> list[str]:
    """Returns the last lines of a rank, or nothing if rank 0 has shown them all, or the error of plsc at their end."""
    on_screen, lines = "".join(shown), list(tail)  # copies, since a process that is left behind may still write
    if lines and lines[-1].startswith(_ERROR) and lines[-1].strip().removeprefix(_ERROR) in on_screen:
        return []
    return [] if all(line in on_screen for line in lines) else lines


def variables_of_run(given: Optional[Mapping[str, str]], restarts: int) -> dict[str, str]:
    """Returns the environment variables of all ranks that this launcher starts, first or again.

    Args:
        given: Those that the caller asks for.
        restarts: How many restarts the caller allows.
    """
    wanted = {VARIABLE_OF_MISTAKE: "1"} if restarts else {}
    return {"PLSC_LAUNCH": uuid.uuid4().hex, **wanted, **(given or {})}


class LocalRanks:
    """The running ranks of this machine.

    Rank 0 writes directly to this terminal. The stderr of the other ranks is kept for `Failure.tail`. The thread that
    makes this object must last as long as the launcher: Linux ends the ranks when it ends.

    Args:
        command: The words of the command line.
        place: The part of the run.
        variables: Environment variables of the ranks, in addition to those of this process.
    """

    def __init__(self, command: Sequence[str], place: Place, variables: Mapping[str, str]) -> None:
        self._first = place.first_rank
        # A terminal sends Ctrl-C to all processes at once. The ranks ignore it; this process asks them to save and end.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._processes: list[subprocess.Popen] = []
        try:
            for local in range(place.ranks):
                self._processes.append(_start(command, place, local, variables))
        except Exception:
            for process in self._processes:
                process.kill()
            raise
        finally:
            signal.signal(signal.SIGINT, handler)
        self._tails = [collections.deque[str](maxlen=_TAIL_LINES) for _ in self._processes]
        # Ranks in the order in which they ended, and when: a rank that loses a peer ends after it.
        self._ended: list[tuple[int, float]] = []
        self._has_noted = False
        self._readers = [
            _thread(_collect, process, tail, shown=place.first_rank + number == 0)
            for number, (process, tail) in enumerate(zip(self._processes, self._tails))
        ]
        for number, process in enumerate(self._processes):
            _thread(self._await, number, process)

    def _await(self, number: int, process: subprocess.Popen) -> None:
        # A rank has ended when its process has, even if another process still holds its stderr.
        process.wait()
        self._ended.append((number, time.monotonic()))

    @property
    def have_ended(self) -> bool:
        """Whether all ranks have ended."""
        return len(self._ended) == len(self._processes)

    @property
    def shown(self) -> Sequence[str]:
        """The last lines of rank 0, which are on this terminal; none on a machine without it."""
        return self._tails[0] if self._first == 0 else ()

    def first_failure(self) -> Optional[Failure]:
        """Returns the first rank that failed, or None when none has.

        A rank that ended because a signal asked it to counts once the others, which save at the same step, have ended
        too, or have had the time for it.
        """
        for number, moment in list(self._ended):
            status, tail = self._processes[number].returncode, self._tails[number]
            failure = Failure(self._first + number, status, moment, tail, self.shown)
            is_saving = not self.have_ended and time.monotonic() - moment < _SECONDS_TO_SAVE
            if failure.status and (failure.request is None or not is_saving):
                return failure
        return None

    def note_early_end(self) -> None:
        """Reports once that a rank has ended without a failure and others of the run have not for a while.

        The others may wait for it in Paddle, which says nothing and lets no Python thread of theirs say anything.
        """
        if self._has_noted or not self._ended or time.monotonic() - self._ended[0][1] < _SECONDS_BETWEEN_ENDS:
            return
        self._has_noted = True
        say(
            f"plsc: rank {self._first + self._ended[0][0]} ended {_SECONDS_BETWEEN_ENDS:.0f} s ago, and other ranks "
            "still run; if they wait for it, change the script so that every rank calls train, test or predict\n"
        )

    def end(self, number: Optional[int], hurried: Callable[[], bool]) -> None:
        """Asks the running ranks to end, waits for them, and kills them when they take too long.

        Args:
            number: The signal that asked this launcher to stop, which gives the ranks time to save; None after a
                failure.
            hurried: Says whether to kill them at once.
        """
        running = [process for process in self._processes if process.poll() is None]
        if number == signal.SIGINT:  # SIGTERM follows; this only tells them what to call it
            for process in running:
                process.send_signal(signal.SIGINT)
        for process in running:
            process.terminate()
        deadline = time.monotonic() + (_SECONDS_AFTER_FAILURE if number is None else _SECONDS_TO_SAVE)
        while any(process.poll() is None for process in running):
            if time.monotonic() > deadline or hurried():
                for process in running:
                    process.kill()
            time.sleep(0.02)
        last = time.monotonic() + _SECONDS_OF_OUTPUT
        for reader in self._readers:
            reader.join(timeout=max(0.0, last - time.monotonic()))


def check_ranks(ranks: int) -> None:
    """Refuses more ranks than this machine has memory or chosen GPUs for, and warns of many more than it has cores.

    A few ranks to a core are usual in trials; they only take turns. Thousands are a slip of the finger, and would make
    the machine swap until nothing else runs on it.

    Raises:
        ConfigError: Paddle alone would need more than the memory, or the user has chosen fewer GPUs.
    """
    gpus_of(ranks)
    total, needed = memory_limit() or 0, ranks * _BYTES_OF_A_RANK
    if needed > total > 0:
        raise ConfigError(
            f"--ranks {ranks}: so many processes need {size_text(needed)} for Paddle alone, and this machine has "
            f"{size_text(total)}; --ranks counts the processes of this machine, usually one for each GPU"
        )
    if ranks > _RANKS_PER_CORE * threads.cores() and not Path("/dev/nvidiactl").exists():
        say(f"plsc: {ranks} ranks share {threads.cores()} cores, so most of the time they wait for each other\n")


def gpus_of(ranks: int) -> list[str]:
    """Returns the GPU of each rank of this machine: those that the user has chosen with FLAGS_selected_gpus, in order.

    Raises:
        ConfigError: The user has chosen fewer.
    """
    chosen = os.environ.get(_GPUS, "").split(",")
    if chosen == [""]:
        return [str(number) for number in range(ranks)]
    if len(chosen) < ranks:
        raise ConfigError(
            f"{_GPUS}={','.join(chosen)} in the environment names {len(chosen)} GPU(s) for {ranks} ranks; name one for "
            "each, or unset it"
        )
    return chosen[:ranks]


def say(text: str) -> None:
    """Writes to stderr; a stderr that is closed, full or without a reader changes nothing else."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _start(command: Sequence[str], place: Place, local: int, variables: Mapping[str, str]) -> subprocess.Popen:
    rank = place.first_rank + local
    environment = {**os.environ, **variables}
    if not threads.user_chose:
        environment["OMP_NUM_THREADS"] = str(threads.threads_per_rank(place.ranks))
    environment.setdefault("GLOG_minloglevel", "1")  # the ports and addresses of every rank are noise
    if place.interface is not None:
        environment.setdefault("GLOO_SOCKET_IFNAME", place.interface)
        environment.setdefault("NCCL_SOCKET_IFNAME", place.interface)
    environment.update(
        PLSC_LAUNCHER_PID=str(os.getpid()),
        PADDLE_TRAINER_ID=str(rank),
        PADDLE_LOCAL_RANK=str(local),
        PADDLE_RANK_IN_NODE=str(local),
        PADDLE_TRAINERS_NUM=str(len(place.endpoints)),
        PADDLE_LOCAL_SIZE=str(place.ranks),
        PADDLE_TRAINER_ENDPOINTS=",".join(place.endpoints),
        PADDLE_CURRENT_ENDPOINT=place.endpoints[rank],
    )
    environment[_GPUS] = gpus_of(place.ranks)[local]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_SITE), environment.get("PYTHONPATH")]))
    if place.is_restart:
        environment["PLSC_RESTART"] = "1"
    if rank == 0:
        passed_on(environment)
    return subprocess.Popen(
        command, env=environment, stdout=None if rank == 0 else subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _collect(process: subprocess.Popen, tail: collections.deque[str], shown: bool) -> None:
    """Reads the stderr of a rank until its end, whatever becomes of this process's own: a full pipe would block it."""
    assert process.stderr is not None
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"  # The rank has the same environment.
    decoder = codecs.getincrementaldecoder(encoding)("backslashreplace")
    with process.stderr as stream:
        begun = ""
        for piece in iter(lambda: stream.read1(_LONGEST_LINE), b""):  # type: ignore[attr-defined]
            text = decoder.decode(piece)
            if shown:  # at once, because a progress bar does not end its line
                say(text)
            *lines, begun = (begun + text).split("\n")
            tail.extend(f"{_last_state(line)}\n" for line in lines)
            begun = begun[-_LONGEST_LINE:]
    if begun:
        tail.append(f"{_last_state(begun)}\n")
        if shown:
            say("\n")


def _last_state(line: str) -> str:
    """Returns what a terminal shows of a line that a progress bar has drawn again and again."""
    return line.rstrip("\r").rpartition("\r")[2]


def _thread(target: Callable[..., None], *arguments: object, **named: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, kwargs=named, daemon=True)
    thread.start()
    return thread
