"""What the ranks do together from beginning to end: they wait for each other, and when one fails, all fail."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator

from paddle import distributed

from plsc.errors import PlscError, RankError, TrainingError, is_mistake, one_line, reason_of
from plsc.parallel.peers import THREAD, Peers, peers

# Exit codes; all ranks end together after SIGTERM and Ctrl-C.
_ORDERLY = (None, 0, 128 + signal.SIGTERM, 128 + signal.SIGINT)
_LONGEST = 500
_POLL_SECONDS = 0.25
_SIGN_SECONDS = 1.0
_WARNING_SECONDS = 60.0  # for which a warning is news; who waits for a store gives one more often


@contextlib.contextmanager
def action(seconds: float) -> Iterator[None]:
    """Ends the `with` block on every rank when it fails on one; every rank must enter it.

    The first failure of any rank is announced to all. A rank that waits for another one then raises `RankError`. If
    its main thread is busy, or waits in a collective that will never be complete, its process ends a few seconds later
    with the same line.

    Args:
        seconds: How long a rank waits for the others, each time.

    Raises:
        RankError: Another rank has failed or ended, or was waited for too long.
    """
    others = peers()
    if others is None:
        yield
        return
    others.begin(seconds)
    try:
        yield
        others.meet("the end of the action")
    except BaseException as error:
        _announce(others, error)
        raise
    finally:
        others.end()


def meet(what: str, every_step: bool = False) -> None:
    """Waits until all ranks are here, for as long as `action` allows. A line in the log names late ranks.

    Call it before a collective that may follow long work of one rank, because gloo waits for 30 s only.

    Args:
        what: What late ranks are waited for; completes "waiting for rank 1, for ...". It must be the same on all
            ranks, which shows that they make the same calls.
        every_step: Whether training calls it in every step. Then the ranks do not wait here on nccl, which waits itself
            for as long as it takes.

    Raises:
        RankError: Another rank has failed or ended, or was waited for too long.
    """
    others = peers()
    if others is not None:
        others.meet(what, wait=not every_step or distributed.get_backend().lower() == "gloo")


@contextlib.contextmanager
def stopping(requested: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether this rank, or another one in the same block, has been asked to end.

    A rank that waits for something other than the ranks can then end its wait, although the signal has come to another
    rank, which waits for this one. Every rank must enter the block. Any thread may call the function.

    Args:
        requested: Returns whether this rank has been asked to end. A thread calls it several times a second.
    """
    others = peers()
    if others is None:
        yield requested
        return
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_POLL_SECONDS):
            if requested():
                others.announce_stop()
                return

    threading.Thread(target=watch, name="plsc-stop", daemon=True).start()
    try:
        yield lambda: requested() or others.stopping
    finally:
        is_over.set()
        if requested():  # the block may have ended because of that before the thread has asked
            others.announce_stop()


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Has the other ranks wait for what this one does in the `with` block, however long it takes.

    It says so every second, so that a process that hangs or a machine that is lost is still given up. What is done in
    the block must therefore end by itself, as the transfers of `plsc.storage` do. Any thread may enter it. The log of
    rank 0, which may be the only one that users read, shows the last warning of a rank that is waited for, unless that
    is older than a minute.
    """
    others = peers()
    if others is None:
        yield
        return
    ended = threading.Event()
    logging.getLogger("plsc").addFilter(_warnings)  # once, however often it is called

    def say() -> None:
        while True:
            others.say_it_works(_warnings.last())
            if ended.wait(_SIGN_SECONDS):
                return

    threading.Thread(target=say, name="plsc-working", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class _Warnings(logging.Filter):
    """Keeps the last warning of this process, and lets all records pass.

    With a handler, `set_up_logging` would add none. All threads share it, since what they say in turn must be the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last, self._until = "", -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Notes a warning, unless it tells what another rank does."""
        if record.levelno >= logging.WARNING and record.threadName != THREAD:
            self._last, self._until = one_line(record.getMessage(), _LONGEST), time.monotonic() + _WARNING_SECONDS
        return True

    def last(self) -> str:
        """Returns the last warning, in one line; '' if there is none, or if it is old."""
        return self._last if time.monotonic() < self._until else ""


_warnings = _Warnings()


def silence_of_others() -> float:
    """Returns on rank 0 for how many seconds no other rank has been in a block of `working`, or infinity."""
    others = peers()
    return math.inf if others is None else others.silence_of_others()


def report_end(error: BaseException) -> None:
    """Tells the other ranks that an error which nothing has caught ends this process."""
    others = peers()
    if others is not None and not isinstance(error, RankError):
        others.fail(_line_of(error), is_mistake(error), ends=True)


def _announce(others: Peers, error: BaseException) -> None:
    """Announces an error of this rank, unless it follows from the failure of another one.

    Raises:
        RankError: Another rank has failed first, and broke the collective in which this one was.
        TrainingError: A collective broke for another reason.
    """
    if isinstance(error, RankError) or (isinstance(error, SystemExit) and error.code in _ORDERLY):
        return
    if _is_broken_collective(error):
        first = others.wait_for_failure()
        if first is not None:
            raise RankError(first.text, first.mistake) from None
        error = TrainingError(
            f"the connection to another rank broke, or that rank stood still within a step ({_line_of(error)}); resume "
            "with set_resume(True)"
        )
        others.fail(_line_of(error), is_mistake(error))
        raise error
    others.fail(_line_of(error), is_mistake(error))


def _is_broken_collective(error: BaseException) -> bool:
    """Returns whether Paddle raised an error for a collective. An OSError with an errno is one of the system."""
    is_paddles = isinstance(error, RuntimeError) or (isinstance(error, OSError) and error.errno is None)
    text = str(error).lower()
    return is_paddles and ("gloo" in text or "nccl" in text)


def _line_of(error: BaseException) -> str:
    """Returns what an error says, in one line."""
    if isinstance(error, PlscError):
        return one_line(str(error), _LONGEST)
    words = one_line(str(error)) if isinstance(error, OSError) and str(error) else reason_of(error)
    return words if words == type(error).__name__ else f"{type(error).__name__}: {words}"
