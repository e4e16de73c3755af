"""`plsc zoo [NAME] [--samples DIR]`."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from plsc import zoo
from plsc.arguments import add_command, add_json, print_json
from plsc.commands import places
from plsc.errors import UsageError, counted

_WIDTH, _INDENT = 96, 14  # columns


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    parser = add_command(
        commands,
        "zoo",
        "show the trained networks that come with plsc",
        [
            "plsc zoo",
            "plsc zoo glyphs",
            "plsc zoo glyphs --samples samples",
            "plsc classify --model zoo:glyphs samples/trained",
        ],
        "Every command that takes a checkpoint or an export also takes zoo:NAME. With a name, this command shows the "
        "card of that network: its data, figures, size and digests, and what it is for.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="network whose card is shown, such as glyphs")
    parser.add_argument(
        "--samples",
        type=places.place(places.NEW_FOLDER),
        metavar="DIR",
        help="write its sample images into this new folder",
    )
    places.add_retrying(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    name = None if options.name is None else options.name.removeprefix(zoo.PREFIX)
    if name is None:
        if options.samples is not None:
            raise UsageError(f"--samples: name the network too, such as plsc zoo {zoo.names()[0]}")
        cards = {one: zoo.card_of(one) for one in zoo.names()}
        if options.json:
            print_json(cards)
        for one, card in {} if options.json else cards.items():
            print(f"{zoo.PREFIX}{one}  {card['about']}")
        return 0
    card = zoo.card_of(name)
    written = None if options.samples is None else zoo.write_samples(name, options.samples)
    if options.json:
        print_json(card)
    elif written is not None:
        print(f"{options.samples}: {counted(written, 'image')}")
    else:
        print(f"{zoo.PREFIX}{name}")
        for key, value in card.items():
            print(_entry(key, value))
    return 0


def _entry(key: str, value: Any) -> str:
    """Returns one entry of a card as lines: its name, and next to it the value."""
    lines = [f"{name}: {one}" for name, one in value.items()] if isinstance(value, dict) else [str(value)]
    filled = [line for one in lines for line in textwrap.wrap(one, _WIDTH - _INDENT, break_on_hyphens=False)]
    return textwrap.indent("\n".join(filled), " " * _INDENT).replace(" " * _INDENT, f"{key:<{_INDENT}}", 1)
