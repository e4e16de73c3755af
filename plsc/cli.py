"""`python -m plsc run [--ranks N] script.py [args]` and the other commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from plsc import launch, settings
from plsc.arguments import at_least
from plsc.checkpoint.convert import convert
from plsc.errors import ConfigError, PlscError


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m plsc", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a training script on one or several ranks of this machine")
    run.add_argument("--ranks", type=at_least(1), default=1, help="number of processes (default 1)")
    run.add_argument(
        "--restarts",
        type=at_least(0),
        default=0,
        help="start all ranks again after a failure, so often at most; training goes on from its newest checkpoint (default 0)",
    )
    settings.add_options(run)
    run.add_argument("script", help="the Python script every rank runs")
    run.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script")
    cut = commands.add_parser("convert-checkpoint", help="cut the head of a checkpoint for another number of ranks")
    cut.add_argument("source", type=Path, help="folder of the checkpoint; it is only read")
    cut.add_argument("target", type=Path, help="new folder")
    cut.add_argument("--ranks", type=at_least(1), required=True, help="number of head files to make")
    options = parser.parse_args(arguments)
    try:
        return _run(options) if options.command == "run" else _convert(options)
    except PlscError as error:
        print(f"plsc: error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    if not Path(options.script).is_file():
        raise ConfigError(f"{options.script}: no such script")
    chosen = settings.to_environment(settings.read_options(options))
    return launch.run([sys.executable, options.script, *options.args], options.ranks, options.restarts, chosen)


def _convert(options: argparse.Namespace) -> int:
    convert(options.source, options.target, options.ranks)
    print(f"{options.target}: the checkpoint {options.source} for {options.ranks} ranks")
    return 0
