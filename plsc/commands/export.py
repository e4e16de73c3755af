"""`python -m plsc export --checkpoint DIR --output DIR --format paddle|onnx`."""

from __future__ import annotations

import argparse

from plsc.arguments import add_command
from plsc.commands import trained


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `python -m plsc`."""
    parser = add_command(
        commands,
        "export",
        "export a checkpoint for Paddle's inference library or as ONNX",
        ["python -m plsc export --checkpoint output/19 --output net --format onnx"],
    )
    trained.add_options(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder that receives the files")
    parser.add_argument("--format", choices=("paddle", "onnx"), default="paddle", help="default paddle")


def run(options: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    entry = trained.entry_of(options)
    entry.set_model_save_dir(options.output)
    entry.convert_for_prediction(options.format)
    return 0
