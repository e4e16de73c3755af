"""The folder of a checkpoint: its file names, `meta.json`, how it is put in place, and what is done after a killed run.

A checkpoint is written to `.<name>.writing` in the same folder, or downloaded to `.<name>.fetching`, and renamed when
it is complete. Meanwhile a checkpoint that it replaces is `.<name>.replaced`; one that is removed is first renamed to
`.<name>.removed`. A number or digest may follow such a name. Nothing else is ever removed. These folders may also hold
files that are not part of a checkpoint: what a killed run left of a download or of `leader_of`, and `.nfs...`, as NFS
calls removed files that are still open.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from plsc.checkpoint.tensor_file import BLOCK_BYTES, DamagedError, FileSum, missing
from plsc.data.pixels import IMAGE_RECORD
from plsc.errors import CheckpointError, reason_of
from plsc.machine.files import is_old, sync, write_synced
from plsc.machine.json_files import (
    as_integer,
    as_integers,
    as_list,
    as_number,
    as_object,
    as_text,
    parse_json,
    read_bytes,
    short,
)
from plsc.machine.locks import lock_folder
from plsc.zoo import place_of

FORMAT = 1
META = "meta.json"
BACKBONE = "backbone.safetensors"
OPTIMIZER = "optimizer.safetensors"
AVERAGE = "average.safetensors"  # of runs with set_ema
EARLIER = "earlier_"  # with a number from 1, the folder that receives an earlier run
_NAME = re.compile(r"\d+|step_\d+")
_LEFTOVER = re.compile(r"\.(.+)\.(writing|replaced|removed|fetching)(\.[0-9a-f]+)?")
_PASSING = re.compile(r"\.rank_\d+\.[0-9a-f]{32}|\.nfs[0-9a-f]+|\..+\.[0-9a-f]{12}\.part")
_OF_PADDLE = (".pdparams", ".pdopt", ".pdmodel", ".pdiparams")
_HEAD_FILE = re.compile(r"dist@head@rank@(\d{5,})\.safetensors")
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Entries that checkpoints of training have, and what they must be. Who needs one finds out that it is missing.
_OPTIONAL: dict[str, Callable[[Any], Any]] = {
    "run": as_text,
    "began": as_number,
    "launches": lambda value: [as_text(one) for one in as_list(value)],
    "model": as_text,
    "class_names": lambda value: [as_text(one) for one in as_list(value)],
    "loss_type": as_text,
    "emb_dim": lambda value: as_integer(value, 1),
    "sub_centers": lambda value: as_integer(value, 1),
    "image_shape": lambda value: as_integers(value, 1, 3),
    "heads": lambda value: as_integers(value, 1),
    **IMAGE_RECORD,
    "by_rows": lambda value: [as_text(one) for one in as_list(value)],
    "accumulators": as_object,
    "average": lambda value: (as_number(as_object(value)["decay"]), as_integer(value["updates"])),
    "steps_per_epoch": lambda value: value is None or as_integer(value, 1),
    "progress": lambda value: _check_progress(as_object(value)),
}
_NO_COUNTS = ("loss_sum", "loss", "test")  # of the progress, whose other entries are counts
_LOCK_SECONDS = 10.0  # a run that was killed may still be ending


Age = tuple[float, int, float]


def head_file(number: int) -> str:
    """Returns the name of a file with a shard of a head: of a single head the rank, of several a number over all."""
    return f"dist@head@rank@{number:05d}.safetensors"


def head_number(name: str) -> Optional[int]:
    """Returns the number in the name of a head file; None for another file."""
    found = _HEAD_FILE.fullmatch(name)
    return int(found[1]) if found else None


def is_own_file(name: str) -> bool:
    """Returns whether a checkpoint may contain a file of that name."""
    return name in (META, BACKBONE, OPTIMIZER, AVERAGE) or _HEAD_FILE.fullmatch(name) is not None


class Meta(dict[str, Any]):
    """The content of a `meta.json`, in which an entry that someone needs may be missing.

    Args:
        path: The file.
        content: The content.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        super().__init__(content)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise CheckpointError(f"{self._path}: has no {name!r}; use a checkpoint that a training has saved")


