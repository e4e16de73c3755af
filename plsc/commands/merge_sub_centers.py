"""`plsc merge-sub-centers CHECKPOINT DATA OUTPUT`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from plsc.arguments import add_command, add_json, print_json
from plsc.commands import places, trained
from plsc.commands.data_source import apply_data, open_whole
from plsc.datasets.opening import add_format
from plsc.errors import UsageError, counted
from plsc.machine.names import to_text


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    parser = add_command(
        commands,
        "merge-sub-centers",
        "leave one of the sub-centres of each class, and list the images far from it",
        [
            "plsc merge-sub-centers output/19 train_data merged",
            "plsc merge-sub-centers output/19 train_data merged --drop-beyond 75 --list far.txt --ranks 2",
        ],
        "For checkpoints of a training with set_sub_centers. The sub-centre that is left is the one nearest to most "
        "images of its class in DATA. Training begins with the new checkpoint by set_checkpoint_dir, or from the start "
        "without the listed images: set_dataset_dir(..., exclude='far.txt'). It cannot be resumed with set_resume.",
    )
    parser.add_argument(
        "checkpoint",
        type=places.place(places.CLASSES, str),
        metavar="CHECKPOINT",
        help="folder of the checkpoint, which is only read",
    )
    parser.add_argument("source", metavar="DATA", help="the data set of the training, or its address")
    parser.add_argument(
        "output", type=places.place(places.NEW_FOLDER), metavar="OUTPUT", help="new folder of the checkpoint"
    )
    add_format(parser)
    parser.add_argument("--exclude", metavar="LIST", help="list of images that the training left out")
    parser.add_argument(
        "--drop-beyond",
        type=_angle,
        metavar="DEGREES",
        help="list the images whose angle from the sub-centre that is left is larger; the paper takes 75",
    )
    parser.add_argument(
        "--list", type=places.place(places.NEW_FILE), metavar="FILE", help="new file that receives the list"
    )
    trained.add_network_options(parser)
    trained.add_ranks(parser)
    add_json(parser)


def _angle(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 180:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not an angle between 0 and 180 degrees")
    return value


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if (options.drop_beyond is None) != (options.list is None):
        raise UsageError("--drop-beyond and --list: give both, the angle and the file of the list, or neither")
    return trained.on_ranks(options, lambda: _merge(options))


def _merge(options: argparse.Namespace) -> int:
    from plsc import parallel
    from plsc.engine.merge_sub_centers import Wanted, merge_sub_centers
    from plsc.evaluation.build import open_inputs

    reads = [options.source, *filter(None, [options.exclude])]
    config = apply_data(options, trained.prepared_config(options, reads=reads))
    with open_inputs(config) as inputs, parallel.action(config.patience):
        data = parallel.together(lambda: inputs.data(options.source, config.data_format), "the data")
        wanted = Wanted(Path(data), options.output, options.drop_beyond, options.list)
        report = merge_sub_centers(config, lambda: open_whole(options, config, inputs, wanted.data), wanted)
    if options.json:
        print_json({"path": to_text(str(options.output)), **dataclasses.asdict(report)})
        return 0
    print(
        f"{options.output}: kept one of the {report.sub_centers} sub-centres of each of "
        f"{counted(report.num_classes, 'class')}; it is the nearest for {report.dominant:,} of "
        f"{counted(report.images, 'image')}"
    )
    if report.damaged:
        print(f"  images that cannot be decoded: {report.damaged:,}")
    if report.unseen:
        print(f"  classes without an image, whose first centre was left: {report.unseen:,}")
    if options.list is not None:
        print(f"{options.list}: lists {counted(report.left_out, 'image')}, for set_dataset_dir(exclude=...)")
        if report.unnamed:
            print(f"  not on the list: {report.unnamed:,} whose names hold a tab or line end")
    return 0
