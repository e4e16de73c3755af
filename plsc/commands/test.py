"""`plsc test --checkpoint DIR [--dataset DIR] [--targets a,b] [--gallery PATH --probes PATH]`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from plsc.arguments import add_command, add_json, print_json
from plsc.commands import places, trained
from plsc.config import default_cache
from plsc.errors import ConfigError
from plsc.metrics.records import finite
from plsc.storage.address import is_address


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    parser = add_command(
        commands,
        "test",
        "test a checkpoint on verification sets, and on finding images in a gallery",
        [
            "plsc test --checkpoint output/19 --dataset ./train_data --targets lfw,agedb_30",
            "plsc test --checkpoint output/19 --dataset ./faces --targets people --far 1e-4,1e-5",
            "plsc test --checkpoint output/19 --gallery known --probes new.txt --embeddings kept",
        ],
        "A target is NAME.bin in the dataset folder, or a pairs file NAME.txt, or a folder NAME of <identity>/<image>. "
        "The gallery and the probes are folders of <identity>/<image>, or lists of images and identities.",
    )
    trained.add_options(parser, exports=True)
    parser.add_argument("--dataset", metavar="DIR", help="folder of the sets, or its address")
    parser.add_argument("--targets", help="names of sets in that folder, separated by commas (default lfw)")
    parser.add_argument("--far", metavar="RATES", help="false accept rates (default 1e-1,1e-2,1e-3,1e-4,1e-5,1e-6)")
    parser.add_argument("--gallery", metavar="PATH", help="images of known identities")
    parser.add_argument("--probes", metavar="PATH", help="images to find in the gallery")
    parser.add_argument(
        "--embeddings",
        type=places.on_disk("--embeddings"),
        metavar="DIR",
        help="folder that keeps the embeddings; later tests of the same images and network use them again",
    )
    trained.add_ranks(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if (options.gallery is None) != (options.probes is None):
        raise ConfigError("--gallery and --probes need each other; name both")
    if options.dataset is None and (options.gallery is None or options.targets is not None):
        raise ConfigError("--dataset is missing; name the folder of the sets, or --gallery and --probes")
    return trained.on_ranks(options, lambda: _test(options))


def _test(options: argparse.Namespace) -> int:
    own = {
        "dataset_dir": options.dataset,
        "val_targets": options.targets,
        "test_fars": None if options.far is None else _rates(options.far),
        "identification": None if options.gallery is None else [options.gallery, options.probes],
        "test_embeddings_dir": options.embeddings,
    }
    defaults: dict[str, Any] = {"val_targets": ""} if options.dataset is None else {}
    if is_address(options.dataset):
        defaults["data_cache"] = dataclasses.asdict(default_cache())
    results = trained.entry_of(options, own, defaults).test()  # which logs them
    if options.json:
        print_json(finite(results))
    return 0


def _rates(text: str) -> list[float]:
    try:
        return [float(rate) for rate in text.split(",")]
    except ValueError:
        raise ConfigError(f"--far {text}: expected rates such as 1e-3,1e-4") from None
