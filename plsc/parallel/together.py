"""Work that all ranks do together, or that one of them does for all: when one fails, all fail with its error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from plsc.errors import PlscError, is_mistake
from plsc.parallel.collectives import all_gather_object, any_rank
from plsc.parallel.ranks import rank

T = TypeVar("T")


def together(action: Callable[[], T], what: str) -> T:
    """Calls `action` on every rank and returns its result on this rank.

    Args:
        action: The work, which may take a different time on each rank.
        what: What late ranks are waited for; see `meet`.

    Raises:
        PlscError: The first one that `action` raised on any rank; all ranks raise it. Any other error is raised on its
            own rank, and the other ranks raise a `RankError`.
    """
    result, error = None, None
    try:
        result = action()
    except PlscError as problem:
        error = problem
        error.mistake = is_mistake(problem)  # type: ignore[attr-defined]  # other ranks do not see its cause
    if any_rank(error is not None, what):
        raise next(filter(None, all_gather_object(error, what)))
    return result  # type: ignore[return-value]


def from_rank_0(action: Callable[[], T], what: str) -> T:
    """Calls `action` on rank 0 alone and returns its result on every rank.

    Args:
        action: The work.
        what: What rank 0 is waited for; see `meet`.

    Raises:
        PlscError: The one that `action` raised; on every rank.
    """
    return all_gather_object(together(lambda: action() if rank() == 0 else None, what), what)[0]
