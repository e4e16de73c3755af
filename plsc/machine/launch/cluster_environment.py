"""What Slurm, MPI and Kubernetes tell a launcher about the machines of its job, in environment variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from plsc.errors import ConfigError, shown

# The names of the launcher's number, of the number of launchers, and of the number of launchers on this machine; how to
# start one on each. The first system that is found counts: Open MPI may run in a Slurm job, and srun may speak PMI.
_SYSTEMS = {
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "mpirun --npernode 1"),
    "Slurm": ("SLURM_NODEID", "SLURM_NNODES", None, "srun --ntasks-per-node=1"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS", "mpiexec -ppn 1"),
    "a Kubernetes Indexed Job": ("JOB_COMPLETION_INDEX", None, None, ""),
}
_FIRST_PORT, _PORTS = 20000, 12000  # below the ports that Linux gives to clients


@dataclass(frozen=True)
class Cluster:
    """What the environment says about this launcher's job.

    Attributes:
        system: The name of the system that started the launcher.
        node_rank: The number of this machine.
        nnodes: The number of machines; None where the system does not say.
        master: `host:port` for the launchers to meet at; None where the system does not name a host.
    """

    system: str
    node_rank: int
    nnodes: Optional[int] = None
    master: Optional[str] = None


def read_cluster(environment: Mapping[str, str]) -> Optional[Cluster]:
    """Returns what the environment says, or None where no cluster has started this process.

    Raises:
        ConfigError: The cluster has started several launchers on this machine, or a variable is not a number, or
            the number of this machine is too large.
    """
    for system, (number, count, local, advice) in _SYSTEMS.items():
        if number not in environment or (count is not None and count not in environment):
            continue
        on_this_machine = _number(environment, local, "--ranks") if local is not None and local in environment else 1
        if system == "Slurm":
            on_this_machine = _slurm_tasks(environment)
        if on_this_machine != 1:
            raise ConfigError(
                f"{system} has started {on_this_machine} launchers on this machine; start one on each, with {advice}, "
                "and choose the number of processes with --ranks"
            )
        nnodes = None if count is None else _number(environment, count, "--nnodes")
        node_rank = _number(environment, number)
        if nnodes is not None and node_rank >= nnodes:
            raise ConfigError(
                f"{number}={node_rank} in the environment: the numbers of {nnodes} machines ({count}) are 0 to "
                f"{nnodes - 1}; unset it, and give --node-rank"
            )
        master = _slurm_master(environment) if system == "Slurm" else None
        return Cluster(system, node_rank, nnodes, master)
    return None


def _number(environment: Mapping[str, str], name: Optional[str], option: str = "--node-rank") -> int:
    text = environment.get(name or "", "")
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ConfigError(f"{name}={shown(text)} in the environment is not a number; unset it, and give {option}")
    return int(text)


def _slurm_tasks(environment: Mapping[str, str]) -> int:
    """Returns how many tasks the job step has on this machine, of a text such as `1(x2)` or `2,1` for all machines."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    number, first = _number(environment, "SLURM_NODEID"), 0
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:\(x(\d{1,9})\))?", part.strip(), re.ASCII)
        first += 0 if match is None else int(match[2] or 1)
        if match is not None and number < first:
            return int(match[1])
    return 1


def _slurm_master(environment: Mapping[str, str]) -> Optional[str]:
    """Returns the first host of the job step, with a port that the number of the job chooses."""
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not hosts:
        return None
    job = environment.get("SLURM_JOB_ID", "0")
    return f"{_first_host(hosts)}:{_FIRST_PORT + (int(job) if re.fullmatch('[0-9]{1,18}', job) else 0) % _PORTS}"


def _first_host(hosts: str) -> str:
    """Returns the first host of a list in Slurm's notation, such as `gpu[03-07,12]-ib,login`."""
    match = re.match(r"[^,\[]*", hosts)
    first, rest = (match[0] if match else ""), hosts[match.end() if match else 0 :]
    while rest.startswith("["):
        inside, _, rest = rest[1:].partition("]")
        first += re.split(r"[,-]", inside)[0]
        tail = re.match(r"[^,\[]*", rest)
        first += tail[0] if tail else ""
        rest = rest[tail.end() if tail else 0 :]
    return first
