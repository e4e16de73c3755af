"""Data sets in a store: what of them is fetched to the cache of this machine, when, and by which rank."""

from __future__ import annotations

import logging
import posixpath
import re
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Optional

import numpy as np

from plsc import parallel
from plsc.data import sources
from plsc.data.base64_index import index_name
from plsc.data.base64_parts import MANIFEST_NAME, Manifest, load_manifest
from plsc.data.fetched import STREAMS, FetchedRecords, Progress, largest_use
from plsc.data.image_folders import has_image_suffix
from plsc.data.place import Place
from plsc.data.records import Opening, Records
from plsc.data.shard_files import SUBFOLDERS
from plsc.errors import ConfigError, DataError, counted
from plsc.machine.memory import size_text
from plsc.storage import LocalStorage, Retrying, open_hdfs
from plsc.storage.address import is_foreign_address
from plsc.storage.base import Status, StorageError, place_of
from plsc.storage.data_cache import CachedFolder, DataCache, RemoteFile
from plsc.storage.transfer import each
from plsc.storage.working import Target

logger = logging.getLogger("plsc")

_POLL_SECONDS = 0.25
_SMALL, _SMALL_STREAMS = 1_000_000, 8  # of small files more are fetched at a time
_AHEAD = 2  # files that are fetched ahead of those in use
_PATTERN = re.compile(r"[*?\[{]")
# What data sets are made of. Anything else in a folder of a server is left there.
_DATA, _TEXTS = (".tar", ".parquet", ".rec", ".idx"), (".lst", ".json")
_SUFFIXES = (*_DATA, *_TEXTS)
_NAMES = ("property", "classes.txt")
_CONVERT = (
    "convert the data first, where the files are on a disk: plsc data convert SOURCE OUTPUT --to base64, or --to tar"
)


def open_store(place: Place, stop: threading.Event) -> Retrying:
    """Opens the store of a data set.

    The HDFS of `set_hdfs_info` serves the data sets of its hosts: its address may name the port of WebHDFS, and its
    password belongs to its gateway. Another HDFS gets the name of the user alone, or a Kerberos ticket, with which it
    can do nothing elsewhere. Object stores of one kind share the credentials.

    Raises:
        ConfigError: The address cannot be read.
        StorageError: The store does not answer, or refuses.
    """
    address = place.address
    if address.scheme == "file":
        return Retrying(LocalStorage(), 0.0)
    is_known = place.fs_name is not None and address.is_served_by(place.fs_name)
    is_hdfs = place.fs_name is not None and not is_foreign_address(place.fs_name)
    if not (address.host or address.is_object or is_hdfs or place.client is not None):
        raise ConfigError(
            f"set_dataset_dir({address.text!r}): names no server; write hdfs://host:port/path, or call set_hdfs_info"
        )
    if address.is_object:
        store = open_hdfs(address.server, place.fs_ugi if is_known else None)
    elif is_known or place.client is not None:
        store = open_hdfs(place.fs_name, place.fs_ugi, place.client, place.kerberos)
    else:
        user = (place.fs_ugi or "").partition(",")[0] if is_hdfs else ""
        kerberos = place.kerberos if is_hdfs else None
        store = open_hdfs(address.server, f"{user}," if user else None, kerberos=kerberos)
    return store.with_patience(place.patience, stop)


