"""Reads what a run left in its folder; what is missing or damaged becomes a note, not an error."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

import numpy as np

from plsc.errors import DataError

COLUMNS = ("step", "lr", "loss", "images_per_second", "loss_scaling", "skipped_steps", "acc1", "acc5")


@dataclass
class HardPair:
    """Two images the model finds hard to tell apart, or to see as one.

    Attributes:
        images: two uint8 [H, W, C].
        names: what they are called; may be empty.
    """

    number: int
    is_same: bool
    similarity: float
    names: tuple[str, str]
    images: np.ndarray


@dataclass
class PairSet:
    """`<set>_pairs.npz`.

    Attributes:
        similarity: float64 [P], all finite.
        issame: bool [P].
        hard: hardest first, each kind.
        embeddings: float32 [M, D]; empty when there is no map.
        identities: of each embedding; may be ''.
    """

    similarity: np.ndarray
    issame: np.ndarray
    hard: list[HardPair] = field(default_factory=list)
    embeddings: np.ndarray = field(default_factory=lambda: np.empty((0, 0), "float32"))
    identities: list[str] = field(default_factory=list)


@dataclass
class TestRecord:
    """One test: {set name: {measure: number, or a mapping of them}}."""

    step: int
    epoch: int
    sets: dict[str, dict[str, Any]]


@dataclass
class RunFolder:
    """One run.

    Attributes:
        train: a column for each of `COLUMNS`, NaN where a record has no such number.
        record: `run.json`; empty for a run that left none.
        pairs: by set name.
        seconds: from its start to its last record; None when the records do not tell.
        notes: what is missing or odd, a sentence each.
    """

    name: str
    folder: Path
    train: dict[str, np.ndarray]
    tests: list[TestRecord]
    record: dict[str, Any]
    pairs: dict[str, PairSet]
    seconds: Optional[float]
    notes: list[str]

    @property
    def set_names(self) -> list[str]:
        """Verification sets: those of the last test first."""
        tested = [name for test in reversed(self.tests) for name in test.sets]
        return list(dict.fromkeys([*tested, *self.pairs]))

    def last(self, column: str) -> Optional[float]:
        """The last finite number of a column of `train`."""
        finite = self.train[column][np.isfinite(self.train[column])]
        return float(finite[-1]) if len(finite) else None


def read_runs(folders: list[Path]) -> list[RunFolder]:
    """Reads runs and gives each a name of its own.

    Raises:
        DataError: a folder is none of a run.
    """
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        alike = [one for one in runs if one.name == run.name and one is not run]
        if alike:  # a/output and b/output
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
        DataError: the folder is none of a run.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder of a run, that of set_model_save_dir")
    if not (folder / "metrics.jsonl").is_file():
        raise DataError(
            f"{folder}: not the folder of a run, there is no metrics.jsonl in it; give that of set_model_save_dir"
        )
    notes: list[str] = []
    records = _last_run(_records(folder / "metrics.jsonl", notes), notes)
    trained = [one for one in records if one["event"] == "train"]
    train = {name: np.array([number(one.get(name)) for one in trained], np.float64) for name in COLUMNS}
    tests = [_test(one) for one in records if one["event"] == "test"]
    record = _run_record(folder / "run.json", notes)
    _note_training(train, tests, notes)
    pairs = {}
    for path in sorted(folder.glob("*_pairs.npz")):
        try:
            pairs[clean(path.name[: -len("_pairs.npz")])] = read_pairs(path, notes)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as problem:
            notes.append(f"{clean(path.name)} cannot be read ({clean(str(problem))}); test again to write it anew.")
    name = clean(folder.resolve().name) or str(folder)
    return RunFolder(name, folder, train, tests, record, pairs, _seconds(records, record), notes)


def clean(text: str) -> str:
    """`text` without characters that would change how what is around it looks."""
    return "".join(one if one.isprintable() else "\ufffd" for one in text)


def number(value: Any) -> float:
    """`value` if it is a number, else NaN."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _records(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The records of training and tests."""
    bad, last_is_bad, is_whole = 0, False, True
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                is_whole = line.endswith("\n")
                last_is_bad = False
                try:
                    one = json.loads(line)
                    if one["event"] in ("train", "test"):
                        one["step"] = int(one["step"])
                        yield one
                except (ValueError, TypeError, KeyError, OverflowError):
                    bad, last_is_bad = bad + 1, True
    except OSError as problem:
        raise DataError(f"{path}: cannot be read ({problem.strerror})") from None
    if last_is_bad and not is_whole:
        bad -= 1
        notes.append("The last line of metrics.jsonl is half written: the run may still be going on.")
    if bad:
        notes.append(
            f"{bad} line{'s' * (bad > 1)} of metrics.jsonl cannot be read and {'are' if bad > 1 else 'is'} left out."
        )


