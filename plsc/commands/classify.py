"""`plsc classify --checkpoint DIR image...`."""

from __future__ import annotations

import argparse
from pathlib import Path

from plsc.arguments import add_command, add_json, at_least, print_json
from plsc.commands import trained
from plsc.machine.logs import set_up_logging
from plsc.machine.names import readable, to_text


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
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="an image, or a folder of images")
    trained.add_options(parser, exports=True, classes=True)
    parser.add_argument(
        "--top", type=at_least(1), default=5, metavar="N", help="classes to show for each image (default 5)"
    )
    trained.add_skip_damaged(parser, "no answers")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    set_up_logging(0)
    images = trained.image_paths(options.images)
    if options.model:
        answers = trained.predictor_of(options)[0].classify(images, options.top, options.skip_damaged)
    else:
        from plsc.evaluation.trained import classify

        answers = classify(
            trained.prepared_config(options),
            trained.collection_of(images),
            options.top,
            skip_damaged=options.skip_damaged,
        )
    if options.json:
        found = [
            {"image": to_text(str(image)), "classes": [answer._asdict() for answer in one]}
            for image, one in zip(images, answers)
        ]
        print_json(found)
        return 0
    for image, one in zip(images, answers):
        print(readable(str(image)))
        for answer in one:
            print(f"  {answer.cosine:.4f}  {answer.number}{'  ' * bool(answer.name)}{readable(answer.name)}")
    return 0