class _Remote:
    """A data set that is being opened.

    Args:
        place: Where it is.
        stop: Ends what waits for the store.
    """

    def __init__(self, place: Place, stop: threading.Event) -> None:
        self.place, self._stop = place, stop
        self.store = open_store(place, stop)
        path = place.address.path
        found = self.store.status(path)
        if found is not None and found.is_folder:
            self.folder, self.name = path, ""
        else:  # a file, or a pattern of files
            self.folder, self.name = posixpath.split(path)
            if found is None and not _PATTERN.search(self.name):
                raise DataError(f"{self.where()}: no such file or folder; check set_dataset_dir")
        if not self.store.renames and self.store.status(Target("", self.store, self.folder).converting) is not None:
            raise DataError(f"{self.where()}: plsc data convert has not finished it; run that command again")
        listed = self.store.list(self.folder)
        self.found = {name: one for name, one in listed.items() if one.is_file}
        self.folders = [name for name, one in listed.items() if one.is_folder]
        self.cache = DataCache(place.cache_dir, place.cache_size)
        self.copy = CachedFolder(self.cache, self.store, self.folder)

    def where(self, name: str = "") -> str:
        """Returns what messages call the data set, or a file of it."""
        return place_of(self.store, posixpath.join(self.place.address.path, name) if name else self.place.address.path)

    @property
    def path(self) -> str:
        """The path of the data set on this machine."""
        return str(self.copy.files / self.name)

    def file(self, name: str, sha256: Optional[str] = None) -> RemoteFile:
        """Returns a file of the folder."""
        status: Status = self.found[name]
        return RemoteFile(name, status.size, status.modified, sha256)

    def fetch_all(self, files: Sequence[RemoteFile], begin: int = 0) -> None:
        """Fetches files that are claimed, except for those that other ranks of this machine fetch: waits for these.

        Args:
            files: The files.
            begin: The file to begin with, so that ranks share the work.
        """
        left = [*files[begin:], *files[:begin]]
        total = sum(file.size for file in files if not self.copy.is_whole(file))
        if not total:
            return
        logger.info(
            "fetching %s (%s) of %s to %s",
            counted(len(files), "file"),
            size_text(total),
            self.where(),
            self.cache.directory,
        )
        progress = Progress(self.where(), total)
        while left:
            done: set[str] = set()

            def fetch(file: RemoteFile) -> None:
                if self.copy.try_fetch(file, progress.add):
                    done.add(file.name)  # noqa: B023 - it is called at once

            streams = STREAMS if total > _SMALL * len(files) else _SMALL_STREAMS
            each(self.store, fetch, [(file,) for file in left], streams)
            left = [file for file in left if file.name not in done]
            if left and self._stop.wait(_POLL_SECONDS):
                raise StorageError(f"{self.where()}: stopped")
        logger.info("%s; all of them are whole", progress.line())


