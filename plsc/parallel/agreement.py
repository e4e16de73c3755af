"""Finds out whether all ranks have the same, before they train on it."""

from __future__ import annotations

from collections.abc import Mapping

from plsc.errors import ConfigError
from plsc.parallel.collectives import all_gather_object
from plsc.parallel.ranks import world_size

_MOST_NAMED = 5
_LONGEST_SHOWN = 40
_NOTHING = "nothing"


def check_same(values: Mapping[str, str], advice: str) -> None:
    """Checks that every rank has the same values.

    Args:
        values: A value or its digest, by what it is. Values of up to 40 characters are shown.
        advice: What to do when they differ, for the message.

    Raises:
        ConfigError: A rank has other values than rank 0; on every rank.
    """
    if world_size() == 1:
        return
    first, *others = all_gather_object(dict(values), "its settings and data")
    for rank, other in enumerate(others, 1):
        names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if names:
            found = [_difference(name, rank, first, other) for name in names[:_MOST_NAMED]]
            more = f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            raise ConfigError(f"rank {rank} differs from rank 0 in {', '.join(found)}{more}; {advice}")


def _difference(name: str, rank: int, first: Mapping[str, str], other: Mapping[str, str]) -> str:
    pair = first.get(name, _NOTHING), other.get(name, _NOTHING)
    if max(map(len, pair)) > _LONGEST_SHOWN:
        return name
    return f"{name} ({pair[0]} on rank 0, {pair[1]} on rank {rank})"
