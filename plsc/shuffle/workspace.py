"""Where a split is made: one run at a time, in hidden folders, put in place all together, the manifest last."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from plsc.data.base64_index import index_name
from plsc.data.base64_parts import FILE_LIST_NAME, MANIFEST_NAME, SKIPPED_NAME, Manifest, load_manifest
from plsc.errors import ConfigError, DataError
from plsc.storage.local_files import LOCAL, Files, Status

_LOCK_NAME = ".base64_shuffle.lock"
_JOURNAL_NAME = "publishing.json"


@dataclass(frozen=True)
class Workspace:
    """The folders of one run.

    `output` is where the outputs go, `staging` a hidden folder in it where they are made, `scratch` one for temporary
    files; `lock` is the descriptor that keeps other runs out; `files` is where the folders are.
    """

    output: str
    staging: str
    scratch: str
    lock: int = -1
    files: Files = LOCAL


@contextlib.contextmanager
def open_workspace(output_dir: str, tmp_dir: str) -> Iterator[Workspace]:
    """Makes the folders of a run, having removed what a killed one left, and removes them at the end.

    Raises ConfigError when a folder cannot be used, or when another run works on `output_dir`.
    """
    _make_folder(output_dir)
    if not os.path.isdir(tmp_dir):
        raise ConfigError(f"{tmp_dir}: no such folder; make it, or give another with --tmp_dir")
    with _locked(output_dir) as lock:
        # The name tells whose it is: several outputs may share a folder for temporary files.
        prefix = f".base64_shuffle-{hashlib.sha256(os.path.realpath(output_dir).encode()).hexdigest()[:12]}-"
        for folder in {os.path.realpath(output_dir), os.path.realpath(tmp_dir)}:
            _remove_leftovers(output_dir, folder, prefix)
        made: list[str] = []
        try:
            for folder in (output_dir, tmp_dir):
                made.append(_make_hidden(folder, prefix))
            yield Workspace(output_dir, made[0], made[1], lock)
        finally:
            for folder in made:
                discard(LOCAL, output_dir, folder)


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot make the folder ({error.strerror}); give another with --output_dir"
        ) from error


def _make_hidden(folder: str, prefix: str) -> str:
    try:
        return tempfile.mkdtemp(prefix=prefix, dir=folder)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot write there ({error.strerror}); give another folder with --output_dir or --tmp_dir"
        ) from error


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[int]:
    path = os.path.join(folder, _LOCK_NAME)
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(
                f"{folder}: cannot write there ({error.strerror}); give another folder with --output_dir"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(
                f"{folder}: another run is writing there; wait for it, or give another folder with --output_dir"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(f"{path}: cannot lock ({error.strerror}); choose a folder on another disk") from error
        # The run that held the lock may have removed the file between the two calls.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(descriptor)


def _remove_leftovers(output_dir: str, folder: str, prefix: str) -> None:
    with os.scandir(folder) as entries:
        left = [
            entry.path for entry in entries if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False)
        ]
    for path in left:
        discard(LOCAL, output_dir, path)


def discard(files: Files, output_dir: str, hidden: str) -> None:
    """Removes a hidden folder and, if it was stopped while its files were put in place, those files first."""
    journal = os.path.join(hidden, _JOURNAL_NAME)
    if files.exists(journal) and not files.exists(os.path.join(output_dir, MANIFEST_NAME)):
        for name in json.loads(files.read(journal)):
            files.remove(os.path.join(output_dir, name))
        files.sync(output_dir)
    files.remove_folder(hidden)


def check_targets(output_dir: str, names: Sequence[str], inputs: Sequence[str], files: Files = LOCAL) -> list[str]:
    """Checks that outputs may be put in place; returns the names of an earlier split, which will go.

    Args:
        names: of the files to be written.
        inputs: paths that must not be replaced.

    Raises:
        DataError: a file of such a name stands there that no manifest owns, or that is an input.
    """
    earlier = _names_of(load_manifest(output_dir, files))
    read = {files.status(path).identity for path in inputs if files.exists(path)}
    for name in {*names, *earlier}:
        path = os.path.join(output_dir, name)
        if not files.exists(path):
            continue
        try:
            status = files.status(path)
        except OSError:  # a link that leads nowhere
            status = Status(None, False, 0, 0)
        if status.identity in read:
            raise DataError(
                f"{path}: an input, and the new files would replace it; give another folder with --output_dir"
            )
        if name not in earlier or not status.is_file:
            raise DataError(f"{path}: not made by this tool; move it away, or give another folder with --output_dir")
    return earlier


def _names_of(manifest: Manifest | None) -> list[str]:
    if manifest is None:
        return []
    indexes = map(index_name, range(manifest.nranks))
    return [*(file.name for file in manifest.files), *indexes, FILE_LIST_NAME, SKIPPED_NAME, MANIFEST_NAME]


def finish(workspace: Workspace, manifest: Manifest, names: Sequence[str], earlier: Sequence[str]) -> None:
    """Writes the list of files and the manifest, and puts all in place; `names` are the staged files and the list."""
    listed = "".join(f"{file.name}\n" for file in manifest.files)
    workspace.files.write(os.path.join(workspace.staging, FILE_LIST_NAME), listed.encode())
    workspace.files.write(os.path.join(workspace.staging, MANIFEST_NAME), manifest.to_json().encode())
    publish(workspace, [*names, MANIFEST_NAME], earlier)


def publish(workspace: Workspace, names: Sequence[str], earlier: Sequence[str]) -> None:
    """Puts the staged files `names`, the manifest the last of them, in the place of `earlier` ones.

    A reader looks for the manifest first, so it sees the earlier split, none, or the new one. The journal tells a run
    that comes after a kill which files belong to no manifest.
    """
    assert names[-1] == MANIFEST_NAME
    with _undisturbed():
        _publish(workspace, names, earlier)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Lets signals wait: outputs that are half in place would have to be removed.

    By handlers, not a mask: a mask is one thread's, and a signal goes to any thread that takes it.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers run in the main thread only
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])


def _publish(workspace: Workspace, names: Sequence[str], earlier: Sequence[str]) -> None:
    files, output, staging = workspace.files, workspace.output, workspace.staging
    files.write(os.path.join(staging, _JOURNAL_NAME), json.dumps(sorted({*names, *earlier})).encode())
    files.sync(staging)
    for name in [MANIFEST_NAME, *(name for name in earlier if name not in names)]:
        files.remove(os.path.join(output, name))
        if name == MANIFEST_NAME:
            files.sync(output)
    for name in names:
        if name == MANIFEST_NAME:
            files.sync(output)
        files.rename(os.path.join(staging, name), os.path.join(output, name))
    files.sync(output)


def check_disk(output_dir: str, output_bytes: int, tmp_dir: str, tmp_bytes: int) -> None:
    """Raises DataError, saying how much is needed, when the disks have too little space free."""
    needs = {output_dir: output_bytes, tmp_dir: tmp_bytes}
    if os.stat(output_dir).st_dev == os.stat(tmp_dir).st_dev:
        needs = {output_dir: output_bytes + tmp_bytes}
    for folder, need in needs.items():
        free = shutil.disk_usage(folder).free
        if free < need:
            raise DataError(
                f"{folder}: needs {need / 1e9:.3f} GB free ({output_bytes / 1e9:.3f} for the outputs, "
                f"{tmp_bytes / 1e9:.3f} for temporary files), and has {free / 1e9:.3f}; free some space, or give other "
                "disks with --output_dir and --tmp_dir"
            )