def open_images(
    place: Place,
    num_classes: Optional[int],
    data_format: str,
    shuffle: Optional[str],
    in_flight: int,
    is_split: bool = True,
) -> tuple[Records, Optional[str]]:
    """Opens the images of a rank in a remote data set. Every rank calls it.

    Split base64 data is fetched file by file while it is read. Data of another format is fetched as a whole before.

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
    remote = parallel.together(lambda: _Remote(place, stop), "the list of its data")
    opening = Opening(remote.path, num_classes, shuffle=shuffle)
    if is_split:
        opening = opening._replace(rank=parallel.rank(), world_size=parallel.world_size())
    try:
        if MANIFEST_NAME in remote.found and data_format in ("auto", "base64") and not remote.name:
            return _open_base64(remote, opening, in_flight, stop, is_split)
        return parallel.together(lambda: _open_whole(remote, opening, data_format), "its data"), shuffle
    except BaseException:
        stop.set()
        remote.copy.close()
        raise


def fetch_test_sets(place: Place, targets: str) -> str:
    """Fetches the `.bin` test sets of a remote data set; returns the folder of this machine that holds them.

    Every rank calls it. The files stay claimed as long as this process lives.

    Args:
        place: Where the data set is.
        targets: Names of the sets, separated by commas.

    Raises:
        PlscError: A set is missing, or cannot be fetched; the same on every rank.
    """
    stop = threading.Event()

    def fetch() -> str:
        remote = _Remote(place, stop)
        names = [target.strip() for target in targets.split(",") if target.strip()]
        names = [name if name.endswith(".bin") else f"{name}.bin" for name in names]
        for name in names:
            if name not in remote.found:
                raise DataError(
                    f"{remote.where(name)}: no such test set; test sets of remote data are .bin files: write it there, "
                    "name others with set_val_targets, or train without a test with set_with_test(False)"
                )
        files = [remote.file(name) for name in names]
        remote.copy.claim(files)
        _TESTED.append(remote.copy)
        remote.fetch_all(files)
        return str(remote.copy.files)

    while _TESTED:
        _TESTED.pop().close()
    return parallel.together(fetch, "its test sets")


_TESTED: list[CachedFolder] = []  # the claim on the test sets of the last action


def _open_base64(
    remote: _Remote, opening: Opening, in_flight: int, stop: threading.Event, is_split: bool
) -> tuple[Records, Optional[str]]:
    rank, world_size, shuffle = opening.rank, opening.world_size, opening.shuffle
    manifest = parallel.together(lambda: _fetch_manifest(remote, world_size), "its manifest")
    own = range(rank, manifest.nranks, world_size) if not manifest.nranks % world_size else range(0)
    small = parallel.together(lambda: [remote.file(index_name(number)) for number in own], "its indexes")
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
        remote.copy.claim(small)
        remote.fetch_all(small)
        records = sources.FORMATS["base64"].open(opening._replace(shuffle=shuffle, is_partial=True))
        budget = None
        if too_large:
            order = records.files_of(records.epoch_order(0, 0, rank, world_size))
            need = largest_use(order, np.array([file.size for file in files], np.int64), in_flight)
            budget = _budget(remote, files, need, (remote.cache.size - fixed) // len(group) - _size(small))
        remote.copy.claim([] if too_large else files, budget or 0)
        return FetchedRecords(records, remote.copy, files, budget, remote.where(), stop)

    fetched = parallel.together(open_it, "its data")
    logger.info(
        "data %s: %d files, %s for this rank; %s",
        remote.where(),
        len(files),
        size_text(_size(files)),
        f"read in turn, {size_text(fetched.budget)} of them at a time in {remote.cache.directory}"
        if fetched.budget
        else f"all of them are kept in {remote.cache.directory}",
    )
    return fetched, shuffle


def _fetch_manifest(remote: _Remote, world_size: int) -> Manifest:
    """Fetches the manifest, and compares it with what the folder holds."""
    file = remote.file(MANIFEST_NAME)
    remote.copy.claim([file])
    remote.fetch_all([file])
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


def _turning(remote: _Remote, shuffle: Optional[str], need: int, is_split: bool) -> str:
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


def _budget(remote: _Remote, files: Sequence[RemoteFile], need: int, most: int) -> int:
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


def _open_whole(remote: _Remote, opening: Opening, data_format: str) -> Records:
    """Fetches all files of a data set, and opens it as one of this machine."""
    files = [remote.file(name) for name in sorted(remote.found) if _belongs(name, remote.name)]
    if all(file.name in _NAMES or file.name.endswith(_TEXTS) for file in files):
        raise _unsuitable(remote, data_format)
    size = _size(files)
    if size > remote.cache.size:
        raise ConfigError(
            f"{remote.where()}: its {len(files)} files have {size_text(size)}, and the data cache "
            f"{size_text(remote.cache.size)}; all of them are needed, because only base64 data is read file by file: "
            "give set_data_cache a larger size, or convert the data to base64 that is split into many files"
        )
    remote.copy.claim(files)
    remote.fetch_all(files, begin=len(files) * parallel.rank() // parallel.world_size())
    remote.copy.forget_others(remote.found, lambda name: _belongs(name, remote.name))
    records = sources.open_images(
        opening.path,
        opening.num_classes,
        opening.rank,
        opening.world_size,
        data_format=data_format,
        shuffle=opening.shuffle,
        keeps_index=False,  # The cache holds only what was fetched.
    )
    records.on_close = weakref.finalize(records, remote.copy.close)
    return records


def _belongs(name: str, wanted: str) -> bool:
    """Returns whether a file of a folder belongs to its data set, or to the part of it that a name or pattern names."""
    stem = _PATTERN.split(wanted)[0]
    if wanted and stem == wanted:
        stem = posixpath.splitext(wanted)[0] + "."
    return name in _NAMES or (name.startswith(stem) and name.lower().endswith(_SUFFIXES)) or name == wanted


def _unsuitable(remote: _Remote, data_format: str) -> DataError:
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
        f"{', '.join(_DATA)}; check set_dataset_dir"
    )


def _size(files: Iterable[RemoteFile]) -> int:
    return sum(file.size for file in files)
