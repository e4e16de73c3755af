"""`plsc index EMBEDDINGS --output FILE`."""

from __future__ import annotations

import argparse

from plsc.arguments import add_command, add_json, at_least, print_json
from plsc.commands import places
from plsc.errors import counted
from plsc.machine.logs import set_up_logging
from plsc.machine.names import to_text


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    parser = add_command(
        commands,
        "index",
        "build an index of embeddings, to search them",
        ["plsc index embeddings --output faces.index"],
        "Writes FILE, FILE.json and FILE.tsv. Needs pip install '.[search]'.",
    )
    parser.add_argument(
        "embeddings",
        type=places.place(places.EMBEDDINGS),
        metavar="EMBEDDINGS",
        help="folder of embeddings.npy, images.tsv and manifest.json",
    )
    parser.add_argument(
        "--output",
        type=places.place(places.INDEX_TO_WRITE),
        required=True,
        metavar="FILE",
        help="the index; an older index there is replaced",
    )
    parser.add_argument(
        "--kind",
        choices=("auto", "flat", "ivf"),
        default="auto",
        help="flat is exact, ivf is fast with many images; auto (the default) is flat up to 200,000 images",
    )
    parser.add_argument(
        "--probes",
        type=at_least(1),
        metavar="N",
        help="lists that a search of an ivf index reads by default (chosen to find 95%% of the nearest images)",
    )
    places.add_retrying(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from plsc.search.index import build_index

    set_up_logging(0)
    meta = build_index(options.embeddings, options.output, options.kind, options.probes)
    if options.json:
        print_json({"index": to_text(str(options.output)), **meta})
        return 0
    lists = f", a search reads {meta['probes']} of {meta['lists']} lists" if "lists" in meta else ""
    lists += f" and finds {meta['recall']:.1%} of the nearest images" if "recall" in meta else ""
    left_out = f"; {counted(meta['left_out'], 'zero embedding')} left out" if meta["left_out"] else ""
    print(
        f"{options.output}: {counted(meta['count'], 'image')} of {counted(meta['identities'], 'identity')}, "
        f"{meta['kind']}{lists}{left_out}"
    )
    return 0
