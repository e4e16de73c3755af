"""Where the log lines of plsc go."""

from __future__ import annotations

import contextlib
import logging
import string
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm

from plsc.errors import PlscError
from plsc.machine.names import readable


def set_up_logging(rank: int) -> None:
    """Gives the `plsc` logger a plain handler, unless the program has given it one.

    Args:
        rank: Rank of this process, shown in each line. Rank 0 logs everything, the other ranks log warnings.
    """
    logger = logging.getLogger("plsc")
    if logger.handlers:
        return
    handler = _AboveTheBar()
    handler.setFormatter(logging.Formatter(f"%(asctime)s [rank {rank}] %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.propagate = False


class _AboveTheBar(logging.StreamHandler):
    """A handler that writes log lines to stderr without tearing a progress bar, and with unusual bytes escaped.

    A stderr that is full or has no reader loses the lines, and nothing else.
    """

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            tqdm.write(readable(self.format(record), keep=string.whitespace), file=sys.stderr)


@contextlib.contextmanager
def reworded(change: Callable[[str], str]) -> Iterator[None]:
    """Has the log, and an error that ends the `with` block, say what `change` makes of their messages."""

    def reword_line(record: logging.LogRecord) -> bool:
        record.msg, record.args = change(record.getMessage()), ()
        return True

    logger = logging.getLogger("plsc")
    logger.addFilter(reword_line)
    try:
        yield
    except PlscError as problem:
        reword(problem, change)
        raise
    finally:
        logger.removeFilter(reword_line)


def reword(problem: PlscError, change: Callable[[str], str]) -> None:
    """Has an error say what `change` makes of its message."""
    problem.args = (change(str(problem)), *problem.args[1:])
