"""The progress bars of commands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Optional

from tqdm import tqdm

_STAGES_OF_BYTES = ("reading base64", "writing base64")


@contextlib.contextmanager
def byte_bar(name: str, total: int, hidden: bool = False, leave: bool = False) -> Iterator[Callable[[int], None]]:
    """Shows a bar of bytes on stderr, if that is a terminal. Yields a function that receives the bytes just copied.

    Args:
        name: What is copied.
        total: All bytes.
        hidden: Whether to show nothing, as for `--json`.
        leave: Whether the bar stays when all is done.
    """
    disable = True if hidden else None  # None: only on a terminal
    with tqdm(
        total=total, desc=name, unit="B", unit_scale=True, dynamic_ncols=True, leave=leave, disable=disable
    ) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance


class Bar:
    """A bar on stderr for each stage of the work, if stderr is a terminal; for use in a `with` statement.

    Args:
        hidden: Whether to show nothing, as for `--json`.
    """

    def __init__(self, hidden: bool = False) -> None:
        self._hidden = hidden
        self._bar: Optional[tqdm] = None
        self._stage = ""

    def __enter__(self) -> Bar:
        tqdm.monitor_interval = 0  # workers are forked, and must not inherit a thread of tqdm
        return self

    def __exit__(self, *exception: Any) -> None:
        self._close()

    def show(self, stage: str, done: int, total: int) -> None:
        """Shows that `done` of `total` images are done, or bytes in the stages of the shuffle."""
        if stage != self._stage:
            self._close()
            self._stage = stage
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=stage,
                unit="B" if stage in _STAGES_OF_BYTES else " images",
                unit_scale=True,
                dynamic_ncols=True,
                leave=False,
                disable=True if self._hidden else None,  # None: only on a terminal
            )
        if self._bar is not None and not self._bar.disable:
            self._bar.update(min(done, total) - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
