"""Checkpoints in a store: the same folders as on a disk, hidden until they are complete, and checked when downloaded.

All ranks upload their files to `.<name>.<run>.<sum>.writing`, where `<sum>` is the checksum of `meta.json`, so that the
files of two checkpoints never mix. One rank waits until all files have arrived, adds `meta.json`, and renames the
folder. Object stores cannot rename: their server copies the files, `meta.json` last, so that it makes the folder a
checkpoint. If that is interrupted, the hidden folder is still whole, and `recover` completes the checkpoint from it.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import posixpath
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Callable, Optional

from plsc.checkpoint import folder as layout
from plsc.checkpoint.folder import EARLIER, META, Checkpoint
from plsc.checkpoint.tensor_file import BLOCK_BYTES, DamagedError, FileSum
from plsc.errors import CheckpointError, ConfigError
from plsc.machine.files import refuse_links, sync, write_synced
from plsc.machine.json_files import LARGEST, parse_json
from plsc.storage import Retrying, StorageError
from plsc.storage.base import Status, place_of, write_bytes
from plsc.storage.local import check_room
from plsc.storage.transfer import Advance, OpenFile, each, ignore, write_file

_LEFTOVER = re.compile(r"\.(\d+|step_\d+)\.([0-9a-z]{1,12})\.[0-9a-f]{12}\.(writing|replaced|removed)")
_ASIDE = re.compile(rf"{EARLIER}(\d{{1,9}})")
_POLL_SECONDS = 0.5
_THREADS = 4  # each holds a block in memory


@dataclass(frozen=True)
class Remote:
    """A complete checkpoint in a store.

    Attributes:
        path: Its folder.
        meta_text: The text of its `meta.json`.
        checkpoint: The content of `meta.json`.
    """

    path: str
    meta_text: bytes
    checkpoint: Checkpoint


def hidden_of(path: str, meta_text: bytes, kind: str = "writing") -> str:
    """Returns the hidden folder in which the checkpoint for `path` is put together."""
    folder, name = posixpath.split(path)
    run = re.sub("[^0-9a-z]", "", str(parse_json(meta_text).get("run", "")))[:12] or "0"
    return posixpath.join(folder, f".{name}.{run}.{hashlib.sha256(meta_text).hexdigest()[:12]}.{kind}")


def upload_files(
    storage: Retrying, path: str, meta_text: bytes, files: Mapping[str, OpenFile], stop: threading.Event
) -> None:
    """Uploads one rank's files of the checkpoint for `path`, except those that the store has already.

    Raises:
        StorageError: The store could not take them, or `stop` was set.
    """

    def check_stop(count: int) -> None:
        if stop.is_set():
            raise StorageError(f"{place_of(storage, path)}: stopped")

    if not files:  # the folder may be published by now, and would come back empty
        return
    hidden = hidden_of(path, meta_text)
    storage.mkdirs(hidden)
    uploaded = _sizes(storage, hidden, {name: file.size for name, file in files.items()})
    for name, file in files.items():
        if uploaded.get(name) == file.size:
            continue
        place = posixpath.join(hidden, name)
        if not storage.renames:  # a file appears when it is complete, and needs no other name before
            write_file(storage, place, file, check_stop)
            continue
        if name in uploaded:
            storage.delete(place)
        _upload_file(storage, place, file, check_stop)


def _upload_file(storage: Retrying, place: str, file: OpenFile, check_stop: Advance) -> None:
    """Uploads a file to the hidden folder of a checkpoint under a passing name, and then gives it its own.

    The other rank publishes the folder as soon as the last file has its name. So that has to be the last request:
    whatever writes or checks a file after that would find the folder gone, and make it once more.
    """
    hidden, name = posixpath.split(place)
    part = posixpath.join(hidden, f".{name}.part")
    write_file(storage, part, file, check_stop)
    try:
        storage.rename(part, place)
    except StorageError:
        if storage.status(hidden) is not None:
            raise
        # The answer was lost, and the folder has been published in the meantime.


def publish(
    storage: Retrying,
    path: str,
    meta_text: bytes,
    patience: float,
    stop: threading.Event,
    silence: Callable[[], float] = lambda: math.inf,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Waits for the files of all ranks and makes the checkpoint appear. It replaces an earlier one at that path.

    Args:
        storage: The store.
        path: The folder of the checkpoint.
        meta_text: The text of its `meta.json`.
        patience: Seconds without a new file, and without a sign of other ranks, after which it gives up.
        stop: Ends the waiting once it is set.
        silence: Returns for how many seconds no other rank has said that it uploads. In an object store a large file
            appears only when it is complete.
        check: Is called when the checkpoint is complete, and may raise a StorageError to keep it from appearing.

    Raises:
        StorageError: Files did not arrive, or the path has something else than a checkpoint.
    """
    checkpoint, hidden = layout.parse_meta(Path(path), meta_text), hidden_of(path, meta_text)
    sizes = {name: one.size for name, one in checkpoint.files.items()}
    _wait_for(storage, hidden, sizes, patience, stop, silence)
    write_bytes(storage, posixpath.join(hidden, META), meta_text)
    check()
    if storage.status(path) is None:
        storage.rename(hidden, path)
        return
    _check_own(storage, path)
    if not storage.renames:
        storage.delete(path)
        storage.rename(hidden, path)
        return
    previous = hidden_of(path, meta_text, "replaced")
    storage.delete(previous)
    storage.rename(path, previous)
    storage.rename(hidden, path)
    storage.delete(previous)


