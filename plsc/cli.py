"""`python -m plsc run [--ranks N] script.py [args]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from plsc import launch


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m plsc", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a training script on one or several ranks of this machine")
    run.add_argument("--ranks", type=_positive, default=1, help="number of processes (default 1)")
    run.add_argument("script", help="the Python script every rank runs")
    run.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script")
    options = parser.parse_args(arguments)
    if not Path(options.script).is_file():
        print(f"plsc: error: {options.script}: no such script", file=sys.stderr)
        return 1
    return launch.run([sys.executable, options.script, *options.args], options.ranks)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
