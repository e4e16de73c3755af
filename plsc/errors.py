"""The errors that plsc raises for its users. Each says what is wrong, where, and what to do, in one line."""


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


# The exit status of a process that ends with an error which a restart would meet again (EX_CONFIG of sysexits.h).
STATUS_OF_MISTAKE = 78
