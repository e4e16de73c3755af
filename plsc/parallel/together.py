"""Work that all ranks do together, or that one of them does for all: when one fails, all fail with its error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from plsc.errors import PlscError
from plsc.parallel.collectives import all_gather_object, any_rank
from plsc.parallel.ranks import rank

T = TypeVar("T")


def together(action: Callable[[], T]) -> T:
    """Calls `action` on every rank and returns its result on this rank.

    Raises:
        PlscError: The first one that `action` raised on any rank; all ranks raise it, so that none is left waiting.
    """
    result, error = None, None
    try:
        result = action()
    except PlscError as problem:
        error = problem
    if any_rank(error is not None):
        raise next(filter(None, all_gather_object(error)))
    return result  # type: ignore[return-value]


def from_rank_0(action: Callable[[], T]) -> T:
    """Calls `action` on rank 0 alone and returns its result on every rank.

    Raises:
        PlscError: The one that `action` raised; on every rank.
    """
    return all_gather_object(together(lambda: action() if rank() == 0 else None))[0]
