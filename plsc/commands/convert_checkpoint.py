"""`plsc convert-checkpoint SOURCE TARGET --ranks M --head-dtype T`."""

from __future__ import annotations

import argparse

from plsc.arguments import add_command, add_json, add_ranks, print_json
from plsc.commands import places
from plsc.errors import counted
from plsc.machine.names import to_text


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    parser = add_command(
        commands,
        "convert-checkpoint",
        "split the head of a checkpoint for another number of ranks, or change the type of its class centres",
        [
            "plsc convert-checkpoint output/19 output/19-for-8 --ranks 8",
            "plsc convert-checkpoint output/19 output/19-bf16 --head-dtype bfloat16",
        ],
        "Training loads a checkpoint of any number of ranks as it is. This command is for machines that hold only the "
        "files of their own ranks, and for runs that are resumed with another set_head_dtype. The checkpoint says all "
        "that it needs; --set and --config say how long to try again when a store fails.",
    )
    parser.add_argument(
        "source", type=places.place(places.CLASSES), help="folder of the checkpoint, which is only read"
    )
    parser.add_argument("target", type=places.place(places.NEW_FOLDER), help="new folder")
    add_ranks(parser, "number of head files to write; without it, as many as there are", default=None)
    parser.add_argument(
        "--head-dtype",
        choices=("float32", "bfloat16"),
        help="the type of the class centres and their momentum, to resume with another set_head_dtype",
    )
    parser.set_defaults(wrong_usage=parser.error)
    places.add_retrying(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from plsc.checkpoint.convert import convert

    if options.ranks is None and options.head_dtype is None:
        options.wrong_usage("--ranks or --head-dtype is required")
    convert(options.source, options.target, options.ranks, options.head_dtype)
    if options.json:
        print_json({"path": to_text(str(options.target)), "ranks": options.ranks, "head_dtype": options.head_dtype})
    else:
        ranks = "" if options.ranks is None else f" for {counted(options.ranks, 'rank')}"
        kept = "" if options.head_dtype is None else f", with class centres in {options.head_dtype}"
        print(f"{options.target}: the checkpoint {options.source}{ranks}{kept}")
    return 0
