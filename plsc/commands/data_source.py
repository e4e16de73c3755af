"""What the actions of `plsc data` share that read a data set: their options, and the data that these name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from plsc import settings
from plsc.arguments import Parser
from plsc.config import Config
from plsc.data.inputs import Inputs
from plsc.data.records import Records
from plsc.datasets.opening import add_format
from plsc.errors import ConfigError, UsageError
from plsc.machine.logs import set_up_logging
from plsc.storage.address import is_address

SOURCE = "data set, as set_dataset_dir takes it, on this machine or at an address such as s3://bucket/folder"


def add_source(parser: Parser) -> None:
    """Adds the data set, its format, the list of images to leave out, and the settings."""
    add_data(parser)
    settings.add_options(parser)


def add_data(parser: Parser) -> None:
    """Adds the data set, its format, and the list of images to leave out."""
    parser.add_argument("source", metavar="SOURCE", help=SOURCE)
    add_format(parser)
    parser.add_argument(
        "--exclude",
        metavar="LIST",
        help="list of images to leave out, as set_dataset_dir takes it (default: that of dataset_dir in --config)",
    )


def add_against(parser: Parser) -> None:
    """Adds the test sets that must not share images with the data."""
    parser.add_argument(
        "--against",
        nargs="+",
        action="extend",
        default=[],
        metavar="SET",
        help="test sets that must not share images with the data: .bin files, pairs files, lists, folders",
    )


def config_of(options: argparse.Namespace) -> Config:
    """Returns the settings of a command line. Its own options win over `--set` and `--config`.

    Raises:
        UsageError: `--set` names the data set, which SOURCE does.
        ConfigError: A setting cannot work.
    """
    return apply_data(options, settings.make_config(settings.read_options(options)))


def apply_data(options: argparse.Namespace, config: Config) -> Config:
    """Returns the settings after the options of `add_data` have changed them.

    Raises:
        UsageError: `--set` names the data set, which SOURCE does.
    """
    if any(text.partition("=")[0].strip() == "dataset_dir" for text in options.set):
        raise UsageError("--set dataset_dir: SOURCE names the data set, and --exclude the images to leave out")
    if options.format != "auto":
        config.data_format = options.format
    if options.exclude is not None:
        config.exclude = options.exclude
    return config


def open_inputs(config: Config, paths: Sequence[str]) -> Inputs:
    """Returns what turns addresses on a command line into paths of this machine, for a command without ranks.

    Args:
        config: The settings, which say where the files go and who connects.
        paths: What the command reads. If there is an address among it, the log says what is fetched.
    """
    if any(map(is_address, paths)):
        set_up_logging(0)
    return Inputs(config.place_of)


def inputs_of(options: argparse.Namespace, paths: Sequence[str]) -> Inputs:
    """Returns what `open_inputs` does, for a command that needs no settings but those of `--set` and `--config`.

    Args:
        options: The parsed command line.
        paths: What the command reads.
    """
    return open_inputs(settings.make_config(settings.read_options(options)), paths)


def open_whole(options: argparse.Namespace, config: Config, inputs: Inputs, fetched: Optional[Path] = None) -> Records:
    """Opens the data set of a command line, for rank 0 of 1. Image files may be missing.

    Args:
        options: The command line.
        config: The settings.
        inputs: Fetches what is in a store.
        fetched: The path of the data on this machine, if the command has fetched it. Otherwise data that is larger than
            the cache is read in the order of its files.

    Raises:
        PlscError: It cannot be opened.
    """
    from plsc.data.exclusion import leave_out
    from plsc.data.sources import open_images

    records = inputs.in_order(options.source, config.data_format) if fetched is None else None
    if records is None:
        path = inputs.data(options.source, config.data_format) if fetched is None else str(fetched)
        records = open_images(path, None, 0, 1, data_format=config.data_format, accepts_missing=True)
    return records if config.exclude is None else leave_out(records, Path(inputs.file(config.exclude)))


def check_new(option: str, path: Path) -> None:
    """Checks that a file or folder does not exist, so that nothing is overwritten.

    Raises:
        ConfigError: It exists.
    """
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{option}: {path} exists; remove it, or name another")
