"""`plsc convert-checkpoint SOURCE TARGET --ranks M`."""

from __future__ import annotations

import argparse
from pathlib import Path

from plsc.arguments import add_command, add_json, add_ranks, print_json
from plsc.errors import counted
from plsc.machine.names import to_text


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    parser = add_command(
        commands,
        "convert-checkpoint",
        "split the head of a checkpoint for another number of ranks",
        ["plsc convert-checkpoint output/19 output/19-for-8 --ranks 8"],
        "Training loads a checkpoint of any number of ranks as it is. This command is for machines that hold only the "
        "files of their own ranks. The checkpoint says all that it needs, so it has no --set or --config.",
    )
    parser.add_argument("source", type=Path, help="folder of the checkpoint, which is only read")
    parser.add_argument("target", type=Path, help="new folder")
    add_ranks(parser, "number of head files to write", default=None, required=True)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from plsc.checkpoint.convert import convert

    convert(options.source, options.target, options.ranks)
    if options.json:
        print_json({"path": to_text(str(options.target)), "ranks": options.ranks})
    else:
        print(f"{options.target}: the checkpoint {options.source} for {counted(options.ranks, 'rank')}")
    return 0
