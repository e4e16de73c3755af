"""How Paddle's fleet averages the gradients of several ranks: what a strategy of the user may change, and the rest."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple, Optional

from paddle.distributed import fleet

from plsc.errors import ConfigError
from plsc.parallel.ranks import world_size

# The fields that `fleet.distributed_model` reads for data parallelism in dynamic graph, on Paddle 2.6 and 3.3.
_USED = ("fuse_grad_size_in_MB", "last_comm_group_size_MB", "find_unused_parameters")

_OPTIMIZER = "give set_optimizer the optimizer itself"
_HEAD = "choose a loss whose name begins with 'dist_' in set_loss_type, which shards the class centres over the ranks"
_FLAGS = "set the flag of that name with paddle.set_flags"
# What does the work of other fields in plsc.
_INSTEAD = {
    "amp": "call set_mixed_precision",
    "gradient_merge": "call set_gradient_accumulation",
    "fuse_grad_merge": "call set_gradient_accumulation",
    "gradient_scale": "leave it out; plsc averages the gradients of the ranks",
    "lars": _OPTIMIZER,
    "lamb": _OPTIMIZER,
    "adam_d2sum": _OPTIMIZER,
    "sharding": _HEAD,
    "tensor_parallel": _HEAD,
    "hybrid": f"leave all but dp_degree at their defaults, and dp_degree at -1 or the number of ranks; {_HEAD}",
    "sync_batch_norm": (
        "on GPUs, give set_model a model that paddle.nn.SyncBatchNorm.convert_sync_batchnorm has converted (Paddle has "
        "no such operator on CPUs)"
    ),
    "fuse_all_reduce_ops": "set fuse_grad_size_in_MB, which says how many gradients are averaged at a time",
    "cudnn_exhaustive_search": _FLAGS,
    "cudnn_batchnorm_spatial_persistent": _FLAGS,
    "conv_workspace_size_limit": _FLAGS,
    "elastic": "start the script with plsc run --restarts",
}
_NO_USE = f"leave it at its default; plsc trains by data parallelism, for which a strategy sets {', '.join(_USED)}"


class Averaging(NamedTuple):
    """How gradients are averaged over the ranks.

    Attributes:
        fuse_mb: Gradients are averaged together up to this size, in MB.
        last_mb: The same for those that are ready last, in MB.
        find_unused_parameters: Whether a forward pass may leave parameters unused.
    """

    # What paddle.DataParallel has as defaults. Fleet fuses 32 MB, and another grouping rounds sums of three ranks or
    # more differently, so that runs of earlier versions could not be resumed to the bit.
    fuse_mb: int = 25
    last_mb: float = 1.0
    find_unused_parameters: bool = False

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in zip(_USED, self))


def check_strategy(setter: str, strategy: Any) -> fleet.DistributedStrategy:
    """Returns a copy of the user's strategy.

    Args:
        setter: The name of the setter, which the messages show.
        strategy: What the user gave.

    Raises:
        ConfigError: It is not a strategy, or it asks for what has no effect here or what another setter does.
    """
    if not isinstance(strategy, fleet.DistributedStrategy):
        raise ConfigError(
            f"{setter}: expected a paddle.distributed.fleet.DistributedStrategy, not an object of type "
            f"{type(strategy).__name__}"
        )
    for name in _changed(strategy):
        if name not in (*_USED, "heter_ccl_mode"):
            advice = _INSTEAD.get(name.removesuffix("_configs"), _NO_USE)
            raise ConfigError(f"{setter}: plsc does not use the strategy's {name}; {advice}")
    for name in _USED[:2]:
        if getattr(strategy, name) < 0:
            raise ConfigError(f"{setter}: {name} is {getattr(strategy, name)}; give a size in MB of at least 0")
    return copy.deepcopy(strategy)


def averaging_of(strategy: Optional[fleet.DistributedStrategy], find_unused_parameters: bool) -> Averaging:
    """Returns how gradients are averaged with a checked strategy of the user, or without one."""
    if strategy is None:
        return Averaging(find_unused_parameters=find_unused_parameters)
    fuse_mb, last_mb, may_be_unused = (getattr(strategy, name) for name in _USED)
    return Averaging(fuse_mb, last_mb, find_unused_parameters or may_be_unused)


def strategy_of(averaging: Averaging) -> fleet.DistributedStrategy:
    """Returns the strategy of pure data parallelism with which plsc initialises fleet."""
    strategy = _new_strategy()
    for name, value in zip(_USED, averaging):
        setattr(strategy, name, value)
    strategy.heter_ccl_mode = True  # `initialise` says why
    return strategy


def _changed(strategy: fleet.DistributedStrategy) -> Iterator[str]:
    """Yields the names of the fields that differ from a new strategy, whatever fields this Paddle has."""
    default = _new_strategy()
    if strategy.strategy.hybrid_configs.dp_degree == world_size():
        default.strategy.hybrid_configs.dp_degree = world_size()
    given, usual = _values(strategy.strategy), _values(default.strategy)
    yield from (name for name in usual if given[name] != usual[name])
    for name, value in vars(default).items():
        if not name.startswith("_") and name != "strategy" and getattr(strategy, name) != value:
            yield name


def _values(message: Any) -> dict[str, Any]:
    """Returns all values of a protobuf message, also those that were never set."""
    values = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
    return {name: _values(value) if hasattr(value, "DESCRIPTOR") else _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    return list(value) if hasattr(value, "append") else value


def _new_strategy() -> fleet.DistributedStrategy:
    """Returns a new strategy, without the line that Paddle logs about each."""
    logger = logging.getLogger("paddle.distributed.fleet.utils.log_util")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        return fleet.DistributedStrategy()
    finally:
        logger.disabled = was_disabled
