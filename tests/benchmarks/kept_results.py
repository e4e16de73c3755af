"""Results of long benchmarks, which are kept in a file so that a benchmark that was killed can continue."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class KeptResults:
    """A file with a line of JSON for each trial that has ended.

    Args:
        path: The file; a folder for it is made. None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._unkept = path, []
        text = path.read_text() if path is not None and path.exists() else ""
        if path is not None and text and not text.endswith("\n"):  # A process was killed while it wrote the last line.
            path.write_text(text[: text.rfind("\n") + 1])

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of all trials that have ended, those of other processes included."""
        if self._path is None or not self._path.exists():
            return self._unkept
        return [json.loads(line) for line in self._path.read_text().splitlines()]

    def get(self, trial: dict[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns the line of a trial, which is run now if it has none.

        Args:
            trial: What tells this trial from the others; the line begins with it.
            run: Runs the trial and returns its figures.
        """
        for line in self.lines:
            if trial.items() <= line.items():
                return line
        line = {**trial, **run()}
        print(json.dumps(line), file=sys.stderr, flush=True)
        if self._path is None:
            self._unkept.append(line)
        else:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a") as file:
                file.write(json.dumps(line) + "\n")
        return line
