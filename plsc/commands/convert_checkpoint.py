"""`python -m plsc convert-checkpoint SOURCE TARGET --ranks M`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from plsc.arguments import add_command, at_least


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `python -m plsc`."""
    parser = add_command(
        commands,
        "convert-checkpoint",
        "cut the head of a checkpoint for another number of ranks",
        ["python -m plsc convert-checkpoint output/19 output/19-for-8 --ranks 8"],
        "Training loads a checkpoint of any number of ranks as it is; this is for machines that hold just their own files. "
        "All it needs stands in the checkpoint, so it takes no --set or --config.",
    )
    parser.add_argument("source", type=Path, help="folder of the checkpoint; it is only read")
    parser.add_argument("target", type=Path, help="new folder")
    parser.add_argument("--ranks", type=at_least(1), required=True, metavar="N", help="number of head files to make")
    parser.add_argument("--json", action="store_true", help="print an object")


def run(options: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    from plsc.checkpoint.convert import convert

    convert(options.source, options.target, options.ranks)
    if options.json:
        print(json.dumps({"path": str(options.target), "ranks": options.ranks}, ensure_ascii=False))
    else:
        print(f"{options.target}: the checkpoint {options.source} for {options.ranks} ranks")
    return 0
