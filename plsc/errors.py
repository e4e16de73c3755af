"""The errors that plsc raises for its users. Each says what is wrong, where, and what to do, in one line."""

import os

LASTING_STATUS = 78  # with which a rank ends after an error that would happen again in a restarted run
LASTING_VARIABLE = "PLSC_LASTING_STATUS"  # set where the launcher wants that status
_MISTAKES = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


class PlscError(Exception):
    """The base of all errors that plsc raises for a user's mistake or a machine's failure."""


class ConfigError(PlscError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(PlscError):
    """A data set, label file, image or verification set that cannot be used."""


class CheckpointError(PlscError):
    """A checkpoint that is missing, damaged, or does not fit the settings."""


class TrainingError(PlscError):
    """A training that cannot continue, for instance because a rank failed."""


class RankError(TrainingError):
    """An error of another rank, which ends this one too.

    Args:
        message: One line, which names the rank.
        lasts: Whether it would happen again in a restarted run.
    """

    def __init__(self, message: str, lasts: bool = False) -> None:
        super().__init__(message)
        self.lasts = lasts


def is_lasting(error: BaseException) -> bool:
    """Returns whether an error would happen again in a restarted run, because it is a mistake of the user.

    What a disk or a network caused may pass.
    """
    if hasattr(error, "lasts"):
        return bool(error.lasts)
    cause = error.__context__
    may_pass = isinstance(cause, OSError) and not isinstance(cause, _MISTAKES)
    return isinstance(error, (ConfigError, DataError)) and not may_pass


def exit_status_of(error: BaseException) -> int:
    """Returns the exit status of a process that an error ends."""
    return LASTING_STATUS if LASTING_VARIABLE in os.environ and is_lasting(error) else 1
