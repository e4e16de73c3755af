"""Checkpoints in a store: the same folders as on a disk, hidden until they are complete, checked when they come back.

All ranks put their files into `.<name>.<run>.<sum>.writing`, where `<sum>` is that of `meta.json`, so that files of two
checkpoints never meet. One rank sees there that all have come, adds `meta.json`, and renames the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Optional

from plsc.checkpoint import folder as layout
from plsc.checkpoint.folder import META, Checkpoint
from plsc.checkpoint.tensor_file import BLOCK_BYTES, DamagedError, FileSum
from plsc.errors import CheckpointError, ConfigError
from plsc.machine.files import sync, write_synced
from plsc.storage import Retrying, StorageError
from plsc.storage.transfer import Advance, OpenFile, each, ignore, write_file

_LEFTOVER = re.compile(r"\.(\d+|step_\d+)\.([0-9a-z]{1,12})\.[0-9a-f]{12}\.(writing|replaced|removed)")
_POLL_SECONDS = 0.5
_THREADS = 4  # each holds a block


@dataclass(frozen=True)
class Remote:
    """A complete checkpoint of a store.

    Attributes:
        path: its folder.
        meta_text: its `meta.json`.
        checkpoint: what that says.
    """

    path: str
    meta_text: bytes
    checkpoint: Checkpoint


def hidden_of(path: str, meta_text: bytes, kind: str = "writing") -> str:
    """Where the checkpoint that will be at `path` is put together."""
    folder, name = posixpath.split(path)
    run = re.sub("[^0-9a-z]", "", str(json.loads(meta_text).get("run", "")))[:12] or "0"
    return posixpath.join(folder, f".{name}.{run}.{hashlib.sha256(meta_text).hexdigest()[:12]}.{kind}")


def upload_files(
    storage: Retrying, path: str, meta_text: bytes, files: Mapping[str, OpenFile], stop: threading.Event
) -> None:
    """One rank's part of the checkpoint that will be at `path`; what has come already is not sent again.

    Raises:
        StorageError: the store could not take it, or `stop` was set.
    """

    def go_on(count: int) -> None:
        if stop.is_set():
            raise StorageError(f"{path}: stopped")

    hidden = hidden_of(path, meta_text)
    storage.mkdirs(hidden)
    there = storage.list(hidden)
    for name, file in files.items():
        if name not in there or there[name].size != file.size:
            write_file(storage, posixpath.join(hidden, name), file, go_on)


def publish(storage: Retrying, path: str, meta_text: bytes, patience: float, stop: threading.Event) -> None:
    """Waits for the files of all ranks and makes the checkpoint appear, in the place of one that stands there.

    Args:
        patience: seconds without any new file after which the other ranks' are given up.

    Raises:
        StorageError: they did not come, or something else stands there.
    """
    checkpoint, hidden = layout.parse_meta(Path(path), meta_text), hidden_of(path, meta_text)
    _wait_for(storage, hidden, {name: one.size for name, one in checkpoint.files.items()}, patience, stop)
    storage.write(posixpath.join(hidden, META), lambda: [meta_text], len(meta_text))
    if storage.status(path) is None:
        storage.rename(hidden, path)
        return
    _check_own(storage, path)
    previous = hidden_of(path, meta_text, "replaced")
    storage.delete(previous)
    storage.rename(path, previous)
    storage.rename(hidden, path)
    storage.delete(previous)


def _wait_for(storage: Retrying, hidden: str, sizes: Mapping[str, int], patience: float, stop: threading.Event) -> None:
    seen: Optional[dict[str, int]] = None
    while True:
        found = {name: status.size for name, status in storage.list(hidden).items()}
        missing = sorted(name for name, size in sizes.items() if found.get(name) != size)
        if not missing:
            return
        if found != seen:
            seen, deadline = found, time.monotonic() + patience
        if time.monotonic() > deadline or stop.wait(_POLL_SECONDS):
            raise StorageError(f"{storage.name}: {hidden}: {', '.join(missing)} did not come from other ranks")


def _check_own(storage: Retrying, path: str) -> None:
    status = storage.status(path)
    names = storage.list(path) if status is not None and status.is_folder else {path: status}
    if not all(map(layout.is_own_file, names)):
        raise StorageError(f"{storage.name}: {path}: something that is not a checkpoint stands there; move it away")


def remove(storage: Retrying, remote: Remote) -> None:
    """Removes a checkpoint: hidden first, so that it is whole or gone. One that holds other files stays."""
    _check_own(storage, remote.path)
    hidden = hidden_of(remote.path, remote.meta_text, "removed")
    storage.delete(hidden)
    storage.rename(remote.path, hidden)
    storage.delete(hidden)


def recover(storage: Retrying, folder: str, run: str) -> list[str]:
    """Puts in order what a killed process of this run left: what was being replaced comes back, the unfinished goes.

    Returns:
        What was done, for the log.
    """
    done = []
    names = storage.list(folder)
    for match in filter(None, map(_LEFTOVER.fullmatch, sorted(names))):
        leftover, place = posixpath.join(folder, match[0]), posixpath.join(folder, match[1])
        if match[2] != run[:12]:
            continue
        if match[3] == "replaced" and match[1] not in names:
            storage.rename(leftover, place)
            done.append(f"{place}: put back, a run ended while it was being replaced")
        else:
            storage.delete(leftover)
            done.append(f"{leftover}: removed, a run ended while it was being written or removed")
    return done


def open_remote(storage: Retrying, path: str) -> Optional[Remote]:
    """The complete checkpoint at `path`; None when there is none.

    Raises:
        CheckpointError: it is damaged, or of another format.
    """
    status = storage.status(path)
    names = storage.list(path) if status is not None and status.is_folder else {}
    if META not in names:
        return None
    meta_text = b"".join(storage.read(posixpath.join(path, META), 0, names[META].size))
    checkpoint = layout.parse_meta(Path(path), meta_text)
    for name, one in checkpoint.files.items():
        if name not in names or names[name].size != one.size:
            raise DamagedError(f"{storage.name}: {path}/{name}: missing or short; use another checkpoint")
    return Remote(path, meta_text, checkpoint)


def list_remote(storage: Retrying, folder: str) -> list[Remote]:
    """The complete checkpoints in a folder, oldest first; what is damaged is left out."""
    status = storage.status(folder)
    if status is None or not status.is_folder:
        return []
    found = []
    for name, child in storage.list(folder).items():
        if child.is_folder and layout.is_checkpoint_name(name):
            try:
                remote = open_remote(storage, posixpath.join(folder, name))
            except CheckpointError:
                continue
            found += [remote] if remote is not None else []
    return sorted(found, key=lambda one: one.checkpoint.written)


def newest(storage: Retrying, folder: str) -> Optional[Remote]:
    """The complete checkpoint in a folder that was written last; None when there is none."""
    return next(reversed(list_remote(storage, folder)), None)


def download(storage: Retrying, remote: Remote, folder: Path, names: Iterable[str], advance: Advance = ignore) -> None:
    """Brings files of a checkpoint into a folder, each hidden until it is whole and has its checksums.

    What is there already is checked instead; a download that was interrupted goes on where it was. `finish_download`
    follows when all files a machine needs are there.

    Raises:
        ConfigError: the folder holds another checkpoint, or cannot be written.
        DamagedError: the store's file is not what `meta.json` says.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        meta = folder / META
        if meta.exists() and meta.read_bytes() != remote.meta_text:
            raise ConfigError(
                f"{folder}: holds another checkpoint than {remote.path}; move it away or name another folder"
            )
        files = remote.checkpoint.files
        each(
            lambda name: _download_file(storage, remote, folder / name, files[name], advance),
            [(name,) for name in names],
            _THREADS,
        )
    except OSError as problem:
        raise ConfigError(f"{folder}: cannot be written ({problem.strerror or problem})") from None


