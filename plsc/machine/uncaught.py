"""What a program shows of an error that nothing has caught."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Optional

from plsc.errors import STATUS_OF_MISTAKE, PlscError, exit_status_of
from plsc.machine.beginning import INTERRUPTED
from plsc.machine.names import readable, unwritable_name


def shorten_errors(report: Optional[Callable[[BaseException], None]] = None) -> None:
    """Makes an uncaught PlscError or Ctrl-C end the program with one line. Every other error keeps its traceback.

    Args:
        report: Is called with the error, whatever its kind; None keeps what an earlier call gave.
    """
    if not isinstance(sys.excepthook, _Hook):
        sys.excepthook = _Hook(sys.excepthook)
    sys.excepthook.report = report or sys.excepthook.report


def is_interrupt(error: Optional[BaseException]) -> bool:
    """Returns whether an error is Ctrl-C, or what an import that Ctrl-C has interrupted made of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__ if isinstance(error, (ImportError, SystemError)) else None
    return error is not None


def line_of(error: BaseException) -> Optional[str]:
    """Returns the line that a user gets to see of an error; None for an error that is shown with its traceback."""
    if isinstance(error, PlscError):
        return f"plsc: error: {readable(str(error))}"
    problem = unwritable_name(error) if isinstance(error, UnicodeEncodeError) else None
    return problem and f"plsc: error: {problem}"


class _Hook:
    """A replacement of `sys.excepthook`."""

    def __init__(self, previous: Callable[..., None]) -> None:
        self._previous = previous
        self.report: Optional[Callable[[BaseException], None]] = None

    def __call__(self, kind: type[BaseException], error: BaseException, traceback: Optional[TracebackType]) -> None:
        status = STATUS_OF_MISTAKE if exit_status_of(error) == STATUS_OF_MISTAKE else None
        if line := line_of(error):
            print(line, file=sys.stderr, flush=True)
        elif is_interrupt(error) and not hasattr(sys, "ps1"):
            print("plsc: stopped by Ctrl-C", file=sys.stderr, flush=True)
            status = None if isinstance(error, KeyboardInterrupt) else INTERRUPTED  # None: Python ends by the signal
        else:
            self._previous(kind, error, traceback)
        if self.report is not None:
            self.report(error)
        if status is not None:
            raise SystemExit(status)
