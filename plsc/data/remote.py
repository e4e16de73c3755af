"""Data sets in a store: what of them is fetched to the cache of this machine, when, and by which rank."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Optional, TypeVar

import numpy as np

from plsc import parallel
from plsc.data import sources
from plsc.data.base64_index import index_name
from plsc.data.base64_parts import MANIFEST_NAME, Manifest, load_manifest
from plsc.data.distant import DistantFolder, mount
from plsc.data.fetched import FetchedRecords, largest_use
from plsc.data.image_folders import has_image_suffix
from plsc.data.place import Place
from plsc.data.records import Opening, Records
from plsc.data.remote_folder import DATA, NAMES, TEXTS, RemoteFolder, belongs, open_folder, size_of
from plsc.data.shard_files import SUBFOLDERS
from plsc.errors import ConfigError, DataError, counted
from plsc.machine.logs import reworded
from plsc.machine.memory import size_text
from plsc.storage.data_cache import RemoteFile

logger = logging.getLogger("plsc")
T = TypeVar("T")

_AHEAD = 2  # files that are fetched ahead of those in use
_CONVERT = (
    "convert the data first, where the files are on a disk: plsc data convert SOURCE OUTPUT --to base64, or --to tar"
)


def open_images(
    place: Place,
    num_classes: Optional[int],
    data_format: str,
    shuffle: Optional[str],
    in_flight: int,
    is_split: bool = True,
) -> tuple[Records, Optional[str]]:
    """Opens the images of a rank in a remote data set. Every rank calls it.

    Split base64 data is fetched file by file while it is read. Data of another format is fetched as a whole before, or
    read in place if it does not fit into the cache.

    Args:
        place: Where the data set is.
        num_classes: Number of classes; None accepts every label.
        data_format: A name of `sources.FORMATS`, or 'auto'.
        shuffle: As in `set_data_format`.
        in_flight: Number of images that a rank reads at about the same time.
        is_split: Whether the ranks share the data. If not, each opens all of it, as rank 0 of 1, for a wrapper that
            draws the images of a rank.

    Returns:
        The images, to be closed by the caller; and the shuffle, which is 'files' if it was not given and the files of
        some machine do not fit into its cache.

    Raises:
        PlscError: The data cannot be had, or does not fit into the cache; the same on every rank.
    """
    stop = threading.Event()
    remote = _together(lambda: open_folder(place, stop), "the list of its data")
    opening = Opening(remote.path, num_classes, shuffle=shuffle, keeps_index=False)  # The cache holds what was fetched.
    if is_split:
        opening = opening._replace(rank=parallel.rank(), world_size=parallel.world_size())
    try:
        if MANIFEST_NAME in remote.found and data_format in ("auto", "base64") and not remote.name:
            return _open_base64(remote, opening, in_flight, stop, is_split)
        files = parallel.together(lambda: _files_of(remote, data_format), "the list of its files")
        if parallel.any_rank(size_of(files) > remote.cache.size, "the size of its cache"):
            return _open_in_place(remote, files, opening, data_format, stop), shuffle
        return _together(lambda: _open_whole(remote, files, opening, data_format), "its data"), shuffle
    except BaseException:
        stop.set()
        remote.copy.close()
        raise


def open_in_order(remote: RemoteFolder, stop: threading.Event) -> Records:
    """Opens split base64 data, to be read once in the order of its files by this process alone.

    Raises:
        ConfigError: The cache is too small for two of the files.
        PlscError: As for `open_images`.
    """
    manifest = _fetch_manifest(remote, 1)
    small = [remote.file(name) for name in (*map(index_name, range(manifest.nranks)), *remote.class_lists)]
    files = [remote.file(made.name, made.sha256) for made in manifest.files]
    remote.keep(small)
    records = sources.FORMATS["base64"].open(Opening(remote.path, is_partial=True))
    others = size_of([*small, remote.file(MANIFEST_NAME)])
    budget = _budget(remote, files, max(file.size for file in files), remote.cache.size - others)
    remote.copy.claim([], budget)
    logger.info(
        "data %s: %s, %s; read in turn, %s of them at a time in %s",
        remote.where(),
        counted(len(files), "file"),
        size_text(size_of(files)),
        size_text(budget),
        remote.cache.directory,
    )
    return FetchedRecords(records, remote.copy, files, budget, remote.where(), stop, in_order=True)


def _open_base64(
    remote: RemoteFolder, opening: Opening, in_flight: int, stop: threading.Event, is_split: bool
) -> tuple[Records, Optional[str]]:
    rank, world_size, shuffle = opening.rank, opening.world_size, opening.shuffle
    manifest = _together(lambda: _fetch_manifest(remote, world_size), "its manifest")
    own = range(rank, manifest.nranks, world_size) if not manifest.nranks % world_size else range(0)
    small = parallel.together(
        lambda: [remote.file(name) for name in (*map(index_name, own), *remote.class_lists)], "its indexes"
    )
    files = [remote.file(manifest.files[number].name, manifest.files[number].sha256) for number in own]
    of_ranks = parallel.all_gather_object(
        (remote.cache.identity, {file.name: file.size for file in (*files, *small)}), "the sizes of its files"
    )
    group = [sizes for identity, sizes in of_ranks if identity == remote.cache.identity]  # of ranks that share a cache
    need = sum({name: size for sizes in group for name, size in sizes.items()}.values())
    # Test sets are fetched later.
    fixed = sum(one.size for name, one in remote.found.items() if name == MANIFEST_NAME or name.endswith(".bin"))
    too_large = need + fixed > remote.cache.size
    if parallel.any_rank(too_large, "the size of its cache"):
        shuffle = parallel.together(lambda: _turning(remote, shuffle, need, is_split), "its shuffle")

    def open_it() -> FetchedRecords:
        remote.keep(small)
        records = sources.FORMATS["base64"].open(opening._replace(shuffle=shuffle, is_partial=True))
        budget = None
        if too_large:
            order = records.files_of(records.epoch_order(0, 0, rank, world_size))
            need = largest_use(order, np.array([file.size for file in files], np.int64), in_flight)
            budget = _budget(remote, files, need, (remote.cache.size - fixed) // len(group) - size_of(small))
        remote.copy.claim([] if too_large else files, budget or 0)
        return FetchedRecords(records, remote.copy, files, budget, remote.where(), stop, working=parallel.working)

    fetched = _together(open_it, "its data")
    logger.info(
        "data %s: %d files, %s for this rank; %s",
        remote.where(),
        len(files),
        size_text(size_of(files)),
        f"read in turn, {size_text(fetched.budget)} of them at a time in {remote.cache.directory}"
        if fetched.budget
        else f"all of them are kept in {remote.cache.directory}",
    )
    return fetched, shuffle


def _together(action: Callable[[], T], what: str) -> T:
    """Calls what a store may take long for on every rank; see `parallel.together`. The ranks wait until it is done."""

    def work() -> T:
        with parallel.working():
            return action()

    return parallel.together(work, what)


def _fetch_manifest(remote: RemoteFolder, world_size: int) -> Manifest:
    """Fetches the manifest, and compares it with what the folder holds."""
    file = remote.file(MANIFEST_NAME)
    remote.keep([file])
    manifest = load_manifest(str(remote.copy.files))
    assert manifest is not None
    for number, made in enumerate(manifest.files):
        found = remote.found.get(made.name)
        if found is None or found.size != made.bytes:
            what = (
                "is missing"
                if found is None
                else f"has {counted(found.size, 'byte')}, but the manifest says {made.bytes}"
            )
            raise DataError(f"{remote.where(made.name)}: {what}; write the split data there again")
        if index_name(number) not in remote.found:
            raise DataError(
                f"{remote.where(index_name(number))}: is missing, and without it the whole file would be fetched to "
                "find its lines; write it there too, or split the data again"
            )
    if manifest.nranks % world_size:
        raise DataError(
            f"{remote.where(MANIFEST_NAME)}: the data is split for {manifest.nranks} ranks and cannot be shared by "
            f"{world_size}; split it again, with --nranks={world_size} or a multiple of it"
        )
    return manifest


def _turning(remote: RemoteFolder, shuffle: Optional[str], need: int, is_split: bool) -> str:
    """Returns the shuffle of files that do not fit into the cache. Raises ConfigError if the settings rule it out."""
    if not is_split:
        raise ConfigError(
            f"{remote.where()}: to draw by classes, to count their images or to leave images out, a machine keeps all "
            f"files, {size_text(need)}, but the data cache has {size_text(remote.cache.size)}; give set_data_cache a "
            "larger size, or do without set_sampler, set_class_weights, set_class_margins and "
            "set_dataset_dir(exclude=...)"
        )
    if shuffle in (None, "files"):
        return "files"
    raise ConfigError(
        f"set_data_format: shuffle={shuffle!r} reads all files at the same time, {size_text(need)} on this machine, "
        f"but the data cache has {size_text(remote.cache.size)}; leave shuffle out, choose 'files', or give "
        "set_data_cache a larger size"
    )


def _budget(remote: RemoteFolder, files: Sequence[RemoteFile], need: int, most: int) -> int:
    """Returns how many bytes of files a rank keeps at a time.

    Args:
        remote: The data set.
        files: The files of the rank.
        need: Bytes of the files that are in use at the same time.
        most: The share of the rank in the cache.

    Raises:
        ConfigError: That is not enough.
    """
    largest = max(file.size for file in files)
    if need + largest > most:
        raise ConfigError(
            f"set_data_cache: {size_text(remote.cache.size)} is too small: each rank needs "
            f"{size_text(need + largest)} for the files of up to {size_text(largest)} that it reads at a time; give a "
            "larger size, or split the data into more files, with a larger multiple of the ranks as --nranks"
        )
    return min(most, need + _AHEAD * largest)


def _files_of(remote: RemoteFolder, data_format: str) -> list[RemoteFile]:
    """Returns the files of a data set. Raises DataError if they are none to train on."""
    files = [remote.file(name) for name in sorted(remote.found) if belongs(name, remote.name)]
    if all(file.name in NAMES or file.name.endswith(TEXTS) for file in files):
        raise _unsuitable(remote, data_format)
    return files


def _open_whole(remote: RemoteFolder, files: Sequence[RemoteFile], opening: Opening, data_format: str) -> Records:
    """Fetches all files of a data set, and opens it as one of this machine."""
    remote.keep(files, begin=len(files) * parallel.rank() // parallel.world_size())
    remote.copy.forget_others(remote.found, lambda name: "/" not in name and belongs(name, remote.name))
    with reworded(remote.named):
        records = _open_at(opening.path, opening, data_format)
    records.on_close = weakref.finalize(records, remote.copy.close)
    return records


def _open_in_place(
    remote: RemoteFolder, files: Sequence[RemoteFile], opening: Opening, data_format: str, stop: threading.Event
) -> Records:
    """Opens files that do not fit into the cache, to be read in place. The order of an epoch is that of a disk."""
    folder = _together(lambda: mount(remote, files, stop, parallel.working), "its lists and indexes")
    path = os.path.join(folder.root, remote.name)
    identities = parallel.all_gather_object(remote.cache.identity, "the caches of the ranks")
    is_first = identities.index(remote.cache.identity) == parallel.rank()

    def make_index() -> None:
        """Makes the indexes, which the other ranks of this machine find next to the data."""
        if is_first:
            with reworded(remote.named):
                _open_at(path, opening._replace(rank=0, world_size=1, keeps_index=True), data_format)

    def open_it() -> Records:
        with reworded(remote.named):
            records = _open_at(path, opening._replace(keeps_index=False), data_format)
        records.on_close = weakref.finalize(records, _close, folder, remote)
        return records

    try:
        _together(make_index, "the indexes of its files")
        return _together(open_it, "its data")
    except BaseException:
        folder.close()
        raise


def _close(folder: DistantFolder, remote: RemoteFolder) -> None:
    folder.close()
    remote.copy.close()


def _open_at(path: str, opening: Opening, data_format: str) -> Records:
    return sources.open_images(
        path,
        opening.num_classes,
        opening.rank,
        opening.world_size,
        data_format=data_format,
        shuffle=opening.shuffle,
        keeps_index=opening.keeps_index,
    )


def _unsuitable(remote: RemoteFolder, data_format: str) -> DataError:
    single = [name for name in remote.found if has_image_suffix(name) or name == "label.txt"]
    usual = next((name for name in SUBFOLDERS if name in remote.folders), None)
    if usual is not None and not single and not remote.name:
        address = f"{remote.place.address.text.rstrip('/')}/{usual}"
        return DataError(
            f"{remote.where()}: holds no training data itself, but a folder {usual}; call set_dataset_dir({address!r})"
        )
    if single or (remote.folders and not remote.found) or data_format in ("jpeg", "folder"):
        what = f"holds {single[0]}" if single else "holds folders"
        return DataError(
            f"{remote.where()}: {what}, and single image files cannot be fetched fast enough to train on them; "
            f"{_CONVERT}"
        )
    return DataError(
        f"{remote.where()}: holds no training data that can be fetched: no {MANIFEST_NAME}, and no files that end in "
        f"{', '.join(DATA)}; check set_dataset_dir"
    )
