"""`python -m plsc predict --checkpoint DIR --input FOLDER_OR_LIST --output DIR`."""

from __future__ import annotations

import argparse
import json

from plsc.arguments import add_command
from plsc.commands import trained


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `python -m plsc`."""
    parser = add_command(
        commands,
        "predict",
        "embed images into files",
        [
            "python -m plsc predict --checkpoint output/19 --input images --output embeddings",
            "python -m plsc predict --checkpoint output/19 --input faces/label.txt --output embeddings --flip --ranks 2",
        ],
        "Writes embeddings.npy, images.tsv and manifest.json. Interrupted and called again it goes on where it was.",
    )
    trained.add_options(parser, exports=True)
    parser.add_argument(
        "--input",
        required=True,
        metavar="FOLDER_OR_LIST",
        help="a folder of images, a list of them ('path' or 'path identity' lines), or a list of base64 parts",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder that receives the files")
    parser.add_argument("--flip", action="store_true", help="average with the embedding of the mirror image")
    parser.add_argument(
        "--parquet", action="store_true", help="also write embeddings.parquet; needs pip install '.[parquet]'"
    )
    parser.add_argument(
        "--skip-damaged",
        action="store_true",
        help="give zeros, and a warning, to an image that cannot be read or decoded, instead of ending there",
    )
    trained.add_ranks(parser)
    parser.add_argument("--json", action="store_true", help="print an object")


def run(options: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
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
        print(json.dumps({"output": options.output, "count": count, "emb_dim": emb_dim}, ensure_ascii=False))
    else:
        print(f"{options.output}: {count:,} embeddings of {emb_dim} numbers")
    return 0
