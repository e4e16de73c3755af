"""`python -m plsc test --checkpoint DIR --dataset DIR [--targets a,b]`."""

from __future__ import annotations

import argparse
import json

from plsc.arguments import add_command
from plsc.commands import trained


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `python -m plsc`."""
    parser = add_command(
        commands,
        "test",
        "test a checkpoint on verification sets",
        ["python -m plsc test --checkpoint output/19 --dataset ./train_data --targets lfw,agedb_30"],
    )
    trained.add_options(parser)
    parser.add_argument("--dataset", required=True, metavar="DIR", help="folder of the sets")
    parser.add_argument("--targets", default="lfw", help="comma separated names of <dataset>/<name>.bin (default lfw)")
    parser.add_argument("--json", action="store_true", help="print an object")


def run(options: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    entry = trained.entry_of(options)
    entry.set_dataset_dir(options.dataset)
    entry.set_val_targets(options.targets)
    results = entry.test()  # which logs them
    if options.json:
        print(json.dumps(results))
    return 0
