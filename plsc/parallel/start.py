"""Joins the ranks of a run through Paddle's fleet, and chooses where they compute."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import paddle
from paddle import distributed
from paddle.distributed import fleet

from plsc.errors import ConfigError
from plsc.parallel.peers import join
from plsc.parallel.ranks import world_size
from plsc.parallel.strategy import Averaging, strategy_of

_BACKEND = "PADDLE_DISTRI_BACKEND"
_GPUS = "FLAGS_selected_gpus"
_CHOSEN_FLAGS = (_GPUS, "FLAGS_enable_pir_in_executor")
_initialised = False


class _DataParallelism:
    """What fleet asks its groups for before it sees that `heter_ccl_mode` has left them out (Paddle 3.3)."""

    def get_parallel_mode(self) -> int:
        """Returns the kind of parallelism."""
        return int(distributed.ParallelMode.DATA_PARALLEL)


def initialise() -> None:
    """Joins the ranks of this run; further calls in a process do nothing.

    Raises:
        ConfigError: This machine does not have the GPU that was chosen for this rank, or the script has joined the
            ranks itself, in a way that plsc cannot use.
    """
    global _initialised
    if _initialised:
        return
    _choose_backend()
    if world_size() > 1:  # one rank has nothing to join
        initialise_fleet(Averaging())
        join()
    _initialised = True


def initialise_fleet(averaging: Averaging) -> None:
    """Initialises fleet for pure data parallelism; further calls change only how gradients are averaged.

    The groups that fleet makes for other kinds of parallelism are left out (`heter_ccl_mode`, on gloo and nccl alike).
    On gloo they fail at random, with "Connection refused" in 4 of 10 starts of 4 ranks: Paddle stores the addresses of
    the ranks of every group under the same keys (`ProcessGroupGloo` gives its store no prefix). A rank that is faster
    to make its second group than another one finds the address that the other had in its first group, where nothing
    listens any more. On nccl each would be a further communicator, which training does not need.

    Raises:
        ConfigError: The script has joined the ranks itself, in a way that plsc cannot use.
    """
    with _chosen_flags_left_out():
        # Fleet warns when it has been initialised before, which is what a second training does.
        fleet.init(is_collective=True, strategy=strategy_of(averaging), log_level="ERROR")
    if not distributed.is_initialized():  # The script has joined the ranks in Paddle's older way, which has no groups.
        raise ConfigError(
            "the script calls fleet.init or init_parallel_env before plsc has chosen gloo; leave the call out, because "
            f"plsc joins the ranks, or set {_BACKEND}=gloo"
        )
    if not hasattr(fleet.fleet, "_hcg"):
        fleet.fleet._hcg = _DataParallelism()


@contextlib.contextmanager
def _chosen_flags_left_out() -> Iterator[None]:
    """Keeps Paddle's list of modified flags to those of the user, and unprinted without any.

    `init_parallel_env` lists each flag that is not at its default. Paddle's import changes one itself, and the launcher
    of plsc chooses the GPU of each rank with another.
    """
    module = distributed.parallel
    list_flags = getattr(module, "_get_modified_flags", None)
    if list_flags is None:
        yield
        return
    module._get_modified_flags = lambda: [flag for flag in list_flags() if flag.name not in _CHOSEN_FLAGS]
    try:
        yield
    finally:
        module._get_modified_flags = list_flags


def gpu_count() -> int:
    """Returns the number of GPUs that this process can use; 0 also for a Paddle that can use none."""
    return int(paddle.device.cuda.device_count()) if paddle.is_compiled_with_cuda() else 0


def _choose_backend() -> None:
    """Has the ranks talk through gloo where there is no GPU, and checks the GPU of this rank elsewhere.

    Paddle chooses by how it was built: on a machine without a GPU, its builds for GPUs would fail.
    """
    gpus, backend = gpu_count(), os.environ.get(_BACKEND, "auto")
    if not gpus:
        if backend == "nccl":
            raise ConfigError(
                f"{_BACKEND} is nccl, but Paddle finds no GPU on this machine; unset it, or set it to gloo"
            )
        if backend == "auto":
            os.environ[_BACKEND] = "gloo"
    elif world_size() > 1 and backend in ("auto", "nccl"):
        chosen = os.environ.get(_GPUS, "0").split(",")[0]
        if not chosen.isdecimal() or int(chosen) >= gpus:
            raise ConfigError(
                f"rank {os.environ.get('PADDLE_TRAINER_ID')}: {_GPUS} is {chosen!r}, but Paddle finds {gpus} GPU(s) on "
                f"this machine, numbered from 0; start at most {gpus} rank(s) on it, or choose others with {_GPUS}"
            )
