"""`plsc data ACTION`: looks at data sets, converts and checks them, and sets tests aside."""

from __future__ import annotations

import argparse

from plsc.arguments import add_command
from plsc.commands import data_check, data_convert, data_info, data_outliers, data_split

_ACTIONS = (data_info, data_convert, data_check, data_outliers, data_split)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    group = add_command(
        commands,
        "data",
        "look at a data set, convert it, check it, or set a test aside",
        [
            "plsc data info train_data",
            "plsc data convert train_data train_tar --to tar",
            "plsc data check train_data",
            "plsc data outliers output/19 train_data --output outliers",
            "plsc data split train_data held_out --held-out 0.05 --pairs 6000",
        ],
        "Each command takes one data set in any format that training reads, on this machine or at an address such as "
        "s3://bucket/folder, and only reads it.",
    )
    actions = group.add_subparsers(dest="action", required=True, metavar="<action>", title="actions")
    for action in _ACTIONS:
        action.add_parser(actions)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    return options.run(options)
