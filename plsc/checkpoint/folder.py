"""The folder of a checkpoint: its file names, `meta.json`, how it is put in place, and what is done after a killed run.

A checkpoint is written to `.<name>.writing` in the same folder and renamed when it is complete. Meanwhile a checkpoint
that it replaces is `.<name>.replaced`; one that is removed is first renamed to `.<name>.removed`. Nothing else is ever
removed.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from plsc.checkpoint.tensor_file import BLOCK_BYTES, DamagedError, FileSum, missing
from plsc.errors import CheckpointError
from plsc.machine.files import sync, write_synced
from plsc.machine.locks import lock_folder

FORMAT = 1
META = "meta.json"
BACKBONE = "backbone.safetensors"
OPTIMIZER = "optimizer.safetensors"
_NAME = re.compile(r"\d+|step_\d+")
_LEFTOVER = re.compile(r"\.(.+)\.(writing|replaced|removed)")
_HEAD_FILE = re.compile(r"dist@head@rank@\d{5,}\.safetensors")
_LOCK_SECONDS = 10.0  # a run that was killed may still be ending


Age = tuple[float, int, float]


def head_file(rank: int) -> str:
    """Returns the name of the file with the head shard of a rank."""
    return f"dist@head@rank@{rank:05d}.safetensors"


def is_own_file(name: str) -> bool:
    """Returns whether a checkpoint may contain a file of that name."""
    return name in (META, BACKBONE, OPTIMIZER) or _HEAD_FILE.fullmatch(name) is not None


@dataclass
class Checkpoint:
    """A folder that holds one checkpoint.

    Attributes:
        folder: The folder.
        meta: The content of `meta.json`.
        files: The size and the checksums of each file, by its name.
    """

    folder: Path
    meta: dict[str, Any]
    files: dict[str, FileSum]

    @property
    def head_rows(self) -> list[int]:
        """The number of rows in each head file."""
        return self.meta["head_rows"]

    @property
    def written(self) -> float:
        """When the checkpoint was put in place, in seconds since 1970."""
        return float(self.meta["written"])

    @property
    def age(self) -> Age:
        """What orders checkpoints, whatever the clocks of the machines say; the newest has the largest.

        It is when the run began, which is later than all that was in the folder then; the steps of the run; and when
        the checkpoint was written. Earlier versions of plsc recorded only the last.
        """
        return float(self.meta.get("began", self.written)), int(self.meta["step"]), self.written


def score_of(meta: dict[str, Any]) -> Optional[float]:
    """Returns the mean accuracy, or rank-1 rate, over the test sets that `meta.json` records.

    Returns None if it records no test.
    """
    test = meta.get("test")
    return sum(one.get("accuracy", one.get("rank@1")) for one in test.values()) / len(test) if test else None


def open_checkpoint(folder: Path, partial: bool = False) -> Checkpoint:
    """Reads `meta.json`, and checks that the files it names exist and have the right size, with no others.

    Args:
        folder: The folder of the checkpoint.
        partial: Whether head files may be missing, as on a machine that holds only those of its own ranks. To read such
            a file is an error.

    Raises:
        DamagedError: There is no checkpoint, or one of its files is missing, short, or from another checkpoint.
        CheckpointError: It has another format.
    """
    path = folder / META
    try:
        checkpoint = parse_meta(folder, path.read_bytes())
    except FileNotFoundError:
        wrong = f"is not a checkpoint ({META} is missing)" if folder.is_dir() else "no such folder"
        raise DamagedError(f"{folder}: {wrong}; give the folder of one epoch, such as output/0") from None
    except OSError as problem:
        raise DamagedError(f"{path}: damaged ({type(problem).__name__}: {problem}); use another checkpoint") from None
    for name, expected in checkpoint.files.items():
        if not (partial and _HEAD_FILE.fullmatch(name) and not (folder / name).exists()):
            _check_file(folder / name, expected)
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors") and name not in checkpoint.files:
            raise DamagedError(
                f"{folder / name}: is not of this checkpoint, since {META} does not name it; move it away"
            )
    return checkpoint


def parse_meta(folder: Path, text: bytes) -> Checkpoint:
    """Returns the checkpoint whose `meta.json` is `text`.

    Raises:
        DamagedError: The text cannot be read.
        CheckpointError: It has another format.
    """
    try:
        return _read_meta(folder, json.loads(text.decode("utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise DamagedError(
            f"{folder / META}: damaged ({type(problem).__name__}: {problem}); use another checkpoint"
        ) from None


def is_checkpoint_name(name: str) -> bool:
    """Returns whether runs give such a name to a checkpoint."""
    return _NAME.fullmatch(name) is not None


def _read_meta(folder: Path, meta: dict[str, Any]) -> Checkpoint:
    """Raises the errors of Python where `meta` is not what `write_meta` wrote."""
    if meta["format"] != FORMAT:
        raise CheckpointError(
            f"{folder / META}: has format {meta['format']!r}, but this plsc reads format {FORMAT}; update plsc"
        )
    if meta["block_bytes"] != BLOCK_BYTES:
        raise ValueError(f"blocks of {meta['block_bytes']!r} bytes instead of {BLOCK_BYTES}")
    files = {str(name): FileSum(int(meta["size"][name]), tuple(meta["blocks"][name])) for name in meta["sha256"]}
    checkpoint = Checkpoint(folder, meta, files)
    numbers_are_sound = isinstance(meta["step"], int) and all(map(math.isfinite, checkpoint.age))
    if sum(checkpoint.head_rows) != meta["num_classes"] or not numbers_are_sound:
        raise ValueError("its numbers contradict each other")
    for name in sorted({BACKBONE, OPTIMIZER, *map(head_file, range(len(checkpoint.head_rows)))} - set(files)):
        raise ValueError(f"it does not name {name}")
    for name in files:
        if not is_own_file(name):
            raise ValueError(f"it names the file {name!r}")
    return checkpoint


def _check_file(path: Path, expected: FileSum) -> None:
    try:
        size = path.stat().st_size
    except OSError:
        raise missing(path) from None
    if size != expected.size:
        raise DamagedError(
            f"{path}: has {size:,} bytes, but {META} says {expected.size:,}; the file is damaged, "
            "use another checkpoint"
        )


def write_meta(folder: Path, meta: dict[str, Any], files: dict[str, FileSum]) -> None:
    """Writes `meta.json`, which is the last file of a checkpoint."""
    content = {
        "format": FORMAT,
        **meta,
        "block_bytes": BLOCK_BYTES,
        "size": {name: one.size for name, one in sorted(files.items())},
        "sha256": {name: one.sha256 for name, one in sorted(files.items())},
        "blocks": {name: list(one.blocks) for name, one in sorted(files.items())},
    }
    write_synced(folder / META, json.dumps(content, indent=1).encode())
    sync(folder)


def temporary_of(folder: Path) -> Path:
    """Returns where the checkpoint `folder` is written until it is complete."""
    return folder.with_name(f".{folder.name}.writing")


def publish(folder: Path) -> None:
    """Puts a complete checkpoint in place by renaming it. A checkpoint of that name is removed afterwards.

    Raises:
        OSError: It could not be put in place.
    """
    if folder.exists():
        _check_replaceable(folder)
        previous = folder.with_name(f".{folder.name}.replaced")
        _remove_tree(previous)
        os.rename(folder, previous)
        os.rename(temporary_of(folder), folder)
        sync(folder.parent)
        _remove_tree(previous)
    else:
        os.rename(temporary_of(folder), folder)
        sync(folder.parent)


def _check_replaceable(folder: Path) -> None:
    names = os.listdir(folder) if folder.is_dir() else [folder.name]
    if not all(map(is_own_file, names)):
        raise OSError("something that is not a checkpoint has that name; move it away")


def remove(folder: Path) -> None:
    """Removes a checkpoint, after it has hidden it: it is whole or gone. A folder that is no checkpoint stays."""
    if (folder / META).is_file():
        _check_replaceable(folder)
        hidden = folder.with_name(f".{folder.name}.removed")
        _remove_tree(hidden)
        os.rename(folder, hidden)
        _remove_tree(hidden)


def discard(folder: Path) -> None:
    """Removes what was written of the checkpoint `folder`."""
    _remove_tree(temporary_of(folder))


def recover(save_dir: Path) -> list[str]:
    """Repairs what a killed run left: restores a checkpoint that was being replaced, and removes incomplete ones.

    Returns:
        What it did, for the log.
    """
    done = []
    names = os.listdir(save_dir) if save_dir.is_dir() else []
    for match in filter(None, map(_LEFTOVER.fullmatch, sorted(names))):
        leftover, place = save_dir / match[0], save_dir / match[1]
        if not is_checkpoint_name(place.name):
            continue
        if match[2] == "replaced" and not place.exists():
            os.rename(leftover, place)
            done.append(f"{place}: restored, since a run ended while it was being replaced")
        elif _remove_tree(leftover):
            done.append(f"{leftover}: removed, since a run ended while it was being written or removed")
    return done


def list_checkpoints(save_dir: Path) -> list[Path]:
    """Returns the folders of a run that are named like checkpoints, in no order."""
    try:
        return [save_dir / name for name in os.listdir(save_dir) if is_checkpoint_name(name)]
    except FileNotFoundError:
        return []


def locked(save_dir: Path) -> AbstractContextManager[bool]:
    """Holds the lock on a run's folder, and makes the folder if it is missing; see `lock_folder`.

    Raises:
        ConfigError: Another run writes to the folder, or it cannot be made or written.
    """
    return lock_folder(save_dir, "choose another folder with set_model_save_dir", _LOCK_SECONDS)


def _remove_tree(folder: Path) -> bool:
    """Removes a folder if its name and all names in it are those that this module gives. Returns whether it did."""
    if not _LEFTOVER.fullmatch(folder.name) or not folder.is_dir() or not all(map(is_own_file, os.listdir(folder))):
        return False
    shutil.rmtree(folder)
    return True
