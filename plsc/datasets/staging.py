"""The hidden folder in which a conversion is made, what a rerun keeps of it, and how the output appears.

Each shard is a folder that gets its name when it is complete, so that a killed process leaves whole shards, and pieces
that the next run removes. The output appears when all shards are complete, with the lists of its files last.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Optional

from plsc.datasets import image_tree
from plsc.datasets.image_tree import DATA
from plsc.errors import ConfigError, DataError
from plsc.machine.files import replace_file, sync, write_synced
from plsc.machine.json_files import as_integer, as_list, as_object, as_text, json_text, read_json
from plsc.machine.locks import LOCK_NAME
from plsc.machine.names import readable

NAME = ".converting"
_DONE = ".converted"
LISTS, WHOLE = "lists", "whole"
_PLAN, _RECORD, _PUBLISHING = "plan.json", "record.json", "publishing"
_PIECE = re.compile(r".+\.[0-9a-f]{16}\.piece")
_UNWRITTEN = re.compile(r"\.plan\.json\..+\.part")  # what a kill leaves before the plan is complete
LAST = ("file_list.txt", "base64_manifest.json")  # the files by which readers know that base64 data is complete


class ShardRecord(NamedTuple):
    """What is known about a complete shard.

    Attributes:
        images: Number of its images.
        image_bytes: Their encoded bytes.
        classes: The largest of their labels plus one.
        files: Number of its files.
        file_bytes: Bytes of its files.
        skipped: One line for each damaged image that was left out.
    """

    images: int
    image_bytes: int
    classes: int
    files: int
    file_bytes: int
    skipped: list[str]


def as_record(value: Any) -> ShardRecord:
    """Returns the record of a shard from what JSON says. Raises ValueError if it is damaged."""
    found = as_object(value)
    numbers = {name: as_integer(found.get(name)) for name in ShardRecord._fields if name != "skipped"}
    return ShardRecord(**numbers, skipped=[as_text(line) for line in as_list(found.get("skipped"))])


class Staging:
    """The hidden folder of a conversion.

    Args:
        output: Folder for the output, which exists.
    """

    def __init__(self, output: Path) -> None:
        self.output, self.folder = output, output / NAME

    def begin(self, plan: dict[str, Any]) -> None:
        """Makes the folder, or takes over the one that a run of the same plan left.

        Raises:
            ConfigError: The output folder holds other files, or the conversion of another plan.
        """
        earlier, done = self.plan(), self.output / _DONE
        own = {path.name for path in (self.folder, done) if _is_own(path)}
        others = sorted({*os.listdir(self.output)} - {LOCK_NAME, *own})
        if others and not (earlier and self.is_publishing):
            raise ConfigError(
                f"{self.output}: is not empty (it holds {readable(others[0])}); give a new folder, because nothing is "
                "overwritten"
            )
        if _DONE in own:
            _remove(done)
        if earlier is None:
            self.folder.mkdir(exist_ok=True)
            replace_file(self.folder / _PLAN, json_text(plan, indent=1).encode())
            return
        check_same(str(self.output), earlier, plan)
        self.remove_pieces()

    def engine(self, make: Any) -> Any:
        """Returns the engine that makes shards: `make` itself, because the shards stay where it makes them."""
        return make

    def plan(self) -> Optional[dict[str, Any]]:
        """Returns the plan of the unfinished conversion; None if there is none."""
        return _plan_in(self.folder)

    @property
    def is_publishing(self) -> bool:
        """Whether the shards are complete, and some may be in the output already."""
        return (self.folder / _PUBLISHING).exists()

    def remove_pieces(self) -> None:
        """Removes what processes left that were killed while they made a shard."""
        names = os.listdir(self.folder) if self.folder.exists() else []
        pieces = [self.folder / name for name in names if _PIECE.fullmatch(name)]
        image_tree.roll_back(self.folder, pieces, self._complete())
        for piece in pieces:
            shutil.rmtree(piece, ignore_errors=True)

    @contextmanager
    def piece(self, name: str) -> Iterator[Path]:
        """Yields a new folder, which `commit` gives the name. Otherwise it is removed, perhaps by `remove_pieces`."""
        made = self.folder / f"{name}.{secrets.token_hex(8)}.piece"
        try:
            (made / DATA).mkdir(parents=True)
            yield made
        finally:
            if not image_tree.has_files(made):
                shutil.rmtree(made, ignore_errors=True)

    def commit(self, piece: Path) -> None:
        """Gives a complete folder its name."""
        place = piece.with_name(piece.name.split(".")[0])
        try:
            os.rename(piece, place)
        except OSError:
            if not place.exists():  # a second task of Spark may have made the same shard
                raise

    def shard(self, number: int) -> Path:
        """Returns the folder of a shard."""
        return self.folder / f"shard-{number:05d}"

    def finish_shard(self, piece: Path, record: ShardRecord, synced: bool) -> None:
        """Writes the record of a shard, as the last of its files, and commits it.

        Args:
            piece: The folder that `piece` yielded.
            record: The record, with the number and bytes of the files as if each image had a file.
            synced: Whether to count the files, and to write them to the disk first, because they are a few large ones.
        """
        if synced:
            for path in (piece / DATA).iterdir():
                sync(path)
            files, file_bytes = _extent(piece / DATA)
            record = record._replace(files=files, file_bytes=file_bytes)
        write_synced(piece / _RECORD, json_text(record._asdict()).encode("utf-8", "surrogateescape"))
        self.commit(piece)

    def record(self, number: int) -> ShardRecord:
        """Returns the record of a complete shard.

        Raises:
            OSError: There is none.
            ValueError: It is damaged.
        """
        return as_record(read_json(self.shard(number) / _RECORD))

    def keep(self, number: int) -> Optional[ShardRecord]:
        """Returns the record of a shard that an earlier run completed; None if it has to be made."""
        folder = self.shard(number)
        try:
            record = self.record(number)
            if self.is_publishing:
                return record
            count, size = _extent(folder / DATA)
            owned = image_tree.owned_sizes(folder)
            if (count + len(owned), size + sum(owned)) == (record.files, record.file_bytes):
                return record
        except (OSError, ValueError):
            pass
        image_tree.roll_back(self.folder, [folder], self._complete() - {folder})
        shutil.rmtree(folder, ignore_errors=True)
        return None

    def _complete(self) -> set[Path]:
        """Returns the folders of the complete shards."""
        return {path for path in self.folder.glob("shard-*") if not _PIECE.fullmatch(path.name)}

    def write_lists(self, lists: dict[str, bytes]) -> None:
        """Writes the small files that describe the output, which appear after all others."""
        shutil.rmtree(self.folder / LISTS, ignore_errors=True)
        with self.piece(LISTS) as piece:
            for name, data in lists.items():
                write_synced(piece / DATA / name, data)
            self.commit(piece)

    def publish(self, folders: Sequence[Path], prepare: Optional[Callable[[], None]] = None) -> None:
        """Moves files into the output, and removes the hidden folder.

        A run that is killed meanwhile is finished by the next one.

        Args:
            folders: Folders of which `DATA` is moved, in this order.
            prepare: Is called first, also by a run that continues.
        """
        if not self.is_publishing:
            write_synced(self.folder / _PUBLISHING, b"")
            sync(self.folder)
        if prepare is not None:
            prepare()
        for folder in folders:
            data = folder / DATA
            for name in sorted(os.listdir(data), key=lambda name: (name in LAST, name)):
                _move(data / name, self.output / name)
        sync(self.output)
        done = self.folder.with_name(_DONE)
        os.rename(self.folder, done)  # A kill while it is removed must not look like an unfinished conversion.
        _remove(done)


def check_same(where: str, earlier: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Raises ConfigError if an unfinished conversion has another plan."""
    changes = [name for name in {**earlier, **plan} if earlier.get(name) != plan.get(name)]
    if changes:
        one = changes[0]
        raise ConfigError(
            f"{where}: holds an unfinished conversion that differs in its {one} ({earlier.get(one)}, now "
            f"{plan.get(one)}); finish it with the options and the source that it had, or remove the folder"
        )


def _plan_in(folder: Path) -> Optional[dict[str, Any]]:
    """Returns the plan in a folder; None if `Staging.begin` has written none there."""
    try:
        plan = as_object(read_json(folder / _PLAN))
    except (OSError, ValueError):
        return None
    return plan if "--to" in plan else None


def _is_own(folder: Path) -> bool:
    """Returns whether a folder is that of a conversion: it has a plan, or was about to get one."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return _plan_in(folder) is not None or all(_UNWRITTEN.fullmatch(name) for name in os.listdir(folder))


def _remove(folder: Path) -> None:
    """Removes the folder of a finished conversion, its plan last, so that a run after a kill knows what it is."""
    for name in set(os.listdir(folder)) - {_PLAN}:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    shutil.rmtree(folder)


def _extent(folder: Path) -> tuple[int, int]:
    """Returns the number and the bytes of the files below a folder."""
    count, size, stack = 0, 0, [os.fspath(folder)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                else:
                    count, size = count + 1, size + entry.stat(follow_symlinks=False).st_size
    return count, size


def _move(source: Path, target: Path) -> None:
    if os.path.lexists(target):
        raise DataError(f"{target}: appeared during the conversion; move it away, and run the command again")
    os.rename(source, target)
