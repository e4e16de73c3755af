"""`plsc run [--ranks N] script.py [args]`: a training script on the ranks of one or several machines."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Optional

from plsc import settings
from plsc.arguments import add_command, add_ranks, at_least, program
from plsc.errors import ConfigError, counted
from plsc.machine import launch
from plsc.machine.launch.network import parse_address
from plsc.machine.names import readable


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser of `plsc`."""
    parser = add_command(
        commands,
        "run",
        "run a training script on the ranks of one or several machines",
        [
            "plsc run train.py",
            "plsc run --ranks 2 --restarts 3 train.py --data ./faces",
            "plsc run --set train_batch_size=64 --set lr=0.05 train.py",
            "plsc run --nnodes 2 --master 10.0.0.1:29500 --ranks 4 train.py   # the same on both machines",
            "plsc run --nnodes auto --ranks 4 train.py                        # srun starts it on every machine",
        ],
        "Options of the script come after it. Scripts that `import paddle.fluid` get plsc.fluid. With several ranks, "
        "the first failure ends all of them, and the last lines of the failed rank are shown. With one rank, the exit "
        "status is that of the script. The same command on each of several machines, with --nnodes and --master, "
        "starts, ends and restarts their ranks together. Settings of --set and --config win over the setters of the "
        "script.",
    )
    add_ranks(parser, "number of processes on this machine (default 1)")
    parser.add_argument(
        "--restarts",
        type=at_least(0),
        default=0,
        metavar="N",
        help="restart all ranks after a failure, at most N times; training resumes from its newest checkpoint (default "
        "0)",
    )
    _add_machines(parser)
    settings.add_options(parser)
    parser.add_argument("script", nargs="?", help="the Python script that every rank runs")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script")
    parser.set_defaults(wrong_usage=parser.error)


def _add_machines(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several machines (start the same command on each of them)")
    group.add_argument(
        "--nnodes",
        type=_nnodes,
        default=1,
        metavar="N",
        help="number of machines, or auto to take it from Slurm or MPI (default 1)",
    )
    group.add_argument(
        "--master",
        type=_address,
        metavar="HOST:PORT",
        help="a free port on one of the machines, where they meet; in a Slurm job by default on the first machine",
    )
    group.add_argument(
        "--node-rank",
        type=at_least(0),
        metavar="R",
        help="number of this machine, from 0; by default that of Slurm, MPI or Kubernetes, and otherwise 0 for the "
        "master and the order of the host names for the others",
    )
    group.add_argument(
        "--interface",
        metavar="NAME",
        help="network interface to the other machines, such as eth0; by default that of the route to the master",
    )
    group.add_argument(
        "--wait",
        type=at_least(1),
        default=600,
        metavar="SECONDS",
        help="how long to wait for machines that are missing, at the start and after a failure (default 600)",
    )


def _nnodes(text: str) -> int:
    """Returns a number of machines, 0 for `auto`; an `argparse` type."""
    return 0 if text == "auto" else at_least(1)(text)


def _address(text: str) -> str:
    try:
        parse_address(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None
    return text


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if options.script is None:
        options.wrong_usage(f"the script is missing; name it, as in {program()} run train.py")
    variables = settings.to_environment(options)
    script = Path(options.script)
    if not script.is_file():
        wrong = "is a folder, not a script" if script.is_dir() else "no such script"
        raise ConfigError(f"{options.script}: {wrong}; name a Python script, as in {program()} run train.py")
    command = [sys.executable, options.script, *options.args]
    machines = _machines(options)
    # Paddle takes seconds to load, and then the script speaks for itself.
    launch.say(f"plsc: starting {counted(options.ranks, 'rank')} of {readable(options.script)}\n")
    if machines is None:
        return launch.run(command, options.ranks, options.restarts, variables)
    return launch.run_on_machines(command, machines, variables)


def _machines(options: argparse.Namespace) -> Optional[launch.Machines]:
    """Returns the machines that the command line and the environment name, or None for this one alone."""
    node_rank, master, nnodes = options.node_rank, options.master, options.nnodes
    cluster = None if nnodes == 1 else launch.read_cluster(os.environ)
    if nnodes == 0:
        if cluster is None or cluster.nnodes is None:
            why = "neither Slurm nor MPI has started plsc" if cluster is None else f"{cluster.system} does not tell it"
            raise ConfigError(f"--nnodes auto: the number of machines is unknown ({why}); give it")
        nnodes = cluster.nnodes
    if nnodes == 1:
        given = [name for name in ("master", "node_rank", "interface") if getattr(options, name) is not None]
        if given and options.nnodes == 1:
            option = f"--{given[0].replace('_', '-')}"
            raise ConfigError(f"{option} is for several machines; give their number with --nnodes")
        return None
    if cluster is not None and cluster.nnodes in (None, nnodes):
        node_rank = cluster.node_rank if node_rank is None else node_rank
        master = cluster.master if master is None else master
    if master is None:
        raise ConfigError(
            "several machines need --master host:port, a free port on one of them; give it on all of them"
        )
    if node_rank is not None and node_rank >= nnodes:
        raise ConfigError(f"--node-rank {node_rank}: the numbers of {nnodes} machines are 0 to {nnodes - 1}")
    return launch.Machines(
        nnodes=nnodes,
        master=master,
        ranks=options.ranks,
        node_rank=node_rank,
        restarts=options.restarts,
        interface=options.interface,
        patience=options.wait,
    )
