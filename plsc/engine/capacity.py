"""Refuses a training that cannot fit into the memory of this machine, before anything large is allocated."""

from __future__ import annotations

import os

from plsc import parallel
from plsc.config import Config, kind_of
from plsc.errors import ConfigError
from plsc.heads import shard_bounds
from plsc.machine.memory import memory_limit, size_text

_FLOAT = 4


def check_head_fits(config: Config) -> None:
    """Checks that the class centres of the ranks of this machine fit into its memory, if they compute on its CPU.

    It counts the weights, and the momentum of the default optimizer, and nothing else: what it refuses cannot work.
    Every rank must call it, because machines may differ in their memory.

    Raises:
        ConfigError: They do not fit; on every rank.
    """
    parallel.together(lambda: _check_own_shards(config), "the start")


def _check_own_shards(config: Config) -> None:
    """Checks the class centres of the ranks of this machine."""
    limit = memory_limit()
    if limit is None or not parallel.on_cpu():
        return
    shards, shard = (parallel.world_size(), parallel.rank()) if config.is_sharded else (1, 0)
    copies = 2 if config.optimizer is None and config.param_attr is None else 1
    width = 2 if config.head_dtype == "bfloat16" else _FLOAT
    per_class = copies * (width * config.emb_dim + _FLOAT * config.has_bias)
    lower, upper = shard_bounds(config.num_classes, shards, shard)
    here = int(os.environ.get("PADDLE_LOCAL_SIZE") or 1)  # A launcher that does not tell may use several machines.
    needed = per_class * (upper - lower) * here
    if needed > limit:
        raise _refusal(config, needed, limit, per_class, copies)


def _refusal(config: Config, needed: int, limit: int, per_class: int, copies: int) -> ConfigError:
    what = "class centres" if copies == 1 else "class centres and their momentum"
    if config.is_sharded:
        machines = -(-per_class * config.num_classes // limit)
        advice = f"spread the ranks over at least {machines:,} such machines"
    else:
        advice = f"choose 'dist_{kind_of(config.loss_type)}', which shards them over the ranks"
    return ConfigError(
        f"set_class_num({config.num_classes}): the {what} of size {config.emb_dim} take {size_text(needed)}, and this "
        f"machine has {size_text(limit)}, which holds at most {limit // per_class:,} classes; take fewer classes or a "
        f"smaller embedding, or {advice}; sampling classes saves time, but no memory for them (see plsc plan)"
    )
