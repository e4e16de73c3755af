"""Runs foreign tools in a child process, where a crash or an endless loop of theirs does no harm."""

from __future__ import annotations

import contextlib
import importlib
import re
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from plsc.errors import ConfigError, PlscError, without_places

SECONDS = 1800  # An export takes seconds; int8 with 256 calibration images of a large network takes minutes.
_STAGE = "@plsc "  # A line with this prefix names the tool that runs from then on.
_LONGEST = 300
# Lines without a message of their own: frames and frills of Paddle's crash reports, progress, and tracebacks of Python.
_NOISE = re.compile(
    r"-{3,}|\d+ +\S|C\+\+ Traceback|Error Message Summary|No stack trace|\[(Time|Signal)Info|\[[WI]\]|[WI]\d{4} |"
    r"Traceback|File \"|\[Paddle2ONNX\]|\[Hint|FatalError: `"
)
# What stands before a message: colours, the time and the kind.
_PREFIX = re.compile(r"(\x1b\[[\d;]*m)*\s*([\d-]{10} [\d:]{8} )?(\[(ERROR|WARNING|INFO)\]\s*)?(\[Paddle2ONNX\] ?)?")
_TOLD = re.compile(r"error|abort|cannot|fail|unsupported|not support", re.IGNORECASE)


def run_child(function: str, arguments: Sequence[str], work: Path, advice: str, seconds: float = SECONDS) -> None:
    """Calls a function in a new Python process and waits for it.

    The process is a new program: a fork of a process with threads, as Paddle's are, could wait forever for their locks.

    Args:
        function: The function, as 'module:name'. It calls `begin` before it calls a tool.
        arguments: Its arguments.
        work: The folder of its files.
        advice: What the user can do if a tool fails, for the error message.
        seconds: Time after which the process is killed.

    Raises:
        ConfigError: The process failed, crashed, or took too long. The message has the last words of the tool.
    """
    # The child imports from exactly the same places: `-m` would look into the current folder first.
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import _be_child; _be_child(*sys.argv[1:])"
    try:
        child = subprocess.run(
            [sys.executable, "-c", code, function, str(int(seconds)), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as expired:
        ending = f"did not end within {seconds:,.0f} seconds and was stopped"
        raise _failure(expired.output, ending, work, advice) from None
    if child.returncode > 0:
        raise _failure(child.stdout, f"ended with status {child.returncode}", work, advice)
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        more = ", perhaps for lack of memory" if name == "SIGKILL" else ""
        raise _failure(child.stdout, f"was killed by {name}{more}", work, advice)


def begin(tool: str) -> None:
    """Notes, in the child, which tool is called next. Errors name it."""
    print(f"\n{_STAGE}{tool}", flush=True)


def last_words(output: str, work: Path = Path()) -> str:
    """Returns the line of a tool's output that says best why it failed, without source files and folders of its own.

    Args:
        output: What the tool wrote, or the text of an exception.
        work: The folder of its files; their names are left.

    Returns:
        The line; '' if the tool wrote nothing that helps.
    """
    lines = []
    for line in output.replace("\x1b[0m", "").splitlines():
        prefix = _PREFIX.match(line)
        assert prefix is not None  # It may be empty.
        # Paddle2ONNX writes its errors with the prefix of its progress.
        message = line[prefix.end() :].strip() if prefix[4] == "ERROR" else line.strip()
        if message and prefix[4] != "INFO" and not _NOISE.match(message):
            lines.append(without_places(message).strip().replace(f"{work}/", ""))
    words = ([line for line in lines if _TOLD.search(line)] or lines or [""])[-1]
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}..."


def _failure(output: bytes | None, ending: str, work: Path, advice: str) -> ConfigError:
    _, begun, text = (output or b"").decode("utf-8", "replace").rpartition(f"\n{_STAGE}")
    tool, text = text.split("\n", 1) if begun else ("the converter", text)
    words = last_words(text, work)
    return ConfigError(f"{tool} {ending}{f' ({words})' if words else ''}; {advice}")


def _be_child(function: str, seconds: str, *arguments: str) -> None:
    """Calls the function, in the child."""
    signal.alarm(int(seconds) + 1)  # It also ends when its parent is killed.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # A crash is reported, and leaves no file.
    # When memory is short, Linux ends this process and not the one that trained.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    warnings.simplefilter("ignore")  # They would be taken for last words.
    module, _, name = function.partition(":")
    try:
        getattr(importlib.import_module(module), name)(*arguments)
    except PlscError as error:
        sys.exit(f"error: {error}")
    except Exception as problem:  # The tools raise exceptions of many types.
        sys.exit(f"error: {type(problem).__name__}: {last_words(str(problem))}")