def _wait_for(
    storage: Retrying,
    hidden: str,
    sizes: Mapping[str, int],
    patience: float,
    stop: threading.Event,
    silence: Callable[[], float],
) -> None:
    """Waits until a folder has files of these sizes. The other arguments are those of `publish`."""
    seen: Optional[dict[str, int]] = None
    while True:
        found = _sizes(storage, hidden, sizes)
        missing = sorted(name for name, size in sizes.items() if found.get(name) != size)
        if not missing:
            return
        if found != seen:
            seen, since = found, time.monotonic()
        if stop.wait(_POLL_SECONDS) or min(time.monotonic() - since, silence()) > patience:
            raise StorageError(f"{place_of(storage, hidden)}: {', '.join(missing)} did not arrive from other ranks")


def _listed(storage: Retrying, folder: str) -> dict[str, Status]:
    """Returns the names in a folder with their status; none if it does not exist."""
    status = storage.status(folder)
    return storage.list(folder) if status is not None and status.is_folder else {}


def _sizes(storage: Retrying, folder: str, expected: Mapping[str, int]) -> dict[str, int]:
    """Returns the sizes of files of a folder. Object stores may list files late, so those are asked for the rest."""
    found = {name: status.size for name, status in _listed(storage, folder).items()}
    for name, size in expected.items() if not storage.renames else ():
        if found.get(name) != size:
            status = storage.status(posixpath.join(folder, name))
            found |= {} if status is None else {name: status.size}
    return found


def _check_own(storage: Retrying, path: str) -> None:
    status = storage.status(path)
    names = storage.list(path) if status is not None and status.is_folder else {path: status}
    if not all(map(layout.is_own_file, names)):
        raise StorageError(f"{place_of(storage, path)}: something that is not a checkpoint has that name; move it away")


def remove(storage: Retrying, remote: Remote) -> None:
    """Removes a checkpoint, after it has hidden it: it is whole or gone. One that contains other files stays."""
    if storage.status(remote.path) is None:  # somebody has removed it, or a run in the same folder has moved it
        return
    _check_own(storage, remote.path)
    if not storage.renames:
        storage.delete(remote.path)
        return
    hidden = hidden_of(remote.path, remote.meta_text, "removed")
    storage.delete(hidden)
    storage.rename(remote.path, hidden)
    storage.delete(hidden)


def recover(storage: Retrying, folder: str, run: str) -> list[str]:
    """Repairs what a killed process of this run left: restores what was being replaced, and removes what is incomplete.

    Returns:
        What it did, for the log.
    """
    done = []
    names = _listed(storage, folder)
    for match in filter(None, map(_LEFTOVER.fullmatch, sorted(names))):
        leftover, place = posixpath.join(folder, match[0]), posixpath.join(folder, match[1])
        if match[2] != run[:12]:
            continue
        if match[3] == "replaced" and match[1] not in names:
            storage.rename(leftover, place)
            done.append(f"{place_of(storage, place)}: restored, since a run ended while it was being replaced")
        elif match[3] == "writing" and not storage.renames and open_remote(storage, leftover) is not None:
            storage.delete(place)
            storage.rename(leftover, place)
            done.append(f"{place_of(storage, place)}: completed, since a run ended while its files were being copied")
        else:
            storage.delete(leftover)
            done.append(
                f"{place_of(storage, leftover)}: removed, since a run ended while it was being written or removed"
            )
    return done


