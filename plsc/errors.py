"""The errors that plsc raises for its users. Each says what is wrong, where, and what to do, in one line."""

LASTING_STATUS = 78  # with which a rank ends after an error that would happen again in a restarted run
LASTING_VARIABLE = "PLSC_LASTING_STATUS"  # set where the launcher wants that status


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
