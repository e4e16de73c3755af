"""The errors that plsc raises for its users. Each says what is wrong, where, and what to do, in one line."""

import os
import re
from typing import Any

# The exit status of a process that ends with an error which a restart would meet again (EX_CONFIG of sysexits.h), and
# the environment variable by which a launcher asks for it.
STATUS_OF_MISTAKE = 78
VARIABLE_OF_MISTAKE = "PLSC_STATUS_OF_MISTAKE"
_LONGEST_SHOWN = 200
_SUMMARY = "Error Message Summary:"  # after this line Paddle says what is wrong
# These begin where a word begins: to try each letter of a long word would take the square of its length.
_PLACE = re.compile(
    r"(?:(?<!\s)\s+)?\(?(?:\bat )?(?<![\w.+/-])(?:[\w.+-]*/)+[\w.+-]+\.(?:cc|cpp|cxx|cu|h|hpp|java|rs):\d+\)?:?"
)
_TEMPORARY = re.compile(r"(?<![\w.])\.([^/\s]+)\.\d+\.[0-9a-f]{16}\.part\b")  # of `machine.files.replacing`
_FUNCTION = re.compile(r"^Error in [^\n]*? at (?=[\w./+-]*\.(?:cc|cpp|cxx|cu|h|hpp):\d)", re.MULTILINE)  # of faiss
_MISTAKES = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


class PlscError(Exception):
    """The base of all errors that plsc raises for a user's mistake or a machine's failure."""


class ConfigError(PlscError):
    """A setting, or a combination of settings, that cannot work."""


class UsageError(ConfigError):
    """A command line that plsc cannot read, which gives the exit status 2."""


class DataError(PlscError):
    """A data set, label file, image or verification set that cannot be used."""


class WrongDataError(DataError):
    """A data set that cannot be used as a whole, so that leaving out damaged images would not help."""


class CheckpointError(PlscError):
    """A checkpoint that is missing, damaged, or does not fit the settings."""


class TrainingError(PlscError):
    """A training that cannot continue, for instance because a rank failed."""


class StoppedError(PlscError):
    """The end of waiting that a signal has asked for."""


class RankError(TrainingError):
    """An error of another rank, which ends this one too.

    Args:
        message: One line, which names the rank.
        mistake: Whether it would happen again in a restarted run.
    """

    def __init__(self, message: str, mistake: bool = False) -> None:
        super().__init__(message)
        self.mistake = mistake


def is_mistake(error: BaseException) -> bool:
    """Returns whether an error would happen again in a restarted run, because it is a mistake of the user.

    What a disk or a network caused may pass.
    """
    if hasattr(error, "mistake"):
        return bool(error.mistake)
    cause = error.__context__
    may_pass = isinstance(cause, OSError) and not isinstance(cause, _MISTAKES)
    return isinstance(error, (ConfigError, DataError)) and not may_pass


def exit_status_of(error: BaseException) -> int:
    """Returns the exit status of a process that an error ends."""
    return STATUS_OF_MISTAKE if VARIABLE_OF_MISTAKE in os.environ and is_mistake(error) else 1


def shown(value: Any) -> str:
    """Returns a value for an error message, on one short line."""
    try:
        return one_line(repr(value))
    except Exception:  # Python refuses to write an integer of thousands of digits, and objects may raise anything.
        return f"{type(value).__name__}(...)"


def reason_of(problem: BaseException) -> str:
    """Returns in one line what an exception of Python or of a library says.

    What only its programmers understand is left out: stacks, and places in source files. Paddle, faiss, ONNX Runtime
    and Arrow add both to their messages.
    """
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    text = str(problem).rpartition(_SUMMARY)[2]
    lines = without_places(text).splitlines()
    text = " ".join(" ".join(line for line in lines if line.strip(" -")).split())
    if isinstance(problem, KeyError):
        return f"no {one_line(text)}"
    return one_line(text) or type(problem).__name__


def without_places(text: str) -> str:
    """Returns a message without lines of C++ or Java code, and with the name of a file for its temporary name."""
    return _TEMPORARY.sub(r"\1", _PLACE.sub(" ", _FUNCTION.sub("", text)))


def one_line(text: str, longest: int = _LONGEST_SHOWN) -> str:
    """Returns a text for a message, on one line and cut off where it is long, with other controls escaped."""
    text = re.sub(r"\s*[\n\r]\s*", " ", text[: 10 * longest])
    text = "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def counted(count: int, noun: str) -> str:
    """Returns a number of things for a message: "1 class", "1,200 classes", "1 damaged image", "2 identities".

    Args:
        count: The number.
        noun: The singular, of which the last word has a regular plural.
    """
    return f"{count:,} {noun if count == 1 else _plural(noun)}"


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    if noun.endswith("epoch"):  # its ch sounds like k
        return f"{noun}s"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"
