"""`plsc data convert SOURCE OUTPUT --to FORMAT`."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Optional

from plsc import settings
from plsc.arguments import add_command, add_json, add_ranks, at_least, print_json
from plsc.commands import places
from plsc.commands.bars import Bar
from plsc.commands.data_source import SOURCE, inputs_of
from plsc.datasets.opening import add_format
from plsc.datasets.targets import TARGETS
from plsc.errors import ConfigError, UsageError, counted
from plsc.machine.memory import size_text
from plsc.machine.names import readable, to_text
from plsc.storage.address import is_address

if TYPE_CHECKING:
    from plsc.datasets.conversion import Conversion, Engine, Result

_QUALITY = 95
_MOST_PIXELS = 8192  # a side that the rule of pixels still reads


def _is_direct(options: argparse.Namespace) -> bool:
    """Returns whether shards are uploaded one by one, so that the disk of this machine holds only a few of them.

    Raises:
        ConfigError: The shards are made elsewhere.
    """
    if options.engine == "spark":
        raise ConfigError("--engine spark writes to a disk that all machines share; name a folder on it as OUTPUT")
    return TARGETS[options.to].has_shards and options.ranks is None


_OUTPUT = places.Role(is_output=True, resumes=True, is_direct=_is_direct)


def add_parser(actions: argparse._SubParsersAction) -> None:
    """Adds the action to the parser of `plsc data`."""
    parser = add_command(
        actions,
        "convert",
        "write a data set in another format",
        [
            "plsc data convert faces faces_tar --to tar",
            "plsc data convert train.rec faces_base64 --to base64 --ranks 8",
            "plsc data convert photos photos_112 --to parquet --size 112 --quality 90",
            "plsc data convert s3://bucket/parts faces_tar --to tar --set data_cache='[/ssd/cache, 500GB]'",
        ],
        "The images keep their class numbers, without --size their bytes, and their order, unless folders sort them or "
        "--ranks shuffles them. The output appears when it is complete; an interrupted command resumes when it is run "
        "again.",
    )
    parser.add_argument("source", metavar="SOURCE", help=f"{SOURCE}; or base64 parts")
    parser.add_argument("output", type=places.place(_OUTPUT, str), metavar="OUTPUT", help="new folder")
    about = "; ".join(f"{name}: {target.about}" for name, target in TARGETS.items())
    parser.add_argument("--to", required=True, choices=list(TARGETS), help=about)
    add_format(parser)
    parser.add_argument(
        "--size",
        type=at_least(1, _MOST_PIXELS),
        metavar="N",
        help="resize images to N x N pixels, and encode those as JPEG that have another size (default: as they are)",
    )
    parser.add_argument(
        "--quality",
        type=at_least(1, 100),
        metavar="N",
        help=f"quality of the JPEG images that --size makes (default {_QUALITY})",
    )
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument(
        "--shards", type=at_least(1), metavar="N", help="number of files (default: files of at most about 256 MB)"
    )
    add_ranks(parts, "with --to base64, also shuffle the images and split them for N ranks", default=None)
    parser.add_argument("--workers", type=at_least(1, 4096), metavar="N", help="processes (default: one per core)")
    parser.add_argument(
        "--engine",
        choices=["local", "spark"],
        default="local",
        help="this machine (default), or Apache Spark, for SOURCE and OUTPUT on a disk that all machines share",
    )
    parser.add_argument(
        "--skip-damaged",
        action="store_true",
        help="leave out damaged images and list them in skipped.txt, instead of stopping at the first",
    )
    settings.add_options(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from plsc.datasets.conversion import convert

    places.check_outside(options, options.output)
    conversion = _conversion(options)
    began = time.monotonic()
    try:
        target = getattr(options, "target", None)
        with inputs_of(options, [options.source]) as inputs, Bar(hidden=options.json) as bar:
            result = convert(conversion, bar.show, _engine(options.engine), inputs, target)
    except KeyboardInterrupt:
        print("plsc: stopped by Ctrl-C; run the same command again to resume", file=sys.stderr)
        raise
    _report(options, conversion, result, time.monotonic() - began)
    return 0


def _engine(name: str) -> Optional[Engine]:
    if name == "local":
        return None
    from plsc.datasets.spark import make_shards_on_spark

    return make_shards_on_spark


def _conversion(options: argparse.Namespace) -> Conversion:
    """Returns the conversion that the command line describes.

    Raises:
        ConfigError: Its options do not fit together.
    """
    from plsc.datasets.conversion import Conversion

    if options.quality is not None and options.size is None:
        raise UsageError("--quality is for the images that --size changes; give --size, or leave it out")
    if options.engine == "spark" and is_address(options.source):
        raise ConfigError(
            "--engine spark reads SOURCE on every machine, and the data cache is on this one; name data on a disk that "
            "all machines share, or leave --engine out"
        )
    if options.engine == "spark" and options.workers is not None:
        raise ConfigError(
            "--workers is not for --engine spark; leave it out (set the master, for example local[4], or "
            "spark.executor.instances)"
        )
    return Conversion(
        source=options.source,
        output=options.output,
        to=options.to,
        data_format=options.format,
        size=options.size,
        quality=options.quality or _QUALITY,
        shards=options.shards,
        ranks=options.ranks,
        workers=options.workers,
        skip_damaged=options.skip_damaged,
    )


def _report(options: argparse.Namespace, conversion: Conversion, result: Result, seconds: float) -> None:
    """Prints what was made, what is missing from it, and what to do next."""
    from plsc.datasets.opening import test_sets_near

    left = test_sets_near(conversion.source)
    if options.json:
        print_json({"output": to_text(conversion.output), **result._asdict(), "test_sets": list(map(to_text, left))})
        return
    kept = f" ({result.kept:,} of them from an earlier run)" if result.kept else ""
    shards = ""
    if TARGETS[conversion.to].has_shards or kept:
        shards = f" in {counted(result.shards, 'shard')}{kept}"
    rate = result.image_bytes / max(seconds, 1e-9)
    print(
        f"{conversion.output}: {counted(result.images, 'image')} of {counted(result.classes, 'class')} as "
        f"{conversion.to}{shards}, "
        f"{size_text(result.image_bytes)} in {seconds:.1f} s ({size_text(rate)}/s)"
    )
    if result.skipped:
        print(f"{counted(result.skipped, 'damaged image')} left out; skipped.txt lists them")
    if conversion.to == "base64" and conversion.ranks is None and not places.address_of(options, conversion.output):
        print(
            f"Split it for the ranks: python tools/process_base64_files.py --data_dir={conversion.output} "
            "--file_list=file_list.txt --nranks=8"
        )
    if left:
        print(f"Test sets are not converted; copy them to the new folder: {', '.join(map(readable, left))}")
