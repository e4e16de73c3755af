"""`plsc classify --checkpoint DIR image...`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plsc.arguments import add_command, add_json, at_least, print_json
from plsc.commands import trained
from plsc.commands.data_source import inputs_of
from plsc.machine.logs import set_up_logging
from plsc.machine.names import readable, to_text

if TYPE_CHECKING:
    from plsc.inference.classes import Answer


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    parser = add_command(
        commands,
        "classify",
        "tell which of the trained classes images show",
        [
            "plsc classify --checkpoint output/19 a.jpg b.jpg",
            "plsc classify --checkpoint output/19 --set class_names=classes.txt new_images --top 3",
            "plsc classify --model net a.jpg   # net is an export made with --with-classes",
            "plsc classify --model zoo:glyphs samples/trained",
        ],
        "Shows the classes whose centres are nearest, each with the cosine between the centre and the embedding. Only "
        "the classes of the training are known; to find others, search an index.",
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="an image, or a folder of images, or the address of one"
    )
    trained.add_options(parser, exports=True, classes=True)
    parser.add_argument(
        "--top", type=at_least(1), default=5, metavar="N", help="classes to show for each image (default 5)"
    )
    trained.add_skip_damaged(parser, "no answers")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    set_up_logging(0)
    with inputs_of(options, options.images) as inputs:
        images = trained.image_paths(options.images, inputs)
        answers = _classify(options, images)
        names = [inputs.named(str(image)) for image in images]
    if options.json:
        found = [
            {"image": to_text(name), "classes": [answer._asdict() for answer in one]}
            for name, one in zip(names, answers)
        ]
        print_json(found)
        return 0
    for name, one in zip(names, answers):
        print(readable(name))
        for answer in one:
            print(f"  {answer.cosine:.4f}  {answer.number}{'  ' * bool(answer.name)}{readable(answer.name)}")
    return 0


def _classify(options: argparse.Namespace, images: Sequence[Path]) -> list[list[Answer]]:
    if options.model:
        predictor, _ = trained.predictor_of(options, reads=options.images)
        return predictor.classify(images, options.top, options.skip_damaged)
    from plsc.evaluation.trained import classify

    config = trained.prepared_config(options, reads=options.images)
    return classify(config, trained.collection_of(images), options.top, skip_damaged=options.skip_damaged)
