"""`plsc export --checkpoint DIR --output DIR --format paddle|onnx --precision ... --calibration ...`."""

from __future__ import annotations

import argparse

from plsc.arguments import add_command
from plsc.commands import places, trained
from plsc.zoo import check_target


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    parser = add_command(
        commands,
        "export",
        "export a checkpoint for Paddle's inference library or as ONNX",
        [
            "plsc export --checkpoint output/19 --output net --format onnx",
            "plsc export --checkpoint output/19 --output small --format onnx --precision int8 --calibration images",
        ],
    )
    trained.add_options(parser)
    parser.add_argument(
        "--output",
        type=places.place(places.NEW_FOLDER, str),
        required=True,
        metavar="DIR",
        help="folder that receives the files; in a store, a new one",
    )
    parser.add_argument("--format", choices=("paddle", "onnx"), default="paddle", help="default paddle")
    parser.add_argument(
        "--precision",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="float16 and int8 are for onnx only; default float32",
    )
    parser.add_argument(
        "--calibration",
        metavar="FOLDER_OR_LIST",
        help="images like those to embed; int8 needs them, and every export is compared with the network on them",
    )
    parser.add_argument(
        "--force", action="store_true", help="write an export whose embeddings differ too much from the network's"
    )
    parser.add_argument(
        "--with-classes",
        action="store_true",
        help="also write the class centres, with which Predictor.classify and plsc classify --model name the class of "
        "an image",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    check_target("--output", options.output)
    entry = trained.entry_of(options, {"model_save_dir": options.output})
    entry.convert_for_prediction(
        options.format,
        options.precision,
        options.calibration,
        force=options.force,
        with_classes=options.with_classes,
    )
    return 0