def _may_be_removed(folder: Path) -> bool:
    """Returns whether all that a folder holds is from a checkpoint, or passing."""
    return all(is_own_file(name) or _PASSING.fullmatch(name) for name in os.listdir(folder))


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
        """The number of rows in each head file: those of all ranks, for one head after another."""
        return self.meta["head_rows"]

    @property
    def sub_centers(self) -> int:
        """The number of rows of each class."""
        return int(self.meta.get("sub_centers", 1))

    @property
    def heads(self) -> list[int]:
        """The number of classes of each head."""
        return self.meta.get("heads") or [self.meta["num_classes"]]

    def head_files(self, number: int) -> range:
        """Returns the numbers of the files that hold a head."""
        each = len(self.head_rows) // len(self.heads)
        return range(number * each, (number + 1) * each)

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

    Raises:
        ValueError: A result is not a number.
    """
    test = meta.get("test")
    if not test:
        return None
    return sum(as_number(one.get("accuracy", one.get("rank@1"))) for one in as_object(test).values()) / len(test)


def open_checkpoint(folder: Path, partial: bool = False) -> Checkpoint:
    """Reads `meta.json`, and checks that the files it names exist and have the right size, with no others.

    Args:
        folder: The folder of the checkpoint, or `zoo:NAME`.
        partial: Whether head files may be missing, as on a machine that holds only those of its own ranks. To read such
            a file is an error.

    Raises:
        DamagedError: There is no checkpoint, or one of its files is missing, short, or from another checkpoint.
        CheckpointError: It has another format.
        ConfigError: The zoo has no such network.
    """
    folder = place_of(folder)
    path = folder / META
    try:
        checkpoint = parse_meta(folder, read_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedError(f"{folder}: {_what_it_is(folder)}") from None
    except (OSError, ValueError) as problem:
        raise DamagedError(f"{path}: damaged ({reason_of(problem)}); use another checkpoint") from None
    for name, expected in checkpoint.files.items():
        if not (partial and _HEAD_FILE.fullmatch(name) and not (folder / name).exists()):
            _check_file(folder / name, expected)
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors") and name not in checkpoint.files:
            raise DamagedError(
                f"{folder / name}: is not of this checkpoint, since {META} does not name it; move it away"
            )
    return checkpoint


def _what_it_is(folder: Path) -> str:
    """Returns what a path is that is no checkpoint, and what to do."""
    advice = "give the folder of one epoch, such as output/0"
    files = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    foreign = next((file for file in files if file.suffix in _OF_PADDLE and file.is_file()), None)
    if foreign is not None:
        name = f"holds {foreign.name}, which is" if foreign is not folder else "is"
        return (
            f"{name} in Paddle's own format and not a checkpoint of plsc; begin with it by set_pretrained, make a "
            f"checkpoint of it with plsc import-weights, or {advice}"
        )
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)) and not folder.exists():  # a path has no second slash
        return (
            "is an address, and a folder of this machine is expected; download the checkpoint with plsc fs get, or let "
            "a training do so with set_hdfs_info(..., fs_checkpoint_dir=...)"
        )
    if folder.is_file():
        return f"is a file, not the folder of a checkpoint; {advice}"
    return f"is not a checkpoint ({META} is missing); {advice}" if folder.is_dir() else f"no such folder; {advice}"


def parse_meta(folder: Path, text: bytes) -> Checkpoint:
    """Returns the checkpoint whose `meta.json` is `text`.

    Raises:
        DamagedError: The text cannot be read, or is not what `write_meta` writes.
        CheckpointError: It has another format.
    """
    try:
        return _read_meta(folder, parse_json(text))
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise DamagedError(f"{folder / META}: damaged ({reason_of(problem)}); use another checkpoint") from None


def is_checkpoint_name(name: str) -> bool:
    """Returns whether runs give such a name to a checkpoint."""
    return _NAME.fullmatch(name) is not None


def _read_meta(folder: Path, meta: dict[str, Any]) -> Checkpoint:
    """Raises the errors of Python where `meta` is not what `write_meta` wrote."""
    if meta["format"] != FORMAT:
        raise CheckpointError(
            f"{folder / META}: has format {short(meta['format'])}, but this plsc reads format {FORMAT}; update plsc"
        )
    if meta["block_bytes"] != BLOCK_BYTES:
        raise ValueError(f"blocks of {short(meta['block_bytes'])} bytes instead of {BLOCK_BYTES}")
    files = {name: _sum_of(meta["size"][name], meta["blocks"][name]) for name in as_object(meta["sha256"])}
    checkpoint = Checkpoint(folder, Meta(folder / META, meta), files)
    if len(as_integers(checkpoint.head_rows)) > len(files):
        raise ValueError("it does not name all head files")
    as_integer(meta["step"])
    as_number(meta["written"])
    for name, check in _OPTIONAL.items():
        if name in meta:
            check(meta[name])
    score_of(meta)
    if sum(checkpoint.head_rows) != as_integer(meta["num_classes"]) or not all(map(math.isfinite, checkpoint.age)):
        raise ValueError("its numbers contradict each other")
    of_heads = [sum(checkpoint.head_rows[k] for k in checkpoint.head_files(n)) for n in range(len(checkpoint.heads))]
    if of_heads != checkpoint.heads:
        raise ValueError("its heads contradict each other")
    for name in sorted({BACKBONE, OPTIMIZER, *map(head_file, range(len(checkpoint.head_rows)))} - set(files)):
        raise ValueError(f"it does not name {name}")
    for name in files:
        if not is_own_file(name) or (name == AVERAGE and "average" not in meta):
            raise ValueError(f"it names the file {short(name)}")
    if "average" in meta and AVERAGE not in files:
        raise ValueError(f"it does not name {AVERAGE}")
    return checkpoint


def _check_progress(progress: dict[str, Any]) -> None:
    for name, value in progress.items():
        if name not in _NO_COUNTS:
            as_integer(value)
        elif value is not None or name == "loss_sum":
            (as_object if name == "test" else as_number)(value)


def _sum_of(size: Any, blocks: Any) -> FileSum:
    if not isinstance(blocks, list) or not all(isinstance(one, str) and _DIGEST.fullmatch(one) for one in blocks):
        raise ValueError("a checksum is not a SHA-256")
    return FileSum(as_integer(size), tuple(blocks))


def _check_file(path: Path, expected: FileSum) -> None:
    try:
        status = path.stat()
    except OSError:
        raise missing(path) from None
    size = status.st_size
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError(f"{path}: is not an ordinary file; use another checkpoint")
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
        previous = _free_name(folder, "replaced")
        os.rename(folder, previous)
        os.rename(temporary_of(folder), folder)
        sync(folder.parent)
        _remove_tree(previous)
    else:
        os.rename(temporary_of(folder), folder)
        sync(folder.parent)


def _check_replaceable(folder: Path) -> None:
    if not folder.is_dir() or not _may_be_removed(folder):
        raise OSError("something that is not a checkpoint has that name; move it away")


def remove(folder: Path) -> None:
    """Removes a checkpoint, after it has hidden it: it is whole or gone. A folder that is no checkpoint stays."""
    if (folder / META).is_file():
        _check_replaceable(folder)
        hidden = _free_name(folder, "removed")
        os.rename(folder, hidden)
        _remove_tree(hidden)


def _free_name(folder: Path, kind: str) -> Path:
    """Returns a hidden name for a folder, after removing what has such a name, as far as that is possible."""
    names = (folder.with_name(f".{folder.name}.{kind}{f'.{number}' * (number > 0)}") for number in itertools.count())
    return next(hidden for hidden in names if _remove_tree(hidden) or not os.path.lexists(hidden))


@contextlib.contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """Yields the temporary folder of a new checkpoint, and puts it in place if all went well.

    Raises:
        CheckpointError: The disk refuses it.
    """
    folder = temporary_of(target)
    try:
        folder.mkdir(parents=True)
        yield folder
        publish(target)
    except OSError as problem:
        discard(target)
        raise CheckpointError(
            f"{target}: cannot be written ({problem.strerror or problem}); free some space, or name another folder"
        ) from None
    except BaseException:
        discard(target)
        raise


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
        if match[2] == "fetching" and not is_old(leftover):  # another process may still be downloading to it
            continue
        if match[2] == "replaced" and not place.exists() and (leftover / META).is_file():
            os.rename(leftover, place)
            done.append(f"{place}: restored, since a run ended while it was being replaced")
        elif _remove_tree(leftover):
            done.append(f"{leftover}: removed, since a run ended while it was being written or removed")
    return done


def remove_old_downloads(folder: Path) -> None:
    """Removes what killed processes left of the download of the checkpoint `folder`, once nothing writes there."""
    with contextlib.suppress(OSError):  # the download itself reports what is wrong with the folder
        for match in filter(None, map(_LEFTOVER.fullmatch, os.listdir(folder.parent))):
            leftover = folder.with_name(match[0])
            if match[1] == folder.name and match[2] == "fetching" and is_old(leftover):
                _remove_tree(leftover)


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
    """Removes a folder if its name and all names in it are those that this module gives. Returns whether it did.

    A file that NFS keeps because some process has it open stays, with its folder, until a later run.
    """
    if not _LEFTOVER.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
        return False
    if not _may_be_removed(folder):
        return False
    for name in os.listdir(folder):
        try:
            os.unlink(folder / name)
        except OSError:
            if not name.startswith(".nfs"):
                raise
    try:
        os.rmdir(folder)
    except OSError as problem:
        if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
            raise
        return False
    return True
