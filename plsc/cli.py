"""`python -m plsc <command>`: trains, tests, uses and plans classifiers with very many classes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Optional

from plsc.arguments import Parser, exit_status
from plsc.commands import convert_checkpoint, export, hdfs, index, plan, predict, report, run, search, test
from plsc.version import __version__

_COMMANDS = {
    "run": run,
    "test": test,
    "report": report,
    "export": export,
    "predict": predict,
    "index": index,
    "search": search,
    "plan": plan,
    "hdfs": hdfs,
    "convert-checkpoint": convert_checkpoint,
}
_ABOUT = """\
plsc trains classifiers with very many classes on PaddlePaddle. A script of ten lines around plsc.Entry trains; these \
commands start it on several ranks, and work with what it leaves in its output folder.

The exit status is 0, 1 for a failure (one line says what is wrong, where, and what to do), 2 for a wrong command line."""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs one command; returns 0, 1 for a failure that was said in one line, or exits with 2 for a wrong command line."""
    return exit_status(lambda: _run(list(sys.argv[1:] if arguments is None else arguments)))


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="python -m plsc",
        description=_ABOUT,
        examples=[
            "python -m plsc run --ranks 2 train.py                                   # train",
            "python -m plsc test --checkpoint output/19 --dataset ./train_data       # how good is it?",
            "python -m plsc report output                                            # what happened, as a page",
            "python -m plsc export --checkpoint output/19 --output net --format onnx # use it elsewhere",
            "python -m plsc predict --checkpoint output/19 --input images --output e # embed images",
            "python -m plsc plan --classes 10000000 --ranks 8 --device-memory 80G    # will it fit?",
            "python -m plsc plan --help                                              # all about one command",
        ],
    )
    parser.add_argument("--version", action="version", version=f"plsc {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="<command>", title="commands")
    for command in _COMMANDS.values():
        command.add_parser(commands)
    return parser


def _run(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    options.arguments = arguments
    return _COMMANDS[options.command].run(options)
