"""`python -m plsc run [--ranks N] script.py [args]`: a training script on one or several ranks of this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from plsc import settings
from plsc.arguments import add_command, at_least
from plsc.errors import ConfigError
from plsc.machine import launch


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `python -m plsc`."""
    parser = add_command(
        commands,
        "run",
        "run a training script on one or several ranks of this machine",
        [
            "python -m plsc run train.py",
            "python -m plsc run --ranks 2 --restarts 3 train.py --data ./faces",
            "python -m plsc run --set train_batch_size=64 --set lr=0.05 train.py",
        ],
        "Options of the script come after it. Scripts that `import paddle.fluid` get plsc.fluid. With several ranks the "
        "first failure ends all of them, and its last words are shown. The status of a single rank is that of the script. Settings win over the setters of the script.",
    )
    parser.add_argument("--ranks", type=at_least(1), default=1, metavar="N", help="number of processes (default 1)")
    parser.add_argument(
        "--restarts",
        type=at_least(0),
        default=0,
        metavar="N",
        help="start all ranks again after a failure, so often at most; training goes on from its newest checkpoint (default 0)",
    )
    settings.add_options(parser)
    parser.add_argument("script", help="the Python script every rank runs")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script")


def run(options: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    if not Path(options.script).is_file():
        raise ConfigError(f"{options.script}: no such script")
    chosen = settings.to_environment(settings.read_options(options))
    return launch.run([sys.executable, options.script, *options.args], options.ranks, options.restarts, chosen)
