"""Joins the ranks of a run."""

from __future__ import annotations

import os

import paddle
from paddle import distributed

from plsc.parallel.peers import join
from plsc.parallel.ranks import world_size

_initialised = False


def initialise() -> None:
    """Joins the ranks of this run; further calls in a process do nothing."""
    global _initialised
    if _initialised:
        return
    if not paddle.is_compiled_with_cuda():
        os.environ.setdefault("PADDLE_DISTRI_BACKEND", "gloo")
    if world_size() > 1:
        # fleet.init would add groups for pipelines and the like, which plsc does not use. On gloo, making them fails at
        # random with "Connection refused" (3 of 5 starts of 4 ranks, Paddle 3.3.1; 0 of 5 this way).
        distributed.init_parallel_env()
        join()
    _initialised = True
