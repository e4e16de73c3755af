"""The standard streams of this process, which a shell (`2>&-`) or a daemon may have closed."""

from __future__ import annotations

import os
import sys


def open_closed_streams() -> None:
    """Connects standard streams that are closed to /dev/null.

    Python sets such a stream to None, which has no methods; and the next file that is opened would take its number, so
    that messages of libraries would be written into that file.
    """
    while True:  # The system gives the lowest free number.
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            break
        os.set_inheritable(descriptor, True)
    if sys.stdin is None:
        sys.stdin = open(0)  # noqa: SIM115 - it stays open as long as the process
    if sys.stdout is None:
        sys.stdout = open(1, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w")  # noqa: SIM115


def silence_stdout() -> None:
    """Discards what is still to be written to a standard output that cannot take it; Python flushes it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