def _last_run(records: Iterator[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """Those of the last run in the folder: steps that begin anew are another run's."""
    kept: list[dict[str, Any]] = []
    earlier = 0
    for one in records:
        if kept and one["step"] < kept[-1]["step"]:
            earlier, kept = earlier + 1, []
        kept.append(one)
    if earlier:
        runs = "an earlier run" if earlier == 1 else f"{earlier} earlier runs"
        notes.append(f"The folder holds records of {runs} too, which are not shown.")
    return kept


def _test(record: Mapping[str, Any]) -> TestRecord:
    sets = {clean(name): dict(values) for name, values in record.items() if isinstance(values, dict)}
    epoch = record.get("epoch")
    return TestRecord(record["step"], epoch if isinstance(epoch, int) else 0, sets)


def _run_record(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        notes.append("There is no run.json: the run is of an older plsc, and its settings and machine are not known.")
        return {}
    try:
        record = json.loads(path.read_bytes())
        if isinstance(record, dict):
            return record
        problem: object = "not an object"
    except (OSError, ValueError) as error:
        problem = error
    notes.append(f"run.json cannot be read ({clean(str(problem))}): settings and machine are not known.")
    return {}


def _note_training(train: Mapping[str, np.ndarray], tests: list[TestRecord], notes: list[str]) -> None:
    steps, loss = train["step"], train["loss"]
    if not len(steps):
        notes.append("No training step is recorded; there is a record every log_period steps.")
    bad = np.flatnonzero(~np.isfinite(loss))
    if len(bad):
        some = ", ".join(f"{steps[one]:,.0f}" for one in bad[:5]) + (", ..." if len(bad) > 5 else "")
        notes.append(
            f"{len(bad)} of {len(loss)} records of training have no finite loss (step {some}): the curve has gaps there."
        )
    if not tests:
        notes.append("No test is recorded: set_with_test(False), or the first epoch is not over.")


def _seconds(records: list[dict[str, Any]], record: Mapping[str, Any]) -> Optional[float]:
    times = [one["time"] for one in records if math.isfinite(number(one.get("time")))]
    if not times:
        return None
    try:
        began = datetime.fromisoformat(record["started"]).timestamp()
    except (KeyError, TypeError, ValueError):
        began = times[0]
    return max(0.0, times[-1] - began)


def read_pairs(path: Path, notes: list[str]) -> PairSet:
    """Reads one `<set>_pairs.npz`; a part that does not fit becomes a note."""
    with np.load(path) as content:
        similarity, issame = content["similarity"].astype(np.float64), content["issame"].astype(bool)
        if similarity.ndim != 1 or similarity.shape != issame.shape:
            raise ValueError(f"similarity {list(similarity.shape)} does not fit issame {list(issame.shape)}")
        finite = np.isfinite(similarity)
        pairs = PairSet(similarity[finite], issame[finite])
        if not finite.all():
            notes.append(
                f"{clean(path.name)}: {int((~finite).sum())} pairs have no finite similarity and are left out."
            )
        if {"hard_pairs", "hard_images"} <= set(content.files):
            pairs.hard = _hard_pairs(path, content, similarity, issame, notes)
        if "map_embeddings" in content.files:
            _read_map(path, content, pairs, notes)
    return pairs


def _hard_pairs(
    path: Path, content: Mapping[str, np.ndarray], similarity: np.ndarray, issame: np.ndarray, notes: list[str]
) -> list[HardPair]:
    numbers, images = content["hard_pairs"], content["hard_images"]
    names = content["hard_names"] if "hard_names" in content else np.full((len(numbers), 2), "")
    fits = (
        numbers.ndim == 1
        and images.dtype == np.uint8
        and images.ndim == 5
        and images.shape[:2] == (len(numbers), 2)
        and images.shape[4] in (1, 3)
        and names.shape == (len(numbers), 2)
        and (not len(numbers) or (numbers.min() >= 0 and numbers.max() < len(issame)))
    )
    if not fits:
        notes.append(f"{clean(path.name)}: its images of hard pairs do not fit together and are left out.")
        return []
    return [
        HardPair(int(one), bool(issame[one]), float(similarity[one]), (clean(str(name[0])), clean(str(name[1]))), two)
        for one, name, two in zip(numbers, names, images)
    ]


def _read_map(path: Path, content: Mapping[str, np.ndarray], pairs: PairSet, notes: list[str]) -> None:
    embeddings = content["map_embeddings"]
    identities = content["map_identities"] if "map_identities" in content else np.full(len(embeddings), "")
    if embeddings.ndim != 2 or identities.shape != (len(embeddings),) or not np.isfinite(embeddings).all():
        notes.append(f"{clean(path.name)}: its embeddings for the map do not fit together and are left out.")
        return
    pairs.embeddings, pairs.identities = embeddings.astype("float32"), [clean(str(one)) for one in identities]


def file_stem(text: str) -> str:
    """`text` as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._") or "set"
