"""Files for TensorBoard or VisualDL, with the numbers that `metrics.jsonl` records."""

from __future__ import annotations

import importlib.util
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Protocol

from plsc import parallel
from plsc.engine.callbacks import Callback, Run
from plsc.errors import ConfigError, TrainingError
from plsc.metrics.records import numbers_of

KINDS = {"tensorboard": "tensorboardX", "visualdl": "visualdl"}  # and the package that each needs
FOLDER = "scalars"  # in the folder of the run, by default
_NO_SCALARS = ("step", "epoch", "time")


def check_package(kind: str) -> None:
    """Checks that the package for `kind` is installed.

    Raises:
        ConfigError: It is not installed.
    """
    if importlib.util.find_spec(KINDS[kind]) is None:
        raise ConfigError(
            f"set_scalars({kind!r}) needs the package {KINDS[kind]}: pip install '.[{kind}]' in the plsc clone"
        )


class ScalarFiles(Callback):
    """The callback that writes every number of every record for a viewer, on rank 0.

    A checkpoint keeps the sizes of the files, so that they do not show twice what a resumed run does again.

    Args:
        kind: One of `KINDS`.
        folder: Folder of the files; it is created when training begins.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        check_package(kind)
        self._kind, self._folder = kind, folder
        self._run = uuid.uuid4().hex[:8]  # in the names of this run's files
        self._kept: dict[str, int] = {}  # files of a resumed run and their sizes
        self._writer: Optional[_Writer] = None

    def state(self) -> dict[str, Any]:
        """Returns the files and their sizes."""
        return {"run": self._run, "files": {path.name: path.stat().st_size for path in self._files()}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues the files of the run that is resumed."""
        self._run, self._kept = str(state["run"]), {str(name): int(size) for name, size in state["files"].items()}

    def on_train_begin(self, run: Run) -> None:
        """Opens a file, and cuts off what a resumed run will do again."""
        if parallel.rank() != 0:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._files():
                size = self._kept.get(path.name)
                if size is None:
                    path.unlink()
                elif path.stat().st_size > size:
                    os.truncate(path, size)
            if self._kind == "tensorboard":
                self._writer = _TensorBoard(self._folder, self._run, run.progress.step + 1)
            else:
                self._writer = _VisualDL(self._folder, self._run)
        except OSError as problem:
            raise ConfigError(
                f"set_scalars: {self._folder}: cannot write there ({problem.strerror}); name another directory"
            ) from None

    def on_record(self, run: Run, event: str, values: Mapping[str, Any]) -> None:
        """Writes the numbers of a record that has a step."""
        if self._writer is None or not isinstance(values.get("step"), int):
            return
        numbers = [(f"{event}/{path}", one) for path, one in numbers_of(values) if path not in _NO_SCALARS]
        try:
            self._writer.write(values["step"], values.get("time", time.time()), numbers)
        except OSError as problem:
            raise TrainingError(
                f"{self._folder}: scalars cannot be written ({problem.strerror}); free some space and resume with "
                "set_resume(True)"
            ) from None

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _files(self) -> list[Path]:
        """Lists the files of this run."""
        return sorted(self._folder.glob(f"*.{self._run}")) if self._folder.is_dir() else []


class _Writer(Protocol):
    def write(self, step: int, seconds: float, numbers: list[tuple[str, float]]) -> None:
        """Writes numbers by their tags; all of them are in the file when it returns."""

    def close(self) -> None:
        """Closes the file."""


class _TensorBoard:
    """A file of TensorBoard events.

    It uses the records of tensorboardX, but not its writer, which hands events to a thread: neither its errors nor the
    size of its file would be known here.
    """

    def __init__(self, folder: Path, run: str, first_step: int) -> None:
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter

        self._protocol, self._summary = event_pb2, summary_pb2.Summary
        self._records = RecordWriter(str(folder / f"events.out.tfevents.{time.time():.6f}.{run}"))
        # A viewer drops its events from this step on: those it read before they were cut off, or of an earlier run.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(file_version="brain.Event:2")
        self._add(step=first_step, session_log=start)
        self._records.flush()

    def write(self, step: int, seconds: float, numbers: list[tuple[str, float]]) -> None:
        values = [self._summary.Value(tag=tag, simple_value=number) for tag, number in numbers]
        self._add(step=step, wall_time=seconds, summary=self._summary(value=values))
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _add(self, **fields: Any) -> None:
        event = self._protocol.Event(**{"wall_time": time.time(), **fields})
        self._records.write(event.SerializeToString())


class _VisualDL:
    """A file of VisualDL records; VisualDL shows the last file of a folder, by name, and appends to an existing one."""

    def __init__(self, folder: Path, run: str) -> None:
        from visualdl import LogWriter

        earlier = sorted(path.name for path in folder.glob(f"vdlrecords.*.{run}"))
        name = earlier[-1] if earlier else f"vdlrecords.{time.time():.6f}.{run}"
        (folder / name).touch()  # VisualDL's thread would not report that it cannot write
        self._log = LogWriter(logdir=str(folder), file_name=name)
        self._log.flush()

    def write(self, step: int, seconds: float, numbers: list[tuple[str, float]]) -> None:
        for tag, number in numbers:
            self._log.add_scalar(tag.replace("%", "_"), number, step, round(seconds * 1000))
        self._log.flush()

    def close(self) -> None:
        self._log.close()
