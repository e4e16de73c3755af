"""The standard streams of this process, which a shell (`2>&-`) or a daemon may have closed."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator, MutableMapping
from typing import Any

from plsc.errors import PlscError
from plsc.machine.names import CONTROLS, readable

_PASSED_ON = "PLSC_STDERR_PASSED_ON"
# The streams belong to the process: a second thread would restore the /dev/null of the first.
_discarding = threading.RLock()


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
        sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 - it stays open as long as the process
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8")  # noqa: SIM115
    atexit.unregister(_give_up_stderr)
    atexit.register(_give_up_stderr)


def shows_bars() -> bool:
    """Returns whether progress bars can be seen: stderr is a terminal, or the launcher of the rank passes it to one."""
    # The processes that a rank starts inherit the variable.
    is_passed_on = os.environ.get(_PASSED_ON) == str(os.getppid())
    return is_passed_on or (sys.stderr is not None and sys.stderr.isatty())


def passed_on(variables: MutableMapping[str, str]) -> None:
    """Tells a process whose stderr this one passes on that it can show bars, if this one's stderr is a terminal.

    Args:
        variables: Environment variables of the process.
    """
    variables.pop(_PASSED_ON, None)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
        variables[_PASSED_ON] = str(os.getpid())
        variables.setdefault("COLUMNS", str(columns))


def _give_up_stderr() -> None:
    """Discards what a full disk or a missing reader keeps from stderr; Python would end with the status 120."""
    try:
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)
    except (AttributeError, ValueError):  # the program has closed or replaced it
        pass


class OutputError(PlscError):
    """The standard output cannot be written."""


class CheckedOutput:
    """A text stream that raises OutputError where `stream` raises OSError, unless nobody reads it any more.

    Characters that its encoding lacks, and bytes of names that have no meaning, are written as escapes.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._is_read = stream, True
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text and returns its length."""
        with self._checked():
            return self._stream.write(readable(text, keep=CONTROLS))

    def flush(self) -> None:
        """Writes what is buffered.

        Raises:
            BrokenPipeError: Nobody reads the stream. An earlier write may have found that out: `argparse` ignores it.
        """
        if not self._is_read:
            raise BrokenPipeError
        with self._checked():
            self._stream.flush()

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._is_read = False
            raise
        except OSError as problem:
            raise OutputError(f"cannot write to the standard output ({problem.strerror})") from None


@contextlib.contextmanager
def discarded_output(*descriptors: int) -> Iterator[None]:
    """Discards what a library writes to standard streams of the process inside the `with` block.

    It is for remarks of C++ code, which would get between the lines or the JSON that a command prints. What other
    threads print meanwhile is lost too, so the block should be short. Only one thread at a time can be in such a block.

    Args:
        descriptors: The streams; by default the standard output, 1. One that is closed stays so.
    """
    with _discarding, contextlib.ExitStack() as stack, open(os.devnull, "wb") as nowhere:
        is_open = {0: sys.stdin is not None, 1: sys.stdout is not None, 2: sys.stderr is not None}
        chosen = [descriptor for descriptor in descriptors or (1,) if is_open[descriptor]]
        for descriptor in chosen:
            kept = os.dup(descriptor)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, descriptor)
        _flush()
        stack.callback(_flush)
        for descriptor in chosen:
            os.dup2(nowhere.fileno(), descriptor)
        yield


def _flush() -> None:
    """Writes what Python and the C library still hold back of the standard streams."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    ctypes.CDLL(None).fflush(None)


def silence_stdout() -> None:
    """Discards what is still to be written to a standard output that cannot take it; Python flushes it at exit."""
    _discard(sys.stdout)


def _discard(stream: Any) -> None:
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, stream.fileno())
    os.close(descriptor)
