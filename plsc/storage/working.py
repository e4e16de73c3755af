"""Folders of this machine in which a command works for files and folders of a store.

    <temporary folder>/plsc-<user>/<hash>/<name>     an output; a command that resumes finds it again by its address
    <temporary folder>/plsc-<user>/<random>.in/...   copies of inputs

Each is locked as long as its process runs. What killed processes left is removed by the next command: copies at once,
outputs when nothing has written to them for a week.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional

from plsc.errors import ConfigError
from plsc.machine.files import OLD_SECONDS, is_old
from plsc.machine.locks import LOCK_NAME, FolderInUseError, lock_folder
from plsc.storage.base import COMMIT, StorageError, read_bytes, write_bytes
from plsc.storage.claims import Claim, claiming, next_to
from plsc.storage.local import LOCAL
from plsc.storage.retry import Retrying
from plsc.storage.transfer import Advance, OpenFile, ignore, put, write_file

# The files by which readers know that a folder is complete. Without renaming they appear last.
LAST_FILES = (
    COMMIT,
    "manifest.json",  # embeddings
    "inference_meta.json",  # exports
    "outliers.json",
    "held_out.txt",
    "file_list.txt",
    "base64_manifest.json",
)
_COPY = ".in"
_ADVICE = "run the command again later"


@dataclass
class Workspace:
    """A folder of this machine that a command uses alone.

    Attributes:
        path: The folder.
        stays: Whether it is kept for a later command.
    """

    path: Path
    stays: bool = False

    def clear(self) -> None:
        """Removes what an earlier command has left in the folder."""
        for left in self.path.iterdir():
            if left.name != LOCK_NAME:
                LOCAL.delete(str(left))


class StorePlace(NamedTuple):
    """A place in a store.

    Attributes:
        address: Its address, as the user has written it.
        store: The store.
        path: The path in it.
        claim: What keeps other processes from writing there, once `claimed` has taken it.
    """

    address: str
    store: Retrying
    path: str
    claim: Optional[Claim] = None

    @property
    def converting(self) -> str:
        """The folder in which `plsc data convert` puts a data set together."""
        return converting(self.path)

    @property
    def uploading(self) -> str:
        """The file that marks a folder whose upload has begun, in a store that cannot rename."""
        return _hidden(self.path, "uploading")

    def check(self) -> None:
        """Writes and removes a few bytes in the folder that the output goes to.

        Raises:
            StorageError: The store does not answer, or refuses.
        """
        parent = posixpath.dirname(self.path)
        self.store.mkdirs(parent)
        with probing(self.store, parent):
            pass

    def check_claim(self) -> None:
        """Checks, before anything is written there, that no other process has taken the place over.

        Raises:
            FolderInUseError: Another process has.
            StorageError: The store does not answer, or refuses.
        """
        if self.claim is not None:
            self.claim.check()


@contextlib.contextmanager
def claimed(target: StorePlace) -> Iterator[StorePlace]:
    """Keeps other processes from writing to a place in the `with` block, on this machine and on others.

    Raises:
        FolderInUseError: Another process writes there.
        StorageError: The store does not answer, or refuses.
    """
    with claiming(target.store, next_to(target.path), target.address) as claim:
        yield target._replace(claim=claim)


def converting(path: str) -> str:
    """Returns the hidden folder in which `plsc data convert` puts together what gets a path at the end."""
    return _hidden(path, "converting")


def _hidden(path: str, kind: str) -> str:
    """Returns the path of a hidden file or folder that belongs to another one, in the same folder."""
    folder, name = posixpath.split(path)
    return posixpath.join(folder, f".{name}.{kind}")


@contextlib.contextmanager
def probing(store: Retrying, folder: str) -> Iterator[str]:
    """Writes a small file to a folder, whose path it yields, and removes it at the end."""
    path = posixpath.join(folder, f".plsc.{secrets.token_hex(6)}")
    try:
        write_bytes(store, path, b"plsc")
        yield path
    finally:
        with contextlib.suppress(StorageError):
            store.with_patience(0).delete(path)


def check_new(target: StorePlace) -> None:
    """Checks that nothing stands at a target but what an interrupted upload has left.

    Raises:
        ConfigError: Something does.
    """
    if target.store.status(target.path) is None:
        return
    if target.store.renames or target.store.status(target.uploading) is None:
        raise ConfigError(f"{target.address}: already exists; remove it, or name another place")


def fetch_earlier(target: StorePlace, parts: Sequence[str], local: Path) -> None:
    """Fetches that file of an earlier output which shows whether a command may replace it.

    Args:
        target: Where the output goes.
        parts: What the names of its files have in addition to that of the target, that of the said file last.
        local: Where the command writes the first of them on this machine.

    Raises:
        ConfigError: That file is missing, and others are not.
    """
    found = [part for part in parts if target.store.status(target.path + part) is not None]
    if not found:
        return
    if parts[-1] not in found:
        raise ConfigError(
            f"{target.address}{found[0]}: exists, and no complete output is there; remove it, or name another place"
        )
    local.with_name(local.name + parts[-1]).write_bytes(read_bytes(target.store, target.path + parts[-1]))


def upload(target: StorePlace, local: Path, parts: Sequence[str] = (), advance: Advance = ignore) -> None:
    """Uploads the output of a command; it appears when it is complete.

    A store that cannot rename shows the files of a folder one after the other, with those of `LAST_FILES` at the end.

    Args:
        target: Where it goes.
        local: The folder or file.
        parts: What the names of several files have in addition to that of the target, and of `local`. They replace
            earlier ones. Readers know by the last one that the others are complete.
        advance: Receives the bytes that have been sent.

    Raises:
        ConfigError: Something has appeared there in the meantime.
        StorageError: The store cannot take it.
    """
    store, path = target.store, target.path
    if parts:
        _replace(target, local, parts, advance)
        return
    check_new(target)
    is_marked = not store.renames and local.is_dir()
    if is_marked:
        write_bytes(store, target.uploading, b"")
        store.delete(path)  # what an interrupted upload has left
    put(store, local, path, advance, LAST_FILES)
    if is_marked:
        store.delete(target.uploading)


def _replace(target: StorePlace, local: Path, parts: Sequence[str], advance: Advance) -> None:
    """Uploads files in place of earlier ones; meanwhile the last one is missing."""
    store = target.store
    hidden = f"{secrets.token_hex(6)}.put"
    if len(parts) > 1:
        store.delete(target.path + parts[-1])
    for part in parts:
        file = OpenFile.open(local.with_name(local.name + part))
        passing = _hidden(target.path, hidden) if store.renames else target.path + part
        try:
            write_file(store, passing, file, advance)
            if store.renames:
                store.delete(target.path + part)
                store.rename(passing, target.path + part)
        except BaseException:
            if store.renames:
                with contextlib.suppress(StorageError):
                    store.with_patience(0).delete(passing)
            raise
        finally:
            file.close()


@contextlib.contextmanager
def workspace(key: Optional[str] = None) -> Iterator[Workspace]:
    """Makes a folder for a command, which is removed at the end of the block unless it is to stay.

    Args:
        key: What the folder is for: the next command with that key gets it again if it stays. None makes a folder for
            copies.

    Raises:
        ConfigError: The folder cannot be made, or another process uses it.
    """
    root = _root()
    _sweep(root)
    name = secrets.token_hex(8) + _COPY if key is None else hashlib.sha256(key.encode()).hexdigest()[:16]
    made = Workspace(root / name)
    with contextlib.ExitStack() as lock:
        try:  # `_sweep` of another process may hold a new folder of copies for a moment
            lock.enter_context(lock_folder(made.path, _ADVICE, patience=60 if key is None else 0))
        except FolderInUseError as problem:
            raise ConfigError(str(problem).replace(str(made.path), str(key))) from None
        try:
            yield made
        finally:
            if not made.stays or set(os.listdir(made.path)) <= {LOCK_NAME}:
                shutil.rmtree(made.path, ignore_errors=True)


def _root() -> Path:
    """Returns the folder of this user's workspaces."""
    root = Path(os.path.realpath(tempfile.gettempdir())) / f"plsc-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
    except OSError as problem:
        raise ConfigError(f"{root}: cannot be used ({problem.strerror}); set TMPDIR to another folder") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():  # anybody may make a name in /tmp
        raise ConfigError(f"{root}: belongs to another user; set TMPDIR to another folder")
    return root


def _sweep(root: Path) -> None:
    """Removes what killed processes left."""
    for left in root.iterdir():
        if left.name.endswith(_COPY) or is_old(left, 7 * OLD_SECONDS):
            with contextlib.suppress(ConfigError), lock_folder(left, _ADVICE) as is_protected:
                if is_protected:
                    shutil.rmtree(left, ignore_errors=True)


def name_at(path: str) -> str:
    """Returns what the copy of a path of a store is called on this machine."""
    return posixpath.basename(path.rstrip("/")) or "store"
