"""The folders in which a split is made: for one run at a time, hidden, and published all at once, the manifest last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from plsc.data.base64_index import index_name
from plsc.data.base64_parts import FILE_LIST_NAME, MANIFEST_NAME, SKIPPED_NAME, Manifest, load_manifest
from plsc.errors import ConfigError, DataError
from plsc.machine.json_files import parse_json
from plsc.machine.locks import lock_folder
from plsc.machine.signals import deferred_signals
from plsc.storage.base import DurableStorage, StorageError, read_bytes, write_bytes
from plsc.storage.local import LOCAL

_JOURNAL_NAME = "publishing.json"
_LISTS = (FILE_LIST_NAME, SKIPPED_NAME, MANIFEST_NAME)
_NUMBERED = re.compile(r"base64_(rank_[0-9]+|index_[0-9]+\.npy)")
_TEMPORARY = re.compile(r"(runs|skipped)-[0-9]+|padding|split-([0-9]+|padding)\++|ranks|\.nfs[0-9a-f]+")

logger = logging.getLogger("plsc")


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
        prefix = f".base64_shuffle-{hashlib.sha256(os.fsencode(os.path.realpath(output_dir))).hexdigest()[:12]}-"
        for path in _leftovers(output_dir, prefix):
            discard(LOCAL, output_dir, path)
        if not os.path.samefile(output_dir, tmp_dir):
            for path in _leftovers(tmp_dir, prefix):  # no run keeps its journal there, so that none is believed
                _delete(LOCAL, path)
        with contextlib.ExitStack() as made:
            staging = _make_hidden(output_dir, prefix)
            made.callback(discard, LOCAL, output_dir, staging)
            scratch = _make_hidden(tmp_dir, prefix)
            made.callback(_delete, LOCAL, scratch)
            yield Workspace(output_dir, staging, scratch)


def _make_hidden(folder: str, prefix: str) -> str:
    try:
        return tempfile.mkdtemp(prefix=prefix, dir=folder)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot write there ({error.strerror}); give another folder with --output_dir or --tmp_dir"
        ) from error


def _leftovers(folder: str, prefix: str) -> list[str]:
    """Returns the hidden folders in `folder` that killed runs of this user left.

    Only a folder that no other user can have made or filled is taken for one, and only if the names in it are those
    that this tool gives.
    """
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.startswith(prefix)]
    if not paths:
        return []
    wanted, own = _marks_of_new_folders(folder, prefix), []
    for path in paths:
        if _marks(path) == wanted and all(map(_is_of_tool, os.listdir(path))):
            own.append(path)
        else:
            logger.warning(
                "%s: stays, since a run of another user may have made it; remove it if it is not needed", path
            )
    return own


def _is_output(name: object) -> bool:
    """Returns whether the tool gives such a name to a file of a split."""
    return isinstance(name, str) and (name in _LISTS or _NUMBERED.fullmatch(name) is not None)


def _is_of_tool(name: str) -> bool:
    return name == _JOURNAL_NAME or _is_output(name) or _TEMPORARY.fullmatch(name) is not None


def _marks(path: str) -> tuple[int, int]:
    """Returns the owner and the mode of a file or folder, by which folders of `tempfile.mkdtemp` are recognised."""
    found = os.lstat(path)
    return found.st_uid, stat.S_IFMT(found.st_mode) | (found.st_mode & 0o777)


def _marks_of_new_folders(folder: str, prefix: str) -> tuple[int, int]:
    """Returns the owner and the mode that folders get in `folder`: some network file systems map them to others."""
    try:
        probe = tempfile.mkdtemp(prefix=prefix, dir=folder)
    except OSError:  # a full disk, which the leftovers may be filling
        return os.geteuid(), stat.S_IFDIR | 0o700
    try:
        return _marks(probe)
    finally:
        os.rmdir(probe)


def discard(storage: DurableStorage, output_dir: str, hidden: str) -> None:
    """Removes a hidden folder. If its run was killed while it published its files, those are removed first."""
    names = _published(storage, hidden)
    if names and storage.status(os.path.join(output_dir, MANIFEST_NAME)) is None:
        for name in names:
            _remove_file(storage, os.path.join(output_dir, name))
        storage.sync(output_dir)
    _delete(storage, hidden)


def _delete(storage: DurableStorage, hidden: str) -> None:
    with contextlib.suppress(StorageError):  # the next run tries again
        storage.delete(hidden)


def _published(storage: DurableStorage, hidden: str) -> list[str]:
    """Returns the names in the journal of a hidden folder.

    No file was published without a complete journal. One that holds anything but names of outputs is not by this tool.
    """
    path = os.path.join(hidden, _JOURNAL_NAME)
    found = storage.status(path)
    if found is None or not found.is_file:
        return []
    try:
        names = parse_json(read_bytes(storage, path))
    except ValueError:
        return []
    return names if isinstance(names, list) and all(map(_is_output, names)) else []


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
        DataError: A file of such a name exists that no manifest lists, or that is an input; or a manifest lists files
            that this tool does not write.
    """
    earlier = _names_of(load_manifest(output_dir, storage))
    foreign = [name for name in earlier if not _is_output(name)]
    if foreign:
        raise DataError(
            f"{os.path.join(output_dir, MANIFEST_NAME)}: lists {foreign[0]!r}, which is not a file of this tool; move "
            "the manifest away, or give another folder with --output_dir"
        )
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
