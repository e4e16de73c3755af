"""`python -m plsc test --checkpoint DIR [--dataset DIR] [--targets a,b] [--gallery PATH --probes PATH]`."""

from __future__ import annotations

import argparse
import json

from plsc.arguments import add_command
from plsc.commands import trained
from plsc.errors import ConfigError
from plsc.metrics.records import finite


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `python -m plsc`."""
    parser = add_command(
        commands,
        "test",
        "test a checkpoint on verification sets, and on finding images in a gallery",
        [
            "python -m plsc test --checkpoint output/19 --dataset ./train_data --targets lfw,agedb_30",
            "python -m plsc test --checkpoint output/19 --dataset ./faces --targets people --far 1e-4,1e-5",
            "python -m plsc test --checkpoint output/19 --gallery known --probes new.txt --embeddings kept",
        ],
        "A target is NAME.bin in the dataset folder, or a pairs file NAME.txt, or a folder NAME of <identity>/<image>. A gallery "
        "and probes are folders of <identity>/<image>, or lists of images and identities.",
    )
    trained.add_options(parser, exports=True)
    parser.add_argument("--dataset", metavar="DIR", help="folder of the sets")
    parser.add_argument("--targets", help="comma separated names of sets in it (default lfw)")
    parser.add_argument("--far", metavar="RATES", help="rates of false accepts (default 1e-1,1e-2,1e-3,1e-4,1e-5,1e-6)")
    parser.add_argument("--gallery", metavar="PATH", help="images of known identities")
    parser.add_argument("--probes", metavar="PATH", help="images to find in the gallery")
    parser.add_argument("--embeddings", metavar="DIR", help="keep embeddings there, or use those an earlier test kept")
    trained.add_ranks(parser)
    parser.add_argument("--json", action="store_true", help="print an object")


def run(options: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    if (options.gallery is None) != (options.probes is None):
        raise ConfigError("--gallery and --probes need each other; name both")
    if options.dataset is None and (options.gallery is None or options.targets is not None):
        raise ConfigError("--dataset is missing; name the folder of the sets, or --gallery and --probes")
    return trained.on_ranks(options, lambda: _test(options))


def _test(options: argparse.Namespace) -> int:
    entry = trained.entry_of(options)
    entry.set_val_targets("")
    if options.dataset is not None:
        entry.set_dataset_dir(options.dataset)
        entry.set_val_targets("lfw" if options.targets is None else options.targets)
    if options.far is not None:
        entry.set_test_fars(_rates(options.far))
    if options.gallery is not None:
        entry.set_identification(options.gallery, options.probes)
    if options.embeddings is not None:
        entry.set_test_embeddings_dir(options.embeddings)
    results = entry.test()  # which logs them
    if options.json:
        print(json.dumps(finite(results), allow_nan=False))
    return 0


def _rates(text: str) -> list[float]:
    try:
        return [float(rate) for rate in text.split(",")]
    except ValueError:
        raise ConfigError(f"--far {text}: expected rates such as 1e-3,1e-4") from None
