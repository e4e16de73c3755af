"""Ranks and collectives. No other room calls paddle.distributed; with one rank every function works locally."""

from plsc.parallel.action import action, meet, report_end, silence_of_others, stopping, working
from plsc.parallel.agreement import check_same
from plsc.parallel.collectives import (
    Pending,
    all_gather_arrays,
    all_gather_object,
    all_gather_rows,
    all_reduce_sum,
    any_rank,
    start_all_gather,
    start_all_reduce_sum,
)
from plsc.parallel.model import broadcast, broadcast_statistics, distributed_model, without_gradient_sync
from plsc.parallel.ranks import launch_name, on_cpu, rank, restarted, world_size
from plsc.parallel.start import gpu_count, initialise
from plsc.parallel.strategy import check_strategy
from plsc.parallel.together import from_rank_0, together

__all__ = [
    "Pending",
    "action",
    "all_gather_arrays",
    "all_gather_object",
    "all_gather_rows",
    "all_reduce_sum",
    "any_rank",
    "broadcast",
    "broadcast_statistics",
    "check_same",
    "check_strategy",
    "distributed_model",
    "from_rank_0",
    "gpu_count",
    "initialise",
    "launch_name",
    "meet",
    "on_cpu",
    "rank",
    "report_end",
    "restarted",
    "silence_of_others",
    "start_all_gather",
    "start_all_reduce_sum",
    "stopping",
    "together",
    "without_gradient_sync",
    "working",
    "world_size",
]
