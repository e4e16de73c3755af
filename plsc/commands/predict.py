"""`plsc predict --checkpoint DIR --input FOLDER_OR_LIST --output DIR`."""

from __future__ import annotations

import argparse

from plsc.arguments import add_command, add_json, print_json
from plsc.commands import places, trained
from plsc.errors import counted
from plsc.machine.names import to_text


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    parser = add_command(
        commands,
        "predict",
        "embed images into files",
        [
            "plsc predict --checkpoint output/19 --input images --output embeddings",
            "plsc predict --checkpoint output/19 --input faces/label.txt --output embeddings --flip --ranks 2",
            "plsc predict --model zoo:glyphs --input samples/unseen --output embeddings",
        ],
        "Writes embeddings.npy, images.tsv and manifest.json. An interrupted command resumes where it stopped when it "
        "is run again.",
    )
    trained.add_options(parser, exports=True)
    parser.add_argument(
        "--input",
        required=True,
        metavar="FOLDER_OR_LIST",
        help="a folder of images, one image, a list of images (lines of 'path' or 'path identity'), or a list of "
        "base64 parts, or the address of one",
    )
    parser.add_argument(
        "--output",
        type=places.place(places.RESUMED_FOLDER, str),
        required=True,
        metavar="DIR",
        help="folder that receives the files; in a store, a new one",
    )
    parser.add_argument("--flip", action="store_true", help="average the embeddings of an image and its mirror image")
    parser.add_argument(
        "--parquet", action="store_true", help="also write embeddings.parquet; needs pip install '.[parquet]'"
    )
    trained.add_skip_damaged(parser, "zeros")
    trained.add_ranks(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    return trained.on_ranks(options, lambda: _predict(options))


def _predict(options: argparse.Namespace) -> int:
    vectors = trained.entry_of(options).predict(
        options.input,
        options.output,
        flip=options.flip,
        parquet=options.parquet,
        skip_damaged=options.skip_damaged,
    )
    count, emb_dim = vectors.shape
    if options.json:
        print_json({"output": to_text(options.output), "count": count, "emb_dim": emb_dim})
    else:
        print(f"{options.output}: {counted(count, 'embedding')} of {counted(emb_dim, 'number')}")
    return 0
