"""Data sets in a store: what of them is fetched to the cache of this machine, when, and by which rank."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Optional, TypeVar

import numpy as np

from plsc import parallel
from plsc.data import sources
from plsc.data.base64_index import index_name
from plsc.data.base64_parts import MANIFEST_NAME, Manifest, load_manifest
from plsc.data.distant import DistantFolder, is_distant, mount
from plsc.data.fetched import FetchedRecords, largest_use
from plsc.data.place import Place
from plsc.data.records import Opening, Records, RenamedRecords
from plsc.data.remote_folder import RemoteFolder, open_folder, size_of
from plsc.data.store_files import check_number, is_split_base64, of_split, of_training
from plsc.errors import ConfigError, DataError, counted
from plsc.machine.logs import reworded
from plsc.machine.memory import size_text
from plsc.storage.data_cache import RemoteFile

logger = logging.getLogger("plsc")
T = TypeVar("T")

_AHEAD = 2  # files that are fetched ahead of those in use


class _Set(NamedTuple):
    """A data set that is being opened.

    Attributes:
        remote: The folder that holds it.
        files: Its files.
        is_split: Whether it is base64 data that is split for the ranks.
        stop: Ends what waits for the store.
    """

    remote: RemoteFolder
    files: list[RemoteFile]
    is_split: bool
    stop: threading.Event


def open_images(
    place: Place,
    num_classes: Optional[int],
    data_format: str,
    shuffle: Optional[str],
    in_flight: int,
    is_split: bool = True,
    accepts_missing: bool = False,
    test_sets: Sequence[str] = (),
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
        accepts_missing: Whether image files may be missing.
        test_sets: Names of test sets in the same folder, which are not trained on.

    Returns:
        The images, to be closed by the caller; and the shuffle, which is 'files' if it was not given and the files of
        some machine do not fit into its cache.

    Raises:
        PlscError: The data cannot be had, or does not fit into the cache; the same on every rank.
    """
    opening = _opening(num_classes, shuffle, accepts_missing, test_sets)
    if is_split:
        opening = opening._replace(rank=parallel.rank(), world_size=parallel.world_size())
    with contextlib.ExitStack() as undo:
        (one,) = _find([place], data_format, test_sets, undo)
        if one.is_split:
            found = _open_base64(one, opening, in_flight, is_split)
        else:
            (fits,) = _fit([one], test_sets)
            found = _open_files(one, opening, data_format, fits), shuffle
        undo.pop_all()
    return found


def open_several(
    places: Sequence[Place],
    data_format: str,
    shuffle: Optional[str],
    accepts_missing: bool = False,
    test_sets: Sequence[str] = (),
) -> list[Records]:
    """Opens several remote data sets, each as rank 0 of 1, for a wrapper that draws the images of a rank.

    They share the cache. Split base64 data is kept there. Sets of other formats are fetched as a whole before, the
    first of the list first, as long as they fit; the others are read in place. Every rank calls it.

    Args:
        places: Where they are.
        data_format: A name of `sources.FORMATS`, or 'auto'.
        shuffle: As in `set_data_format`.
        accepts_missing: Whether image files may be missing.
        test_sets: Names of test sets in the same folders, which are not trained on.

    Returns:
        The images of each set, to be closed by the caller.

    Raises:
        PlscError: A set cannot be had, or what must be kept does not fit into the cache; the same on every rank.
    """
    opening, records = _opening(None, shuffle, accepts_missing, test_sets), []
    with contextlib.ExitStack() as undo:
        found = _find(places, data_format, test_sets, undo)
        for one, fits in zip(found, _fit(found, test_sets)):
            if one.is_split:
                records.append(_open_base64(one, opening, in_flight=0, is_split=False)[0])
            else:
                records.append(_open_files(one, opening, data_format, fits))
            undo.callback(records[-1].close)
        undo.pop_all()
    return records


def _opening(
    num_classes: Optional[int], shuffle: Optional[str], accepts_missing: bool, test_sets: Sequence[str]
) -> Opening:
    """Returns how data is opened, but for its path. The cache holds what was fetched, and no index."""
    return Opening(
        "",
        num_classes,
        shuffle=shuffle,
        accepts_missing=accepts_missing,
        test_sets=test_sets,
        keeps_index=False,
    )


