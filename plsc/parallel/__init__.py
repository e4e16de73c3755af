"""Ranks and collectives. No other room calls paddle.distributed; with one rank every function works locally."""

from plsc.parallel.collectives import (
    Pending,
    all_gather_arrays,
    all_gather_object,
    all_gather_rows,
    all_reduce_sum,
    any_rank,
    barrier,
    start_all_gather,
    start_all_reduce_sum,
    sum_number,
)
from plsc.parallel.model import broadcast_statistics, distributed_model, without_gradient_sync
from plsc.parallel.ranks import launch_name, on_cpu, rank, restarted, world_size
from plsc.parallel.start import initialise
from plsc.parallel.together import from_rank_0, together

__all__ = [
    "Pending",
    "all_gather_arrays",
    "all_gather_object",
    "all_gather_rows",
    "all_reduce_sum",
    "any_rank",
    "barrier",
    "broadcast_statistics",
    "distributed_model",
    "from_rank_0",
    "initialise",
    "launch_name",
    "on_cpu",
    "rank",
    "restarted",
    "start_all_gather",
    "start_all_reduce_sum",
    "sum_number",
    "together",
    "without_gradient_sync",
    "world_size",
]
