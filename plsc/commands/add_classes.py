"""`plsc add-classes CHECKPOINT DATA... OUTPUT`."""

from __future__ import annotations

import argparse
import dataclasses

from plsc.arguments import add_command, add_json, print_json
from plsc.commands import places, trained
from plsc.commands.data_source import inputs_of
from plsc.errors import counted
from plsc.machine.names import readable, to_text


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    parser = add_command(
        commands,
        "add-classes",
        "add classes to a trained head without training",
        [
            "plsc add-classes output/19 new_products output-with-new",
            "plsc add-classes zoo:glyphs letters more_letters extended",
            "plsc add-classes output/19 new_products output-with-new --names classes.txt",
        ],
        "The centres of the new classes are the mean embeddings of up to 16 of their images. Classes are new if the "
        "checkpoint has no class of their name; where neither has names, if their labels are above those that it "
        "knows. The new classes follow the old ones, which keep their numbers and centres.\n\n"
        "The commands test, predict, classify, export and index take the new checkpoint. Training begins with it by "
        "set_checkpoint_dir and set_head_init('by-name'). It cannot be resumed with set_resume.",
    )
    parser.add_argument(
        "checkpoint",
        type=places.place(places.CLASSES, str),
        metavar="CHECKPOINT",
        help="folder of the checkpoint, which is only read",
    )
    parser.add_argument(
        "data",
        nargs="+",
        metavar="DATA",
        help="images of the new classes, in any form that training takes, or their address",
    )
    parser.add_argument(
        "output", type=places.place(places.NEW_FOLDER), metavar="OUTPUT", help="new folder of the checkpoint"
    )
    parser.add_argument(
        "--names", metavar="FILE", help="names of the checkpoint's classes, one on each line, if it records none"
    )
    trained.add_network_options(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from plsc.engine.add_classes import add_classes
    from plsc.settings.checks import class_names

    names = class_names("--names", options.names)
    with inputs_of(options, options.data) as inputs:
        fetched = [inputs.data(one) for one in options.data]
        own = {"dataset_dir": fetched if len(fetched) > 1 else fetched[0], "num_classes": "auto"}
        report = add_classes(trained.prepared_config(options, own, options.data), options.output, names)
    if options.json:
        print_json({"path": to_text(str(options.output)), **dataclasses.asdict(report)})
        return 0
    if report.left_out:
        print(f"left out, because there is no image of them: {readable(', '.join(report.left_out[:20]))}")
    print(
        f"{options.output}: {counted(report.num_classes, 'class')}; {report.added:,} are new, with the numbers "
        f"from {report.known:,} on"
    )
    return 0
