"""Reads what a run left in its folder. A part that is missing or damaged becomes a note, not an error."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

import numpy as np

from plsc.errors import DataError, counted, one_line
from plsc.machine.json_files import parse_json, read_json
from plsc.report.markup import clean
from plsc.report.pairs_file import SUFFIX, PairScores, read_pairs

_LONGEST_RUN = 1e10  # seconds; 300 years are a mistake of a clock
_LONGEST_LINE = 1 << 20  # characters; a record has hundreds
COLUMNS = ("step", "lr", "loss", "images_per_second", "loss_scaling", "skipped_steps", "acc1", "acc5")
PARTS = "losses/"  # what the names of the columns of the parts of the loss begin with


@dataclass
class TestRecord:
    """One test.

    Attributes:
        step: Step after which the network was tested.
        epoch: Epoch of that step, counted from 0.
        sets: For each set its measures, each a number or a mapping of numbers.
    """

    step: int
    epoch: int
    sets: dict[str, dict[str, Any]]


@dataclass
class RunFolder:
    """What one run left.

    Attributes:
        name: What the report calls the run.
        folder: Folder of the run.
        train: A column for each of `COLUMNS`, and `losses/<part>` for each part of the loss that is recorded; NaN where
            a record has no such number.
        tests: The tests, oldest first.
        record: Content of `run.json`; empty if there is none.
        pairs: Content of each `<set>_pairs.npz`, by set name.
        seconds: Time from the start of the run to its last record; None if the records do not tell.
        notes: A sentence for each thing that is missing or odd.
    """

    name: str
    folder: Path
    train: dict[str, np.ndarray]
    tests: list[TestRecord]
    record: dict[str, Any]
    pairs: dict[str, PairScores]
    seconds: Optional[float]
    notes: list[str]

    @property
    def set_names(self) -> list[str]:
        """Names of the test sets, those of the last test first."""
        tested = [name for test in reversed(self.tests) for name in test.sets]
        return list(dict.fromkeys([*tested, *self.pairs]))

    def last(self, column: str) -> Optional[float]:
        """Returns the last finite number of a column of `train`; None if there is none."""
        finite = self.train[column][np.isfinite(self.train[column])]
        return float(finite[-1]) if len(finite) else None


def read_runs(folders: list[Path]) -> list[RunFolder]:
    """Reads runs, and gives each a different name.

    Raises:
        DataError: A folder is not that of a run.
    """
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        alike = [one for one in runs if one.name == run.name and one is not run]
        if alike:  # Such as a/output and b/output.
            for one in [run, *alike]:
                one.name = clean("/".join(one.folder.resolve().parts[-2:]))
    names: dict[str, int] = {}
    for run in runs:
        names[run.name] = names.get(run.name, 0) + 1
        run.name += f" ({names[run.name]})" if names[run.name] > 1 else ""
    return runs


def read_run(folder: Path) -> RunFolder:
    """Reads one run.

    Raises:
        DataError: The folder is not that of a run.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the folder of a run, which set_model_save_dir sets")
    if not (folder / "metrics.jsonl").is_file():
        raise DataError(
            f"{folder}: not the folder of a run, as it holds no metrics.jsonl; name the folder of set_model_save_dir"
        )
    notes: list[str] = []
    records = _last_run(_records(folder / "metrics.jsonl", notes), notes)
    trained = [one for one in records if one["event"] == "train"]
    train = {name: np.array([number(one.get(name)) for one in trained], np.float64) for name in COLUMNS}
    train.update(_parts_of_loss(trained))
    tests = [_test(one) for one in records if one["event"] == "test"]
    record = _run_record(folder / "run.json", notes)
    _note_training(train, tests, notes)
    pairs = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            pairs[clean(path.name[: -len(SUFFIX)])] = read_pairs(path, notes)
        except (OSError, ValueError) as problem:
            notes.append(
                f"{clean(path.name)} cannot be read ({clean(one_line(str(problem)))}); test again to replace it."
            )
    return RunFolder(
        name=clean(folder.resolve().name) or str(folder),
        folder=folder,
        train=train,
        tests=tests,
        record=record,
        pairs=pairs,
        seconds=_seconds(records, record),
        notes=notes,
    )


