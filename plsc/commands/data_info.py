"""`plsc data info SOURCE`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Optional

from plsc import settings
from plsc.arguments import add_command, add_json, print_json
from plsc.commands.bars import Bar
from plsc.commands.data_source import SOURCE, inputs_of
from plsc.datasets.opening import add_format
from plsc.errors import counted
from plsc.machine.names import class_title, readable

if TYPE_CHECKING:
    from plsc.datasets.survey import Survey

_WIDTH = 40  # characters of the longest bar of the histogram


def add_parser(actions: argparse._SubParsersAction) -> None:
    """Adds the action to the parser of `plsc data`."""
    parser = add_command(
        actions,
        "info",
        "show what a data set holds",
        ["plsc data info train_data", "plsc data info train.rec --all --json", "plsc data info s3://bucket/dataset"],
        "Shows the format, the numbers of images and classes, the images per class, the kinds and sizes of the images, "
        "and the first damaged ones. Images are not decoded: their headers are read, those of 1,000 images that are "
        "evenly spread, or with --all those of all images.",
    )
    parser.add_argument("source", metavar="SOURCE", help=f"{SOURCE}; or base64 parts")
    add_format(parser)
    settings.add_options(parser)
    parser.add_argument("--all", action="store_true", help="read every image, in as many processes as there are cores")
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from plsc.datasets.survey import survey

    with inputs_of(options, [options.source]) as inputs, Bar(hidden=options.json) as bar:
        found = survey(
            options.source, options.format, options.all, lambda done, total: bar.show("reading", done, total), inputs
        )
        found.seen.messages = {i: inputs.named(message) for i, message in found.seen.messages.items()}
    if options.json:
        print_json(found.to_json())
    else:
        print("\n".join([f"{options.source}: {found.data_format}", *_lines(found)]))
    return 0


def _lines(found: Survey) -> list[str]:
    """Returns the lines below the name of the data set."""
    seen, used = found.seen, found.used
    unused = f", of which {len(used):,} have images" if len(used) < found.classes else ""
    named = f", with names such as {readable(found.class_names[0])}" if found.class_names else ""
    about = "" if seen.count == found.images else "about "
    lines = [
        f"images   {found.images:,} ({about}{_size(found.bytes)}, {about}{_size(found.bytes / found.images)} each)",
        f"classes  {found.classes:,}{unused}{named}",
        *_per_class(found),
        f"kinds    {', '.join(f'{name} {count:,}' for name, count in seen.kinds.most_common()) or 'none'}",
        f"pixels   {_range(seen.widths)} wide, {_range(seen.heights)} high",
        f"damaged  {seen.damaged:,}" + ("" if seen.count == found.images else f" of the {seen.count:,} examined"),
    ]
    return lines + [f"         {readable(message)}" for message in seen.messages.values()]


def _per_class(found: Survey) -> list[str]:
    """Returns the lines about the images per class, with a histogram."""
    used = found.used
    if not len(used):
        return []
    smallest, largest = found.extremes()
    rows = found.histogram()
    most = max(count for _, _, count in rows)
    spans = [f"{least:,}" if least == end else f"{least:,} to {end:,}" for least, end, _ in rows]
    width = max(map(len, spans))
    middle = f"{sorted(used.tolist())[len(used) // 2]:,}"
    least, most_images = found.counts[smallest], found.counts[largest]
    fewest, largest_title = (class_title(one, found.class_names) for one in (smallest, largest))
    span = f"{least:,} ({fewest}) to {most_images:,} ({largest_title})"
    lines = [f"images per class: {middle}" if least == most_images else f"images per class: {span}, median {middle}"]
    for span, (_, _, count) in zip(spans, rows):
        bar = "#" * -(-count * _WIDTH // most)
        lines.append(f"  {span:>{width}}  {bar}{' ' if bar else ''}{counted(count, 'class')}")
    return lines


def _range(values: Optional[tuple[int, int]]) -> str:
    if values is None:
        return "?"
    return str(values[0]) if values[0] == values[1] else f"{values[0]} to {values[1]}"


def _size(count: float) -> str:
    """Returns a number of bytes in the unit that suits it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