def set_aside(storage: Retrying, folder: str, run: str) -> tuple[str, int]:
    """Moves the checkpoints of other runs to `earlier_<n>` in the same folder, so that no upload replaces them.

    Those that cannot be read are moved too. If it is interrupted, the next call moves the rest to another folder.

    Args:
        storage: The store.
        folder: The folder that receives the checkpoints of `run`.
        run: The `run` in the `meta.json` of the checkpoints that stay.

    Returns:
        The folder that they are in now, and how many they are; "" and 0 if there are none.
    """
    others = [path for path in _checkpoints_in(storage, folder) if _run_of(storage, path) != run]
    if not others:
        return "", 0
    names = storage.list(folder)
    target = posixpath.join(folder, next(name for n in itertools.count(1) if (name := f"{EARLIER}{n}") not in names))
    storage.mkdirs(target)
    for path in others:
        storage.rename(path, posixpath.join(target, posixpath.basename(path)))
    return target, len(others)


def find_aside(storage: Retrying, path: str, folder: Optional[str]) -> Optional[Remote]:
    """Returns the checkpoint that `set_aside` has moved away from a path, the last one if there are several.

    Args:
        storage: The store.
        path: Where the checkpoint was.
        folder: The folder that was cleared; None if there is none.

    Returns:
        The checkpoint, or None if the path is in another folder or nothing was moved.
    """
    above, name = posixpath.split(posixpath.normpath(path))
    if folder is None or above != posixpath.normpath(folder) or storage.status(above) is None:
        return None
    numbers = [int(found[1]) for found in filter(None, map(_ASIDE.fullmatch, storage.list(above)))]
    places = (posixpath.join(above, f"{EARLIER}{number}", name) for number in sorted(numbers, reverse=True))
    return next(filter(None, (open_remote(storage, place) for place in places)), None)


def _checkpoints_in(storage: Retrying, folder: str) -> list[str]:
    """Returns the paths in a folder that are named like checkpoints and have a `meta.json`."""
    names = [
        name for name, child in _listed(storage, folder).items() if child.is_folder and layout.is_checkpoint_name(name)
    ]
    return [path for name in names if META in storage.list(path := posixpath.join(folder, name))]


def _run_of(storage: Retrying, path: str) -> Optional[str]:
    """Returns the run that has saved a checkpoint; None if it is not known."""
    try:
        found = open_remote(storage, path)
    except CheckpointError:
        return None
    return None if found is None else found.checkpoint.meta.get("run")


def open_remote(storage: Retrying, path: str) -> Optional[Remote]:
    """Returns the complete checkpoint at `path`, or None if there is none.

    Raises:
        CheckpointError: It is damaged, or has another format.
    """
    meta = _listed(storage, path).get(META) if storage.renames else storage.status(posixpath.join(path, META))
    if meta is None:
        return None
    if meta.size > LARGEST:
        raise DamagedError(f"{place_of(storage, f'{path}/{META}')}: has {meta.size:,} bytes; use another checkpoint")
    meta_text = b"".join(storage.read(posixpath.join(path, META), 0, meta.size))
    checkpoint = layout.parse_meta(Path(path), meta_text)
    sizes = _sizes(storage, path, {name: one.size for name, one in checkpoint.files.items()})
    for name, one in checkpoint.files.items():
        if sizes.get(name) != one.size:
            raise DamagedError(f"{place_of(storage, f'{path}/{name}')}: missing or short; use another checkpoint")
    return Remote(path, meta_text, checkpoint)


def list_remote(storage: Retrying, folder: str) -> list[Remote]:
    """Returns the complete checkpoints in a folder, the oldest first. Damaged ones are left out."""
    found = []
    for name, child in _listed(storage, folder).items():
        if child.is_folder and layout.is_checkpoint_name(name):
            try:
                remote = open_remote(storage, posixpath.join(folder, name))
            except CheckpointError:
                continue
            found += [remote] if remote is not None else []
    return sorted(found, key=lambda one: one.checkpoint.age)


def newest(storage: Retrying, folder: str) -> Optional[Remote]:
    """Returns the newest complete checkpoint in a folder, or None if there is none."""
    return next(reversed(list_remote(storage, folder)), None)