def number(value: Any) -> float:
    """Returns `value` as a float if it is a number, else NaN."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _parts_of_loss(records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Returns a column for each part of the loss: for each of several heads, or for the head and the teacher."""
    parts = [one["losses"] if isinstance(one.get("losses"), dict) else {} for one in records]
    titles = dict.fromkeys(title for one in parts for title in one)
    return {PARTS + clean(title): np.array([number(one.get(title)) for one in parts], np.float64) for title in titles}


def _records(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the records of training and tests."""
    bad, last_is_bad, is_whole = 0, False, True
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            while line := file.readline(_LONGEST_LINE):
                is_whole = line.endswith("\n")
                last_is_bad = False
                try:
                    one = parse_json(line)
                    if one["event"] in ("train", "test"):
                        one["step"] = int(one["step"])
                        yield one
                except (ValueError, TypeError, KeyError, OverflowError):
                    bad, last_is_bad = bad + 1, True
    except OSError as problem:
        raise DataError(f"{path}: cannot be read ({problem.strerror}); check its permissions and the disk") from None
    if last_is_bad and not is_whole:
        bad -= 1
        notes.append("The last line of metrics.jsonl is half written; the run may still be in progress.")
    if bad:
        notes.append(
            f"{counted(bad, 'line')} of metrics.jsonl cannot be read and {'are' if bad > 1 else 'is'} left out."
        )


def _last_run(records: Iterator[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """Returns the records of the last run in the folder. Where steps start again, another run begins."""
    kept: list[dict[str, Any]] = []
    earlier = 0
    for one in records:
        if kept and one["step"] < kept[-1]["step"]:
            earlier, kept = earlier + 1, []
        kept.append(one)
    if earlier:
        runs = "an earlier run" if earlier == 1 else f"{earlier} earlier runs"
        notes.append(f"The folder also holds records of {runs}, which the report leaves out.")
    return kept


def _test(record: Mapping[str, Any]) -> TestRecord:
    sets = {clean(name): dict(values) for name, values in record.items() if isinstance(values, dict)}
    epoch = record.get("epoch")
    return TestRecord(record["step"], epoch if isinstance(epoch, int) else 0, sets)


def _run_record(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        notes.append("There is no run.json: an older plsc made the run, and its settings and machine are unknown.")
        return {}
    try:
        record = read_json(path)
        if isinstance(record, dict):
            return record
        problem: object = "not an object"
    except (OSError, ValueError) as error:
        problem = error
    notes.append(f"run.json cannot be read ({clean(str(problem))}): settings and machine are unknown.")
    return {}


def _note_training(train: Mapping[str, np.ndarray], tests: list[TestRecord], notes: list[str]) -> None:
    steps, loss = train["step"], train["loss"]
    if not len(steps):
        notes.append("No training step is recorded; a run records a step every log_period steps.")
    bad = np.flatnonzero(~np.isfinite(loss))
    if len(bad):
        some = ", ".join(f"{steps[one]:,.0f}" for one in bad[:5]) + (", ..." if len(bad) > 5 else "")
        notes.append(
            f"{len(bad)} of {len(loss)} records of training {'has' if len(bad) == 1 else 'have'} no finite loss (step "
            f"{some}): the curve has gaps."
        )
    if not tests:
        notes.append("No test is recorded: set_with_test(False) was called, or the first epoch has not ended.")


def _seconds(records: list[dict[str, Any]], record: Mapping[str, Any]) -> Optional[float]:
    times = [one["time"] for one in records if math.isfinite(number(one.get("time")))]
    if not times:
        return None
    try:
        began = datetime.fromisoformat(record["started"]).timestamp()
    except (KeyError, TypeError, ValueError):
        began = times[0]
    seconds = max(0.0, times[-1] - began)
    return seconds if seconds < _LONGEST_RUN else None


def file_stem(text: str) -> str:
    """Returns `text` with the characters replaced that a file name should not hold."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._") or "set"
