"""`plsc data check SOURCE [--against SET ...] [--fix LIST]`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Optional

from tqdm import tqdm

from plsc.arguments import add_command, add_json, at_least, print_json
from plsc.commands import places
from plsc.commands.data_source import add_against, add_source, check_new, config_of, open_inputs, open_whole
from plsc.config import MOST_THREADS
from plsc.errors import ConfigError, counted
from plsc.machine import threads
from plsc.machine.files import replacing
from plsc.machine.names import class_title, readable, to_text

if TYPE_CHECKING:
    from plsc.datasets.check import Findings, Listing

_SHOWN = 5  # of each kind


def add_parser(actions: argparse._SubParsersAction) -> None:
    """Adds the action to the parser of `plsc data`."""
    parser = add_command(
        actions,
        "check",
        "find damaged images, duplicates, and images of test sets",
        [
            "plsc data check train_data",
            "plsc data check train_data --against train_data/lfw.bin pairs.txt --fix leave_out.txt",
            "plsc data check train.rec --set max_image_pixels=100000000 --json",
        ],
        "Decodes every image. Changes nothing; --fix writes a list for set_dataset_dir(exclude=...).\n\n"
        "The exit status is 1 if images cannot be decoded, are the same, or are in a test set, unless --fix has listed "
        "all that should be left out. Images that merely look alike do not count.",
    )
    add_source(parser)
    add_against(parser)
    parser.add_argument(
        "--fix",
        type=places.place(places.NEW_FILE),
        metavar="LIST",
        help="new file that lists the images to leave out",
    )
    parser.add_argument(
        "--workers",
        type=at_least(1, MOST_THREADS),
        metavar="N",
        help="number of threads that decode (default: one per core)",
    )
    add_json(parser, "print a JSON object with all that was found")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the action and returns its exit status."""
    from plsc.datasets.check import View, check, write_list

    config = config_of(options)
    if options.fix is not None:
        check_new("--fix", options.fix)
    read = [options.source, *options.against, *filter(None, [config.exclude])]
    with open_inputs(config, read) as inputs:
        with _new_file(options.fix) as stream:
            tests = [Path(inputs.images(path)) for path in options.against]
            records = open_whole(options, config, inputs)
            disable = True if options.json else None  # None: only on a terminal
            with tqdm(total=records.num_images, unit="image", dynamic_ncols=True, disable=disable) as bar:

                def advance(count: int) -> None:
                    bar.update(count)

                workers = options.workers or threads.cores()
                view = View(config.image_shape, config.pixels, workers, advance)
                found = check(records, Path(inputs.path_of(options.source)), tests, view)
            found.names = [options.source, *options.against]
            found.reasons = {i: inputs.named(reason) for i, reason in found.reasons.items()}
            listing = None if stream is None else write_list(found, stream)
        if options.json:  # the names of images may be where the images are
            print_json(_as_json(found, records.class_names, options, listing))
        else:
            _print(found, records.class_names, options, listing)
    is_clean = not (len(found.damaged) or len(found.members) or len(found.leaks))
    return 0 if is_clean or (listing is not None and not listing.unnamed) else 1


@contextlib.contextmanager
def _new_file(path: Optional[Path]) -> Iterator[Optional[BinaryIO]]:
    """Opens a file that appears when the block ends. It is opened first, so that a mistake shows before the work."""
    if path is None:
        yield None
        return
    try:
        with replacing(path) as part, open(part, "wb") as stream:
            yield stream
    except OSError as problem:
        raise ConfigError(f"--fix: {path}: cannot be written ({problem.strerror}); name another file") from None


def _class_of(found: Findings, names: Any, i: int) -> str:
    label = int(found.labels[i])
    return names[label] if names else str(label)


def _print(found: Findings, names: Any, options: argparse.Namespace, listing: Optional[Listing]) -> None:
    """Prints the numbers, and the first of each kind."""
    count = len(found.labels)
    inside = [group for group in found.group_of_members() if found.are_of_one_class(group)]
    across = [group for group in found.group_of_members() if not found.are_of_one_class(group)]
    same_class = found.labels[found.near[:, 0]] == found.labels[found.near[:, 1]]
    near = [(same_class, "inside a class"), (~same_class, "in different classes")]
    print(f"{options.source}: {counted(count, 'image')} checked")
    _show("cannot be decoded", len(found.damaged), (found.reasons[i] for i in found.damaged[:_SHOWN]))
    for what, groups in (("inside a class", inside), ("in different classes", across)):
        lines, number = (_group_line(found, names, group) for group in groups[:_SHOWN]), sum(map(len, groups))
        _show(f"the same as another image, {what}", number - len(groups), lines)
    for which, what in near:
        pairs = found.near[which]
        lines = (
            f"{found.name(i)} ({class_title(int(found.labels[i]), names)}) looks like {found.name(j)} "
            f"({class_title(int(found.labels[j]), names)})"
            for i, j in pairs[:_SHOWN].tolist()
        )
        _show(f"looks like another image, {what}", len(pairs), lines)
    for number, test in enumerate(found.names[1:], 1):
        pairs = [(i, j) for i, j in found.leaks.tolist() if found.set_of(j) == number]
        lines = (f"{found.name(i)} is or looks like {found.name(j)}" for i, j in pairs[:_SHOWN])
        _show(f"in {test}", len(pairs), lines)
    if listing is not None:
        print(f"{options.fix}: lists {counted(listing.images, 'image')} to leave out, for set_dataset_dir(exclude=...)")
        if listing.unnamed:
            print(
                f"  not on the list: {listing.unnamed:,} that it cannot name, because a good image has the same name "
                "or the name holds a tab or line end"
            )


def _show(what: str, number: int, lines: Iterator[str]) -> None:
    print(f"{what}: {number:,}")
    if number:
        print("".join(f"  {readable(line)}\n" for line in lines), end="")
        print("  ...\n" * (number > _SHOWN), end="")


def _group_line(found: Findings, names: Any, group: Any) -> str:
    shown = [f"{found.name(i)} ({class_title(int(found.labels[i]), names)})" for i in group[:_SHOWN].tolist()]
    more = f" and {len(group) - _SHOWN:,} more" if len(group) > _SHOWN else ""
    return " = ".join(shown) + more


def _as_json(found: Findings, names: Any, options: argparse.Namespace, listing: Optional[Listing]) -> dict[str, Any]:
    def image(i: int) -> dict[str, str]:
        return {"name": to_text(found.name(i)), "class": _class_of(found, names, i)}

    leaks = [(image(i), found.set_of(j), to_text(found.name(j))) for i, j in found.leaks.tolist()]
    return {
        "source": to_text(options.source),
        "images": len(found.labels),
        "damaged": [{**image(i), "reason": found.reasons.get(i)} for i in found.damaged],
        "same": [[image(i) for i in group.tolist()] for group in found.group_of_members()],
        "alike": [[image(i), image(j)] for i, j in found.near.tolist()],
        "in_tests": [{**one, "test": to_text(found.names[test]), "test_image": name} for one, test, name in leaks],
        "fix": None if listing is None else {"list": to_text(str(options.fix)), **listing._asdict()},
    }
