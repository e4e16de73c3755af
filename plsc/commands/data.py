"""`plsc data ACTION`: works on whole data sets."""

from __future__ import annotations

import argparse

from plsc.arguments import add_command
from plsc.commands import data_check, data_split

_ACTIONS = (data_check, data_split)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    group = add_command(
        commands,
        "data",
        "check data sets, and set tests aside",
        ["plsc data check train_data", "plsc data split train_data held_out --held-out 0.05 --pairs 6000"],
    )
    actions = group.add_subparsers(dest="action", required=True, metavar="<action>", title="actions")
    for action in _ACTIONS:
        action.add_parser(actions)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    return options.run(options)
