"""`plsc data outliers CHECKPOINT SOURCE --output DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from plsc.arguments import add_command, add_json, at_least, print_json
from plsc.commands import places, trained
from plsc.commands.data_source import add_against, add_data, apply_data, open_whole
from plsc.config import Config
from plsc.data.inputs import Inputs
from plsc.datasets.outliers import Limits
from plsc.errors import counted, one_line
from plsc.machine.names import to_text
from plsc.storage.address import is_address

if TYPE_CHECKING:
    from plsc.datasets.outlier_files import Summary

_SHOWN = 200  # on the page, of each kind


def add_parser(actions: argparse._SubParsersAction) -> None:
    """Adds the action to the parser of `plsc data`."""
    parser = add_command(
        actions,
        "outliers",
        "find wrong labels, classes that should be one or two, and copies, with a trained network",
        [
            "plsc data outliers output/19 train_data --output outliers",
            "plsc data outliers output/19 train.rec --output outliers --against lfw.bin --ranks 2",
        ],
        "Embeds all images with the network, and compares them with each other. Changes nothing in the data. Writes "
        "tables, a page with pictures, and leave_out.txt, a list for set_dataset_dir(exclude=...). An interrupted "
        "command resumes when it is run again. To look again with other limits, move its folder 'embeddings' to a new "
        "DIR first: no image is embedded again.",
    )
    trained.add_network(parser)
    add_data(parser)
    parser.add_argument(
        "--output",
        type=places.place(places.RESUMED_FOLDER),
        required=True,
        metavar="DIR",
        help="new folder that receives the files",
    )
    add_against(parser)
    defaults = Limits()
    for name, low, high, help in (
        ("stranger-rate", 0, 0.5, "share of wrong labels that may be missed; a smaller one lists more good images"),
        ("merge", 0, 1, "two classes may be one from this likeness on; 1 is as similar as one class"),
        ("split", 0, 1, "a class may be two if the likeness of its halves is at most this"),
        ("copy", 0, 1, "cosine from which the pixels of two images are compared, to find copies"),
    ):  # fmt: skip
        default = getattr(defaults, name.replace("-", "_"))
        parser.add_argument(
            f"--{name}", type=_number(low, high), default=default, metavar="X", help=f"{help} (default {default:g})"
        )
    parser.add_argument(
        "--shown",
        type=at_least(1, 10_000),
        default=_SHOWN,
        metavar="N",
        help=f"most images and classes of each kind on the page (default {_SHOWN})",
    )
    trained.add_ranks(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def _number(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low < value <= high:
            raise argparse.ArgumentTypeError(f"{one_line(text, 40)!r} is not a number above {low:g} up to {high:g}")
        return value

    return number


def run(options: argparse.Namespace) -> int:
    """Runs the action and returns its exit status."""
    return trained.on_ranks(options, lambda: _find(options))


def _find(options: argparse.Namespace) -> int:
    from plsc import parallel
    from plsc.datasets.outlier_files import check_folder
    from plsc.evaluation.build import open_inputs
    from plsc.evaluation.outliers import Wanted, review_data

    reads = [options.source, *options.against, *filter(None, [options.exclude])]
    config = apply_data(options, trained.prepared_config(options, reads=reads))
    limits = Limits(options.stranger_rate, options.merge, options.split, options.copy)
    with open_inputs(config) as inputs, parallel.action(config.patience):
        parallel.from_rank_0(lambda: check_folder(options.output), "a look at the output folder")
        data, *tests = parallel.together(lambda: _fetch(options, config, inputs), "the data")
        address = options.source if is_address(options.source) else ""
        wanted = Wanted(data, options.output, tuple(tests), limits, options.shown, address)
        summary = review_data(config, lambda: open_whole(options, config, inputs, data), wanted)
    if options.json:
        print_json({"output": to_text(str(options.output)), **summary._asdict()})
    else:
        _print(options.output, summary)
    return 0


def _fetch(options: argparse.Namespace, config: Config, inputs: Inputs) -> list[Path]:
    """Returns the paths of the data and of the test sets, after those in stores have been fetched."""
    tests = [inputs.images(path) for path in options.against]
    return list(map(Path, [inputs.data(options.source, config.data_format), *tests]))


def _print(output: Path, found: Summary) -> None:
    print(f"{output}: {counted(found.images, 'image')}, of which {found.damaged:,} cannot be decoded")
    print(f"far from their class (cosine below {found.threshold:.3f}) and closer to another: {found.outliers:,}")
    print(f"doubtful, because only one of the two holds: {found.doubtful:,}")
    print(f"pairs of classes that may be one: {found.merges:,}")
    print(f"classes that may be two: {found.splits:,}")
    print(f"copies in other classes: {found.copies:,}")
    print(f"copies of test images: {found.leaks:,}")
    print(f"{output / 'leave_out.txt'}: lists {counted(found.left_out, 'image')}, for set_dataset_dir(exclude=...)")
    if found.unnamed:
        print(f"  not on the list: {found.unnamed:,} whose names hold a tab or line end")
    print(f"{output / 'page.html'}: shows them")