def _find(
    places: Sequence[Place], data_format: str, test_sets: Sequence[str], undo: contextlib.ExitStack
) -> list[_Set]:
    """Lists the files of data sets. `undo` gives up what they claim."""
    stops = [threading.Event() for _ in places]
    remotes = _together(lambda: list(map(open_folder, places, stops)), "the list of its data")
    for remote, stop in zip(remotes, stops):
        undo.callback(remote.copy.close)
        undo.callback(stop.set)

    def files_of(remote: RemoteFolder) -> list[RemoteFile]:
        if is_split_base64(remote, data_format):
            names: Iterable[str] = of_split(remote)
        else:
            names = of_training(remote, data_format, test_sets, parallel.world_size())
        files = [remote.file(name) for name in sorted(dict.fromkeys(names))]
        check_number(remote, files)
        return files

    of_sets = _together(lambda: list(map(files_of, remotes)), "the list of its files")
    are_split = [is_split_base64(remote, data_format) for remote in remotes]
    return list(map(_Set, remotes, of_sets, are_split, stops))


def _fit(sets: Sequence[_Set], test_sets: Sequence[str]) -> list[bool]:
    """Returns whether each data set is fetched as a whole, rather than read in place: the same on every rank.

    What cannot be read in place goes first into the cache; what is left is for the files of the first sets.

    Raises:
        ConfigError: The cache is too small for what cannot be read in place.
    """

    def fit() -> list[bool]:
        cache = sets[0].remote.cache
        near = [size_of(file for file in one.files if not is_distant(file.name)) for one in sets]
        if sum(near) > cache.size:
            parts = [f"{size_text(size)} of {one.remote.where()}" for one, size in zip(sets, near) if size]
            others = ", or convert split base64 data to tar" if any(one.is_split for one in sets) else ""
            raise ConfigError(
                f"set_data_cache: {size_text(cache.size)} is too small for what cannot be read in place: "
                f"{', '.join(parts)}; give a larger size{others}"
            )
        left = cache.size - sum(near) - sum(_test_bytes(one, test_sets) for one in sets)
        fits = []
        for one, size in zip(sets, near):
            more = size_of(one.files) - size
            fits.append(not more or more <= left)
            left -= more if fits[-1] else 0
        return fits

    of_ranks = parallel.all_gather_object(_together(fit, "the size of its cache"), "the size of its cache")
    return [all(of_set) for of_set in zip(*of_ranks)]


def _test_bytes(one: _Set, test_sets: Sequence[str]) -> int:
    """Returns the bytes of those test sets of a data set that are single files; they are fetched later."""
    return sum(file.size for name, file in one.remote.found.items() if name.removesuffix(".bin") in test_sets)


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
    return FetchedRecords(
        records, remote.copy, files, budget, name=remote.where(), named=remote.named, stop=stop, in_order=True
    )


def _open_base64(one: _Set, opening: Opening, in_flight: int, is_split: bool) -> tuple[Records, Optional[str]]:
    """Opens split base64 data, to be fetched file by file while it is read; see `open_images`."""
    remote, stop, opening = one.remote, one.stop, opening._replace(path=one.remote.path)
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
        return FetchedRecords(
            records,
            remote.copy,
            files,
            budget,
            name=remote.where(),
            named=remote.named,
            stop=stop,
            working=parallel.working,
        )

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
            f"{remote.where()}: to mix data sets, to draw by classes, to count their images or to leave images out, a "
            f"machine keeps all files, {size_text(need)}, but the data cache has {size_text(remote.cache.size)}; give "
            "set_data_cache a larger size, or do without several data sets, set_sampler, set_class_weights, "
            "set_class_margins and set_dataset_dir(exclude=...)"
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


def _open_files(one: _Set, opening: Opening, data_format: str, fits: bool) -> Records:
    """Opens data of another format: fetches it as a whole if it fits into the cache, or else has it read in place."""
    if fits:
        return _together(lambda: _open_whole(one, opening, data_format), "its data")
    return _open_in_place(one, opening, data_format)


def _open_whole(one: _Set, opening: Opening, data_format: str) -> Records:
    """Fetches all files of a data set, and opens it as one of this machine."""
    remote, files = one.remote, one.files
    remote.keep(files, begin=len(files) * parallel.rank() // parallel.world_size())
    remote.forget_others()
    with reworded(remote.named):
        records = RenamedRecords(_open_at(remote.path, opening, data_format), remote.named)
    records.on_close = weakref.finalize(records, remote.copy.close)
    return records


def _open_in_place(one: _Set, opening: Opening, data_format: str) -> Records:
    """Opens files that do not fit into the cache, to be read in place. The order of an epoch is that of a disk."""
    remote = one.remote
    folder = _together(lambda: mount(remote, one.files, one.stop, parallel.working), "its lists and indexes")
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
            records = _open_at(path, opening, data_format)
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
        accepts_missing=opening.accepts_missing,
        test_sets=opening.test_sets,
        keeps_index=opening.keeps_index,
    )