def download(storage: Retrying, remote: Remote, folder: Path, names: Iterable[str], advance: Advance = ignore) -> None:
    """Downloads files of a checkpoint into a folder. Each is hidden until it is complete and has the right checksums.

    Files that exist already are only checked, and an interrupted download is resumed. Call `finish_download` once all
    files that the machine needs are there.

    Raises:
        ConfigError: The folder holds another checkpoint, or cannot be written, or its disk is too small.
        DamagedError: A file of the store is not what `meta.json` says.
    """
    names = list(names)
    try:
        check_room(folder, _bytes_to_come(remote, folder, names))
        folder.mkdir(parents=True, exist_ok=True)
        meta = folder / META
        if meta.exists() and meta.read_bytes() != remote.meta_text:
            raise ConfigError(
                f"{folder}: holds another checkpoint than {place_of(storage, remote.path)}; move it away, or name "
                "another folder"
            )
        files = remote.checkpoint.files
        each(
            storage,
            lambda name: _download_file(storage, remote, folder / name, files[name], advance),
            [(name,) for name in names],
            _THREADS,
        )
    except OSError as problem:
        raise ConfigError(f"{folder}: cannot be written ({problem.strerror or problem})") from None


def _bytes_to_come(remote: Remote, folder: Path, names: Iterable[str]) -> int:
    """Returns how many bytes of some files are neither in a folder nor in the parts of an earlier download to it."""
    left = 0
    for name in names:
        place, size = folder / name, remote.checkpoint.files[name].size
        there = [one.stat().st_size for one in (place, _part_of(place, remote.meta_text)) if one.exists()]
        left += max(0, size - max(there, default=0))
    return left


def finish_download(remote: Remote, folder: Path) -> None:
    """Writes `meta.json`, which makes the folder a checkpoint."""
    meta = folder / META
    if not meta.exists():
        part = _part_of(meta, remote.meta_text)
        write_synced(part, remote.meta_text)
        os.rename(part, meta)
    sync(folder)


def _part_of(place: Path, meta_text: bytes) -> Path:
    return place.with_name(f".{place.name}.{hashlib.sha256(meta_text).hexdigest()[:12]}.part")


def _download_file(storage: Retrying, remote: Remote, place: Path, expected: FileSum, advance: Advance) -> None:
    if place.exists():
        with open(place, "rb") as stream:
            same = place.stat().st_size == expected.size and _good_blocks(stream, expected) == len(expected.blocks)
        if not same and not (place.parent / META).exists():
            raise ConfigError(
                f"{place}: is another file than that of {place_of(storage, remote.path)}; move it away, or name "
                "another folder"
            )
        if same:
            advance(expected.size)
            return
    part, source = _part_of(place, remote.meta_text), posixpath.join(remote.path, place.name)
    with open(part, "ab", opener=refuse_links):
        pass
    with open(part, "r+b", opener=refuse_links) as stream:
        block = _good_blocks(stream, expected)
        advance(min(block * BLOCK_BYTES, expected.size))
        failed = -1
        while block < len(expected.blocks):
            stream.truncate(block * BLOCK_BYTES)
            stream.seek(block * BLOCK_BYTES)
            block = _stream_blocks(storage, source, stream, expected, block, advance)
            if block < len(expected.blocks):
                if failed == block:  # the same block failed twice, which rules out an error of the transfer
                    raise DamagedError(
                        f"{place_of(storage, source)}: its sha256 differs from {META}; the file on the server is "
                        "damaged, use another checkpoint"
                    )
                failed = block
        stream.truncate(expected.size)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(part, place)


def _good_blocks(stream: BinaryIO, expected: FileSum) -> int:
    """Returns how many blocks from the start on have the right checksum."""
    for number, digest in enumerate(expected.blocks):
        size = min(BLOCK_BYTES, expected.size - number * BLOCK_BYTES)
        if hashlib.sha256(stream.read(size)).hexdigest() != digest:
            return number
    return len(expected.blocks)


def _stream_blocks(
    storage: Retrying, source: str, stream: BinaryIO, expected: FileSum, block: int, advance: Advance
) -> int:
    """Writes blocks from `block` on until one has a wrong checksum. Returns the number of good blocks of the file."""
    digest, filled = hashlib.sha256(), 0
    begin = block * BLOCK_BYTES
    for chunk in storage.read(source, begin, expected.size - begin):
        view = memoryview(chunk)
        while len(view):
            size = min(BLOCK_BYTES, expected.size - block * BLOCK_BYTES)
            part, view = view[: size - filled], view[size - filled :]
            digest.update(part)
            stream.write(part)
            filled += len(part)
            if filled == size:
                if digest.hexdigest() != expected.blocks[block]:
                    return block
                advance(size)
                block, filled, digest = block + 1, 0, hashlib.sha256()
    return block
