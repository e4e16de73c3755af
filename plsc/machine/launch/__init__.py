"""Starts the ranks of a run on one or several machines, and ends all of them when one fails."""

from plsc.machine.launch.cluster_environment import Cluster, read_cluster
from plsc.machine.launch.local_ranks import say
from plsc.machine.launch.machines import Machines, run_on_machines
from plsc.machine.launch.one_machine import run

__all__ = ["Cluster", "Machines", "read_cluster", "run", "run_on_machines", "say"]
