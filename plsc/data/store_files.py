"""Which files of a folder in a store are read by whoever opens what an address names."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from plsc.data.base64_parts import FILE_LIST_NAME, MANIFEST_NAME
from plsc.data.base64_source import UNSPLIT_LIST, not_split
from plsc.data.folder_tree import check_depth
from plsc.data.image_folders import has_image_suffix, may_be_image
from plsc.data.image_lists import columns_of, read_list
from plsc.data.remote_folder import DATA, PATTERN, RemoteFolder, belongs, size_of
from plsc.data.shard_files import SUBFOLDERS
from plsc.errors import ConfigError, DataError, counted
from plsc.machine.memory import size_text

_LABELS = "label.txt"
_PARTS = ("file_list.txt", FILE_LIST_NAME)  # lists of base64 parts
_CONTAINERS = ("auto", "recordio", "tar", "parquet")
_PAIR_FOLDERS = ("", "images/", "lfw/")  # where the images of a pairs file may be
_MOST_SINGLE = 200_000  # image files, each of which costs three requests and a record in the cache


class NoSuchSetError(DataError):
    """A folder has no test set of a name."""


def check_size(remote: RemoteFolder, files: Sequence[Any]) -> None:
    """Raises ConfigError if files are too many, or have more bytes than the cache."""
    size = size_of(files)
    if size > remote.cache.size:
        raise ConfigError(
            f"{remote.where()}: {counted(len(files), 'file')} with {size_text(size)} are needed at the same time, and "
            f"the data cache {remote.cache.directory} may have {size_text(remote.cache.size)}; give set_data_cache a "
            "larger size, as in --set data_cache='[/ssd/cache, 500GB]'"
        )


def check_number(remote: RemoteFolder, files: Sequence[Any]) -> None:
    """Raises ConfigError if files are too many."""
    if len(files) > _MOST_SINGLE and any(has_image_suffix(file.name) for file in files):
        raise ConfigError(
            f"{remote.where()}: {counted(len(files), 'file')} are too many to be fetched one by one; copy them with "
            f"plsc fs get {remote.place.address.text} FOLDER, and give FOLDER here"
        )


def of_data(remote: RemoteFolder, data_format: str, lists_first: bool = False) -> Iterable[str]:
    """Returns the names of the files that whoever opens a data set, or a collection of images, would read.

    Args:
        remote: The folder, or what is named in it.
        data_format: A name of `sources.FORMATS`, or 'auto'.
        lists_first: Whether a list of base64 parts counts more than the manifest and data of other formats.
    """
    if remote.name:
        return _of_name(remote)
    found = remote.found
    lists = [name for name in _PARTS if name in found]
    if is_split_base64(remote, data_format) and not (lists_first and lists):
        return of_split(remote)
    if _LABELS in found and data_format in ("auto", "jpeg"):
        return _of_list(remote, _LABELS)
    if lists and (data_format == "base64" or lists_first):
        return _of_list(remote, lists[0])
    names = _of_containers(remote, data_format)
    if names:
        return names
    if lists and data_format == "auto":
        return _of_list(remote, lists[0])
    names = [name for name in remote.below("") if may_be_image(name)] if data_format in ("auto", "folder") else []
    if not names:
        raise DataError(
            f"{remote.where()}: holds no data that plsc can read: neither images, nor a {_LABELS} or a list of base64 "
            f"parts, nor files that end in {', '.join(DATA)}; check the address"
        )
    return [*remote.class_lists, *names]


def of_training(remote: RemoteFolder, data_format: str, test_sets: Sequence[str], world_size: int) -> Iterable[str]:
    """Returns the names of the files of a data set to train on, except for base64 data that is split for the ranks.

    Args:
        remote: The folder, or what is named in it.
        data_format: A name of `sources.FORMATS`, or 'auto'.
        test_sets: Names of folders with test sets, which are not trained on.
        world_size: Number of ranks, for a message.

    Raises:
        DataError: There are none, or they are no data to train on.
    """
    if remote.name:
        names = [name for name in remote.found if belongs(name, remote.name)]
        if _has_data(names):
            return names
    elif _LABELS in remote.found and data_format in ("auto", "jpeg"):
        return _of_list(remote, _LABELS)
    elif names := _of_containers(remote, data_format):
        return names
    elif UNSPLIT_LIST in remote.found and data_format in ("auto", "base64"):
        raise not_split(remote.place.address.text, world_size)
    elif data_format in ("auto", "folder") and remote.folders:
        names = [name for name in remote.below("") if "/" in name and may_be_image(name)]
        names = [name for name in names if name.partition("/")[0] not in test_sets]
        flat: dict[bytes, bool] = {}
        for identity, _, rest in (os.fsencode(name).partition(b"/") for name in names):
            flat[identity] = flat.get(identity, False) or b"/" not in rest
        check_depth(remote.place.address.text.rstrip("/"), flat)
        if names:
            return [*remote.class_lists, *names]
    raise DataError(
        f"{remote.where()}: holds no data to train on: no {MANIFEST_NAME}, no {_LABELS}, no files that end in "
        f"{', '.join(DATA)}, and no folders with images; check set_dataset_dir and set_data_format"
    )


def is_split_base64(remote: RemoteFolder, data_format: str) -> bool:
    """Returns whether a folder holds base64 data that is split for the ranks, to be read as such."""
    return MANIFEST_NAME in remote.found and data_format in ("auto", "base64") and not remote.name


def _of_containers(remote: RemoteFolder, data_format: str) -> list[str]:
    """Returns tars, Parquet or RecordIO files, and what belongs to them, in the folder or else in a usual subfolder."""
    if data_format not in _CONTAINERS:
        return []
    names = [name for name in remote.found if belongs(name, "")]
    folders = (one for one in SUBFOLDERS if one in remote.folders)
    while not _has_data(names) and (folder := next(folders, None)):
        names = [name for name in remote.below(folder) if belongs(posixpath.basename(name), "")]
    return names if _has_data(names) else []


def of_file(remote: RemoteFolder) -> list[str]:
    """Returns the name of the file that an address names. Raises DataError if it names a folder or nothing."""
    if not remote.name or not remote.has(remote.name):
        raise DataError(f"{remote.where()}: is no file; name a single one")
    return [remote.name]


def _of_name(remote: RemoteFolder) -> Iterable[str]:
    """Returns the files that belong to a file or to a pattern."""
    name = remote.name
    if name.lower().endswith(DATA) or PATTERN.search(name):
        return [one for one in remote.found if belongs(one, name)]
    if name.endswith(".bin") or has_image_suffix(name):
        return [name]
    return _of_list(remote, name)


def of_split(remote: RemoteFolder) -> list[str]:
    """Returns the files of base64 data that is split for the ranks."""
    return [name for name in remote.found if name.startswith("base64_")] + remote.class_lists


def of_test(remote: RemoteFolder, target: str) -> Iterable[str]:
    """Returns the files of a test set, which is named as in `set_val_targets`.

    Raises:
        NoSuchSetError: There is none.
    """
    folder, stem = posixpath.split(target)
    known = remote.below(folder) if folder else list(remote.found)
    for end in (".bin", ".txt"):
        name = target if target.endswith(end) else f"{target}{end}"
        if name in known:
            return [name] if end == ".bin" else _of_list(remote, name)
    if folder or stem in remote.folders:
        names = [name for name in remote.below(target) if may_be_image(name) or name.endswith(".txt")]
        if names:
            return names
    raise NoSuchSetError(
        f"{remote.where(f'{target}.bin')}: no such test set, nor {target}.txt, nor a folder of images {target}; write "
        "it there, name others with set_val_targets (--targets in plsc test), or train without a test with "
        "set_with_test(False)"
    )


def _of_list(remote: RemoteFolder, name: str) -> Iterable[str]:
    """Returns a list, the files that it names, and the names of the classes. Fetches the list to read it."""
    file = remote.file(name)
    check_size(remote, [file])
    remote.keep([file])
    folder = posixpath.dirname(name)
    below = {posixpath.relpath(one, folder) if folder else one: one for one in remote.below(folder)}
    listed = [below[one] for one in _named(read_list(remote.copy.files / name), below)]
    return [name, *remote.class_lists, *listed]


def _named(lines: Iterable[tuple[int, bytes]], files: Mapping[str, Any]) -> Iterator[str]:
    """Yields the files that the lines of a list name, of whatever kind: images, base64 parts, or pairs.

    A line that names no file may name folders, each of which stands for its images.
    """
    folders: dict[str, list[str]] = {}
    for name in files:
        parent = posixpath.dirname(name)
        while parent:
            folders.setdefault(parent, []).append(name)
            parent = posixpath.dirname(parent)
    for _, line in lines:
        words = [os.fsdecode(line.strip()), *columns_of(line), *columns_of(line, -1)]
        words = list(dict.fromkeys(posixpath.normpath(word) for word in words if word))
        names = [word for word in words if word in files]
        yield from names
        if not names:
            places = (start + word for word in words for start in _PAIR_FOLDERS)
            yield from (name for place in places for name in folders.get(place, ()) if may_be_image(name))


def _has_data(names: Iterable[str]) -> bool:
    return any(name.lower().endswith(DATA) for name in names)