def finish_download(remote: Remote, folder: Path) -> None:
    """Puts `meta.json` there, the mark of a checkpoint."""
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
            raise ConfigError(f"{place}: another file than that of {remote.path}; move it away or name another folder")
        if same:
            advance(expected.size)
            return
    part, source = _part_of(place, remote.meta_text), posixpath.join(remote.path, place.name)
    with open(part, "ab"):
        pass
    with open(part, "r+b") as stream:
        block = _good_blocks(stream, expected)
        advance(min(block * BLOCK_BYTES, expected.size))
        failed = -1
        while block < len(expected.blocks):
            stream.truncate(block * BLOCK_BYTES)
            stream.seek(block * BLOCK_BYTES)
            block = _stream_blocks(storage, source, stream, expected, block, advance)
            if block < len(expected.blocks):
                if failed == block:  # twice the same: it was not the way here
                    raise DamagedError(
                        f"{storage.name}: {source}: its sha256 differs from {META}: the file on the server is damaged; use "
                        "another checkpoint"
                    )
                failed = block
        stream.truncate(expected.size)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(part, place)


def _good_blocks(stream: BinaryIO, expected: FileSum) -> int:
    """How many blocks from the start on are what they must be."""
    for number, digest in enumerate(expected.blocks):
        size = min(BLOCK_BYTES, expected.size - number * BLOCK_BYTES)
        if hashlib.sha256(stream.read(size)).hexdigest() != digest:
            return number
    return len(expected.blocks)


def _stream_blocks(
    storage: Retrying, source: str, stream: BinaryIO, expected: FileSum, block: int, advance: Advance
) -> int:
    """Writes blocks from `block` on, until one has a wrong checksum; returns the number of good ones."""
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
