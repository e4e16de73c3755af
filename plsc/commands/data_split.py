"""`plsc data split SOURCE OUTPUT --held-out 0.05 --pairs 6000`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from tqdm import tqdm

from plsc.arguments import add_command, add_json, at_least, print_json
from plsc.commands import places
from plsc.commands.data_source import add_source, check_new, config_of, open_inputs, open_whole
from plsc.config import LARGEST_SEED
from plsc.errors import counted, one_line
from plsc.machine.names import readable, to_text


def add_parser(actions: argparse._SubParsersAction) -> None:
    """Adds the action to the parser of `plsc data`."""
    parser = add_command(
        actions,
        "split",
        "set identities aside for a test, with pairs of their images",
        [
            "plsc data split train_data held_out",
            "plsc data split train_data held_out --held-out 0.02 --pairs 3000 --seed 1 --exclude leave_out.txt",
        ],
        "Writes the images of some classes to OUTPUT/held_out, pairs of them to OUTPUT/held_out.txt, and the list of "
        "these images to OUTPUT/exclude.txt, for set_dataset_dir(exclude=...). The source stays as it is.",
    )
    add_source(parser)
    parser.add_argument("output", type=places.place(places.NEW_FOLDER), metavar="OUTPUT", help="new folder")
    parser.add_argument(
        "--held-out", type=_share, default=0.05, metavar="SHARE", help="share of the classes (default 0.05)"
    )
    parser.add_argument(
        "--pairs",
        type=at_least(2),
        default=6000,
        metavar="N",
        help="number of pairs, half of them of one class (default 6000)",
    )
    parser.add_argument(
        "--seed", type=at_least(0, LARGEST_SEED), default=0, metavar="N", help="seed of the choice (default 0)"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{one_line(text, 40)!r} is not a share above 0 and below 1")
    return share


def run(options: argparse.Namespace) -> int:
    """Runs the action and returns its exit status."""
    from plsc.datasets.split import Wanted, split

    config = config_of(options)
    check_new("OUTPUT", options.output)
    places.check_outside(options, options.output)
    with (
        open_inputs(config, [options.source, *filter(None, [config.exclude])]) as inputs,
        tqdm(unit="image", dynamic_ncols=True, disable=True if options.json else None) as bar,
    ):
        records = open_whole(options, config, inputs)
        exclude = None if config.exclude is None else Path(inputs.file(config.exclude))
        wanted = Wanted(options.held_out, options.pairs, options.seed, config.pixels, exclude)

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        made = split(records, Path(inputs.path_of(options.source)), options.output, wanted, advance)
    if options.json:
        print_json({"output": to_text(str(options.output)), **made._asdict()})
        return 0
    print(
        f"{options.output}: {counted(made.images, 'image')} of {counted(made.classes, 'class')}, "
        f"{counted(made.pairs, 'pair')}; "
        f"{counted(made.left, 'image')} of {counted(made.classes_left, 'class')} left to train on"
    )
    if (address := places.address_of(options, options.output)) is not None:
        print(f"Fetch it before training: plsc fs get {readable(address)} held_out")
        return 0
    print(f"ins.set_dataset_dir({str(options.source)!r}, exclude={str(options.output / 'exclude.txt')!r})")
    print(f"ins.set_val_targets({str(options.output.absolute() / 'held_out')!r})")
    return 0
