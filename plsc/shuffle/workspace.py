"""The folders in which a split is made: for one run at a time, hidden, and published all at once, the manifest last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from plsc.data.base64_index import index_name
from plsc.data.base64_parts import FILE_LIST_NAME, MANIFEST_NAME, SKIPPED_NAME, Manifest, load_manifest
from plsc.errors import ConfigError, DataError
from plsc.machine.locks import lock_folder
from plsc.machine.signals import deferred_signals
from plsc.storage.base import DurableStorage, StorageError, read_bytes, write_bytes
from plsc.storage.local import LOCAL

_JOURNAL_NAME = "publishing.json"


@dataclass(frozen=True)
class Workspace:
    """The folders of one run.

    Attributes:
        output: The folder for the outputs.
        staging: A hidden folder in it, in which they are made.
        scratch: A hidden folder for temporary files.
        storage: The store that holds these folders.
    """

    output: str
    staging: str
    scratch: str
    storage: DurableStorage = LOCAL

    def write(self, name: str, data: bytes) -> None:
        """Writes a small file into the staging folder. Raises DataError."""
        path = os.path.join(self.staging, name)
        try:
            write_bytes(self.storage, path, data)
        except StorageError as error:
            raise DataError(
                f"{path}: cannot write ({error.reason}); free some space, check quota and permissions, or give another "
                "folder with --output_dir"
            ) from error


@contextlib.contextmanager
def open_workspace(output_dir: str, tmp_dir: str) -> Iterator[Workspace]:
    """Makes the folders of a run after it has removed what a killed run left, and removes them at the end.

    Raises:
        ConfigError: A folder cannot be used, or another run works on `output_dir`.
    """
    with lock_folder(output_dir, "give another folder with --output_dir"):
        if not os.path.isdir(tmp_dir):
            raise ConfigError(f"{tmp_dir}: no such folder; make it, or give another with --tmp_dir")
        # The name says which output a folder belongs to: several outputs may share a folder for temporary files.
        prefix = f".base64_shuffle-{hashlib.sha256(os.path.realpath(output_dir).encode()).hexdigest()[:12]}-"
        for folder in {os.path.realpath(output_dir), os.path.realpath(tmp_dir)}:
            _remove_leftovers(output_dir, folder, prefix)
        made: list[str] = []
        try:
            for folder in (output_dir, tmp_dir):
                made.append(_make_hidden(folder, prefix))
            yield Workspace(output_dir, made[0], made[1])
        finally:
            for folder in made:
                discard(LOCAL, output_dir, folder)


def _make_hidden(folder: str, prefix: str) -> str:
    try:
        return tempfile.mkdtemp(prefix=prefix, dir=folder)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot write there ({error.strerror}); give another folder with --output_dir or --tmp_dir"
        ) from error


def _remove_leftovers(output_dir: str, folder: str, prefix: str) -> None:
    with os.scandir(folder) as entries:
        left = [
            entry.path for entry in entries if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False)
        ]
    for path in left:
        discard(LOCAL, output_dir, path)


def discard(storage: DurableStorage, output_dir: str, hidden: str) -> None:
    """Removes a hidden folder. If its run was killed while it published its files, those are removed first."""
    names = _published(storage, hidden)
    if names and storage.status(os.path.join(output_dir, MANIFEST_NAME)) is None:
        for name in names:
            _remove_file(storage, os.path.join(output_dir, name))
        storage.sync(output_dir)
    with contextlib.suppress(StorageError):  # the next run tries again
        storage.delete(hidden)


def _published(storage: DurableStorage, hidden: str) -> list[str]:
    """Returns the names in the journal of a hidden folder. Without a complete journal no file was published."""
    path = os.path.join(hidden, _JOURNAL_NAME)
    if storage.status(path) is None:
        return []
    try:
        return json.loads(read_bytes(storage, path))
    except ValueError:
        return []


def _remove_file(storage: DurableStorage, path: str) -> None:
    """Removes a file if it exists, but nothing else of that name: to delete a folder is to delete all that is in it."""
    found = storage.status(path)
    if found is not None and found.is_file:
        storage.delete(path)


def check_targets(
    output_dir: str, names: Sequence[str], inputs: Sequence[str], storage: DurableStorage = LOCAL
) -> list[str]:
    """Checks that the outputs may be put in place. Returns the names of an earlier split, which they replace.

    Args:
        output_dir: The folder for the outputs.
        names: The names of the files to be written.
        inputs: Paths that must not be replaced.
        storage: The store that holds all of them.

    Raises:
        DataError: A file of such a name exists that no manifest lists, or that is an input.
    """
    earlier = _names_of(load_manifest(output_dir, storage))
    read = {found.identity for found in map(storage.status, inputs) if found is not None}
    for name in {*names, *earlier}:
        path = os.path.join(output_dir, name)
        found = storage.status(path)
        if found is None:
            continue
        if found.is_file and found.identity in read:
            raise DataError(
                f"{path}: is an input that the new files would replace; give another folder with --output_dir"
            )
        if name not in earlier or not found.is_file:
            raise DataError(
                f"{path}: was not made by this tool; move it away, or give another folder with --output_dir"
            )
    return earlier


def _names_of(manifest: Manifest | None) -> list[str]:
    if manifest is None:
        return []
    indexes = map(index_name, range(manifest.nranks))
    return [*(file.name for file in manifest.files), *indexes, FILE_LIST_NAME, SKIPPED_NAME, MANIFEST_NAME]


def finish(workspace: Workspace, manifest: Manifest, names: Sequence[str], earlier: Sequence[str]) -> None:
    """Writes the list of files and the manifest, and publishes everything.

    Args:
        workspace: The folders of the run.
        manifest: The description of the split.
        names: The names of the staged files and of the list of files.
        earlier: The names of an earlier split.
    """
    workspace.write(FILE_LIST_NAME, "".join(f"{file.name}\n" for file in manifest.files).encode())
    workspace.write(MANIFEST_NAME, manifest.to_json().encode())
    with deferred_signals():  # outputs of which half are in place would have to be removed
        _publish(workspace, [*names, MANIFEST_NAME], earlier)


def _publish(workspace: Workspace, names: Sequence[str], earlier: Sequence[str]) -> None:
    """Replaces the files of an earlier split with the staged files `names`, of which the manifest is the last.

    A reader looks for the manifest first, so that it sees the earlier split, none, or the new one. The journal tells
    the run that follows a kill which files belong to no manifest.
    """
    storage, output, staging = workspace.storage, workspace.output, workspace.staging
    workspace.write(_JOURNAL_NAME, json.dumps(sorted({*names, *earlier})).encode())
    storage.sync(staging)
    _remove_file(storage, os.path.join(output, MANIFEST_NAME))
    storage.sync(output)
    for name in earlier:
        _remove_file(storage, os.path.join(output, name))
    for name in names:
        if name == MANIFEST_NAME:
            storage.sync(output)
        storage.rename(os.path.join(staging, name), os.path.join(output, name))
    storage.sync(output)


def check_disk(output_dir: str, output_bytes: int, tmp_dir: str, tmp_bytes: int) -> None:
    """Raises DataError, with the sizes, if the disks have too little free space."""
    needs = {output_dir: output_bytes, tmp_dir: tmp_bytes}
    if os.stat(output_dir).st_dev == os.stat(tmp_dir).st_dev:
        needs = {output_dir: output_bytes + tmp_bytes}
    for folder, need in needs.items():
        free = LOCAL.free(folder)
        if free < need:
            raise DataError(
                f"{folder}: needs {need / 1e9:.3f} GB free ({output_bytes / 1e9:.3f} for the outputs, "
                f"{tmp_bytes / 1e9:.3f} for temporary files), and has {free / 1e9:.3f}; free some space, or give other "
                "disks with --output_dir and --tmp_dir"
            )
