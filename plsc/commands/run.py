"""`plsc run [--ranks N] script.py [args]`: a training script on one or several ranks of this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from plsc import settings
from plsc.arguments import add_command, add_ranks, at_least, program
from plsc.errors import ConfigError
from plsc.machine import launch


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    parser = add_command(
        commands,
        "run",
        "run a training script on one or several ranks of this machine",
        [
            "plsc run train.py",
            "plsc run --ranks 2 --restarts 3 train.py --data ./faces",
            "plsc run --set train_batch_size=64 --set lr=0.05 train.py",
        ],
        "Options of the script come after it. Scripts that `import paddle.fluid` get plsc.fluid. With several ranks, "
        "the first failure ends all of them, and the last lines of the failed rank are shown. With one rank, the exit "
        "status is that of the script. Settings of --set and --config win over the setters of the script.",
    )
    add_ranks(parser, "number of processes (default 1)")
    parser.add_argument(
        "--restarts",
        type=at_least(0),
        default=0,
        metavar="N",
        help="restart all ranks after a failure, at most N times; training resumes from its newest checkpoint (default "
        "0)",
    )
    settings.add_options(parser)
    parser.add_argument("script", nargs="?", help="the Python script that every rank runs")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script")
    parser.set_defaults(wrong_usage=parser.error)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if options.script is None:
        options.wrong_usage(f"the script is missing; name it, as in {program()} run train.py")
    variables = settings.to_environment(options)
    script = Path(options.script)
    if not script.is_file():
        wrong = "is a folder, not a script" if script.is_dir() else "no such script"
        raise ConfigError(f"{options.script}: {wrong}; name a Python script, as in {program()} run train.py")
    return launch.run([sys.executable, options.script, *options.args], options.ranks, options.restarts, variables)
