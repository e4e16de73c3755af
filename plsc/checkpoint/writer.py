"""Writes the checkpoints of all ranks while training continues: one at a time, and whole or not at all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from plsc import parallel
from plsc.checkpoint import folder as layout
from plsc.checkpoint.folder import Age, Checkpoint
from plsc.checkpoint.snapshot import Snapshot
from plsc.checkpoint.tensor_file import FileSum, Stream, write_tensors
from plsc.errors import CheckpointError

logger = logging.getLogger("plsc")

Files = Mapping[str, Mapping[str, Union[np.ndarray, Stream]]]  # {file name: {tensor name: array}}


@dataclass
class Saved:
    """A complete checkpoint of this run.

    Attributes:
        folder: Its folder.
        score: Its mean accuracy or rank-1 rate in the test; None without a test.
    """

    folder: Path
    score: Optional[float]


def saved_by_run(save_dir: Path, run: str, until: Age) -> list[Saved]:
    """Returns the complete checkpoints of a run that some rank sees, the oldest first. Every rank must call it.

    Args:
        save_dir: The folder that holds them.
        run: The name of the run.
        until: The age of the newest.
    """
    found: list[Checkpoint] = []
    for folder in layout.list_checkpoints(save_dir):
        try:
            checkpoint = layout.open_checkpoint(folder, partial=True)
        except CheckpointError:
            continue
        if checkpoint.meta.get("run") == run and checkpoint.age <= until:
            found.append(checkpoint)
    own = [(one.age, one.folder.name, layout.score_of(one.meta)) for one in found]
    what = "the saved checkpoints"
    of_ranks = {(age, name): score for found in parallel.all_gather_object(own, what) for age, name, score in found}
    scores = {name: of_ranks[age, name] for age, name in sorted(of_ranks)}
    return [Saved(save_dir / name, score) for name, score in scores.items()]


@dataclass
class _Task:
    """A checkpoint that is being written."""

    folder: Path
    meta: dict[str, Any]
    rng: dict[str, Any]
    files: Future[dict[str, FileSum]]


class Writer:
    """The writer of checkpoints. Every rank has one, and all ranks make the same calls.

    `start` copies the state and returns, and a thread writes the copy. `written` says that the part of this rank is on
    disk; once it is on disk on every rank, `finish` puts the checkpoint in place. If ranks save to different disks,
    each disk gets the files of its ranks, and a `meta.json` that names those of all ranks.

    Args:
        save_dir: The folder for all checkpoints; on another machine the path may lead to another folder.
        keep: The number of newest checkpoints to keep, in addition to the one with the best score; 0 keeps all.
        background: Whether a thread writes. Without it, `start` writes from the memory of the tensors, and returns when
            the checkpoint is in place.
        saved: The complete checkpoints that this run has already, the oldest first.
        leads: Whether this rank, among those that see `save_dir`, puts checkpoints in place and removes them. It also
            writes the files that belong to no single rank. By default rank 0 does.

    Attributes:
        save_dir: The folder for all checkpoints.
        leads: Whether this rank puts checkpoints in place.
        saved: The complete checkpoints of this run.
        on_saved: A function that is called with the folder of each checkpoint once it is in place.
    """

    def __init__(
        self,
        save_dir: Path,
        keep: int = 0,
        background: bool = True,
        saved: Sequence[Saved] = (),
        leads: Optional[bool] = None,
    ) -> None:
        self.save_dir, self._keep, self._background = save_dir, keep, background
        self.leads = parallel.rank() == 0 if leads is None else leads
        self.saved = list(saved)
        self.on_saved: Callable[[Path], None] = lambda folder: None
        self._snapshot = Snapshot()
        self._pool = ThreadPoolExecutor(1, "plsc-checkpoint")
        self._task: Optional[_Task] = None

    @property
    def written(self) -> bool:
        """Whether a checkpoint is under way of which this rank has written its part, or failed to."""
        return self._task is not None and self._task.files.done()

    def start(self, name: str, files: Files, meta: dict[str, Any], rng: dict[str, Any]) -> Path:
        """Finishes the previous checkpoint, and begins another one.

        Args:
            name: The name of its folder.
            files: The tensors that this rank writes, by file.
            meta: The other entries of `meta.json`. Those of rank 0 are recorded.
            rng: The random state of this rank, for `meta.json`.

        Returns:
            The folder that it will have.

        Raises:
            CheckpointError: A checkpoint could not be written. It is raised on every rank.
        """
        self.finish()
        folder = self.save_dir / name
        if self._background:
            flat = {f"{file}/{key}": array for file, arrays in files.items() for key, array in arrays.items()}
            copies = self._snapshot.take(flat)
            files = {file: {key: copies[f"{file}/{key}"] for key in arrays} for file, arrays in files.items()}
        self._task = _Task(folder, meta, rng, self._pool.submit(_write, folder, files))
        if not self._background:
            self.finish()
        return folder

    def finish(self) -> None:
        """Waits for the checkpoint under way, puts it in place, and removes those that are not to be kept.

        Raises:
            CheckpointError: It could not be written. It is raised on every rank.
        """
        task, self._task = self._task, None
        if task is None:
            return
        error, files = None, dict[str, FileSum]()
        try:
            files = task.files.result()
        except OSError as problem:
            error = f"{task.folder}: the checkpoint could not be written: {problem.strerror or problem}; " + _FREE_SPACE
        common = {**task.meta, "written": time.time()} if parallel.rank() == 0 else {}
        parts = parallel.all_gather_object(
            (error, files, task.rng, common), f"its part of the checkpoint {task.folder.name}"
        )
        errors = [part[0] for part in parts if part[0]]
        if not errors and self.leads:
            try:
                # If several ranks wrote a file, the checksums of the one on this disk count.
                every = {name: one for _, sums, _, _ in reversed(parts) for name, one in sums.items()} | files
                meta = {**parts[0][3], "rng": [rng for _, _, rng, _ in parts]}
                layout.write_meta(layout.temporary_of(task.folder), meta, every)
                layout.publish(task.folder)
            except OSError as problem:
                errors = [
                    f"{task.folder}: the checkpoint could not be put in place: {problem.strerror or problem}; "
                    + _FREE_SPACE
                ]
        of_ranks = parallel.all_gather_object(errors[0] if errors else None, f"the checkpoint {task.folder.name}")
        errors = [problem for problem in of_ranks if problem]
        if errors:
            if self.leads:
                layout.discard(task.folder)
            raise CheckpointError(errors[0])
        logger.info("saved %s", task.folder)
        others = [one for one in self.saved if one.folder != task.folder]
        self.saved = [*others, Saved(task.folder, layout.score_of(task.meta))]
        self._prune()
        self.on_saved(task.folder)

    def close(self) -> None:
        """Waits for the thread and ends it. A checkpoint that is not finished is not put in place."""
        self._pool.shutdown(wait=True)

    def _prune(self) -> None:
        if not self._keep:
            return
        scored = [one for one in self.saved if one.score is not None]
        best = max(scored, key=lambda one: one.score or 0.0, default=None)
        newest = self.saved[-self._keep :]
        for one in self.saved[: -self._keep]:
            if one is not best and self.leads:
                try:
                    layout.remove(one.folder)
                except OSError as problem:
                    logger.warning("%s: could not be removed: %s", one.folder, problem.strerror or problem)
        self.saved = [one for one in self.saved if one is best or one in newest]


_FREE_SPACE = "free some space, or choose another folder with set_model_save_dir"


def _write(folder: Path, files: Files) -> dict[str, FileSum]:
    temporary = layout.temporary_of(folder)
    temporary.mkdir(parents=True, exist_ok=True)
    return {name: write_tensors(temporary / name, arrays) for name, arrays in files.items()}
