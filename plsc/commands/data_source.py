"""What the actions of `plsc data` share that read a data set: their options, and the data that these name."""

from __future__ import annotations

import argparse
from pathlib import Path

from plsc import settings
from plsc.config import Config
from plsc.data.records import Records
from plsc.errors import ConfigError


def add_source(parser: argparse.ArgumentParser) -> None:
    """Adds the data set, the list of images to leave out, and the settings."""
    parser.add_argument("source", type=Path, metavar="SOURCE", help="data set in any format that training reads")
    parser.add_argument(
        "--exclude", type=Path, metavar="LIST", help="list of images to leave out, as set_dataset_dir takes it"
    )
    settings.add_options(parser)


def config_of(options: argparse.Namespace) -> Config:
    """Returns the settings of a command line."""
    return settings.make_config(settings.read_options(options))


def open_whole(options: argparse.Namespace, config: Config) -> Records:
    """Opens the data set of a command line, for rank 0 of 1. Image files may be missing.

    Raises:
        DataError: It cannot be opened.
    """
    from plsc.data.exclusion import leave_out
    from plsc.data.sources import open_images

    records = open_images(str(options.source), None, 0, 1, data_format=config.data_format, accepts_missing=True)
    return records if options.exclude is None else leave_out(records, options.exclude)


def check_new(option: str, path: Path) -> None:
    """Checks that a file or folder does not exist, so that nothing is overwritten.

    Raises:
        ConfigError: It exists.
    """
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{option}: {path} exists; remove it, or name another")
