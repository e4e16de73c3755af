"""The program `plsc <command>`, also `python -m plsc <command>`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Optional

from plsc.arguments import Parser, as_called, exit_status, program
from plsc.commands import (
    add_classes,
    classify,
    convert_checkpoint,
    data,
    export,
    fs,
    import_weights,
    index,
    merge_sub_centers,
    places,
    plan,
    predict,
    report,
    run,
    search,
    store_words,
    test,
    zoo,
)
from plsc.machine.logs import reworded
from plsc.version import __version__

_COMMANDS = {
    "run": run,
    "test": test,
    "report": report,
    "export": export,
    "predict": predict,
    "classify": classify,
    "index": index,
    "search": search,
    "zoo": zoo,
    "plan": plan,
    "data": data,
    "fs": fs,
    "convert-checkpoint": convert_checkpoint,
    "import-weights": import_weights,
    "add-classes": add_classes,
    "merge-sub-centers": merge_sub_centers,
}
# What other programs call these commands.
_SYNONYMS = {
    "train": "run",
    "launch": "run",
    "eval": "test",
    "evaluate": "test",
    "embed": "predict",
    "infer": "predict",
    "extract": "predict",
    "convert": "export",
    "identify": "classify",
}
_ABOUT = """\
plsc trains classifiers with very many classes on PaddlePaddle. A script of ten lines around plsc.Entry trains; these \
commands start it on several ranks, and work with the files that it leaves in its output folder.

The exit status is 0, 1 for a failure (one line says what is wrong, where, and what to do), or 2 for a command line \
that plsc cannot read, as with an unknown command, option or setting."""
_EXAMPLES = (
    "plsc run --ranks 2 train.py                                   # train",
    "plsc test --checkpoint output/19 --dataset ./train_data       # measure the accuracy",
    "plsc report output                                            # show the run as a page",
    "plsc export --checkpoint output/19 --output net --format onnx # use the network elsewhere",
    "plsc predict --checkpoint output/19 --input images --output e # embed images",
    "plsc plan --classes 10000000 --ranks 8 --device-memory 80G    # forecast the memory",
    "plsc plan --help                                              # show all options of a command",
)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs one command.

    Args:
        arguments: The words of the command line; those of this process by default.

    Returns:
        The exit status: 0, 1 for a failure, which one line explains, or 2 for a wrong `--set`.

    Raises:
        SystemExit: The command line is wrong (status 2), or asks for help (status 0).
    """
    return exit_status(lambda: _run(list(sys.argv[1:] if arguments is None else arguments)))


def make_parser() -> Parser:
    """Returns the parser of all commands."""
    parser = Parser(prog=program(), description=_ABOUT, examples=as_called(_EXAMPLES), synonyms=_SYNONYMS)
    parser.add_argument("--version", action="version", version=f"plsc {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="<command>", title="commands")
    for command in _COMMANDS.values():
        command.add_parser(commands)
    return parser


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["hdfs"]:  # its name before it knew other stores
        arguments = ["fs", *arguments[1:]]
    options = make_parser().parse_args(arguments)
    options.arguments = arguments
    with _worded(options.command), places.on_this_machine(options):
        return _COMMANDS[options.command].run(options)


def _worded(command: str) -> AbstractContextManager[None]:
    """Has messages of stores say what the user of a command can do, and not what the author of a script can."""
    if command == "run":  # the script has an author
        return nullcontext()
    return reworded(store_words.in_options if command == "fs" else store_words.in_environment)
