"""What Ctrl-C does while a program of plsc begins: it ends with one line, and not with the traceback of an import.

`plsc/__init__.py` imports this module before everything else, and importing it has that effect. It is the programs
alone that it changes: where a script imports plsc, Ctrl-C is the script's own.
"""

import os
import signal
import sys

_PROGRAMS = ("-m", "plsc", "process_base64_files.py")  # what argv[0] is meanwhile; "-m" is `python -m plsc`
INTERRUPTED = 130  # 128 + SIGINT, as shells count


def _end(number: int, frame: object) -> None:
    os.write(2, b"plsc: stopped by Ctrl-C\n")
    os._exit(INTERRUPTED)


def hand_over() -> None:
    """Gives Ctrl-C its usual effect again; the program calls it when it can handle KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if (
    os.path.basename(sys.argv[0] if sys.argv else "") in _PROGRAMS
    and "multiprocessing" not in sys.modules  # a worker process, which has the argv of its parent
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, _end)
