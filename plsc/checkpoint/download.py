"""Downloads checkpoints from HDFS before training; each folder receives the files that its ranks need."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import posixpath
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Optional, TypeVar

from plsc import checkpoint, parallel
from plsc.checkpoint import remote
from plsc.config import INITS_BY_NAME, Config
from plsc.errors import CheckpointError, ConfigError
from plsc.heads import shard_bounds
from plsc.storage import Retrying, StorageError, StorageUnavailableError, open_hdfs
from plsc.storage.base import place_of
from plsc.storage.retry import retried
from plsc.storage.working import probing

logger = logging.getLogger("plsc")
T = TypeVar("T")


def open_store(config: Config, stop: Optional[threading.Event] = None) -> Optional[Retrying]:
    """Opens the HDFS of `set_hdfs_info`, after checking that it answers and that files can be written there.

    Every rank calls it and connects to the servers itself, because machines may see different networks.

    Args:
        config: The settings.
        stop: Ends the repeated attempts of a transfer when it is set.

    Returns:
        The storage, or None without `set_hdfs_info`.

    Raises:
        StorageError: The servers answer no rank within seconds, or refuse, or some rank does not see what another one
            writes; the same on every rank.
    """
    hdfs = config.hdfs
    if hdfs is None:
        return None
    name, ugi, folder = hdfs.fs_name, hdfs.fs_ugi, hdfs.fs_dir_for_save
    with contextlib.ExitStack() as probes:

        def check() -> tuple[Retrying, str]:
            store = open_hdfs(name, ugi, config.hdfs_client, hdfs.kerberos)
            if folder is None:
                store.status("/")
                return store, ""
            store.mkdirs(folder)
            return store, probes.enter_context(probing(store, folder))

        store, probe = _connected(check, config.hdfs_upload.retry_seconds, stop)
        if folder is not None and parallel.world_size() > 1:
            _check_shared(store, folder, parallel.from_rank_0(lambda: probe, "its connection to HDFS"))
    return store.with_patience(config.hdfs_upload.retry_seconds, stop)


def _connected(check: Callable[[], T], patience: float, stop: Optional[threading.Event]) -> T:
    """Calls `check` on every rank. All fail if the store answers none of them, since its address may be wrong.

    Args:
        check: Connects, and raises StorageUnavailableError if the store does not answer within seconds.
        patience: Seconds for which a rank tries again if the store has answered another one; that one waits as long.
        stop: Ends the attempts when it is set.
    """
    what = "its connection to HDFS"

    def first() -> tuple[Optional[T], Optional[StorageUnavailableError]]:
        try:
            return check(), None
        except StorageUnavailableError as unavailable:
            return None, unavailable

    answer, problem = parallel.together(first, what)
    is_right = parallel.any_rank(problem is None, what)

    def again() -> T:
        if answer is not None:
            return answer
        assert problem is not None
        if not is_right:
            raise problem
        logger.warning("rank %d: %s; the store answers another rank, so this one tries again", parallel.rank(), problem)
        with parallel.working():
            return retried(check, patience, stop)

    return parallel.together(again, what)


def _check_shared(store: Retrying, folder: str, probe: str) -> None:
    """Checks that every rank sees what rank 0 has written; it does not in the memory of a process, or on other disks.

    Raises:
        StorageError: Some rank does not; on every rank.
    """

    def look() -> None:
        if store.status(probe) is None:
            raise StorageError(
                f"{place_of(store, folder)}: rank {parallel.rank()} does not see what rank 0 writes there; all ranks "
                "must share the store that fs_name of set_hdfs_info names"
            )

    parallel.together(look, "its connection to HDFS")


def fetch_checkpoint(config: Config, store: Optional[Retrying] = None) -> None:
    """Downloads the checkpoint in `fs_checkpoint_dir`, or the newest of several, to the folder of `set_checkpoint_dir`.

    All ranks raise the same error.

    Raises:
        StorageError: The checkpoint cannot be read.
        CheckpointError: There is no complete checkpoint, or it is damaged.
        ConfigError: The folder holds another checkpoint.
    """
    if config.hdfs is None or config.hdfs.fs_checkpoint_dir is None:
        return
    source, folder = config.hdfs.fs_checkpoint_dir, Path(config.checkpoint_dir)
    store = store or open_store(config)
    assert store is not None

    def find() -> remote.Remote:
        found = (
            remote.open_remote(store, source)
            or remote.newest(store, source)
            or remote.find_aside(store, source, config.hdfs.fs_dir_for_save)  # type: ignore[union-attr]
        )
        if found is None:
            raise CheckpointError(
                f"{place_of(store, source)}: no complete checkpoint there; set fs_checkpoint_dir to its folder, or to "
                "that of several"
            )
        return found

    remote_checkpoint = parallel.from_rank_0(find, "the search for a checkpoint in HDFS")
    _fetch(config, store, remote_checkpoint, folder, "set_checkpoint_dir", whole=config.head_init in INITS_BY_NAME)


def fetch_newest(
    config: Config, store: Optional[Retrying], save_dir: Path, restart_of: set[str]
) -> Optional[checkpoint.Age]:
    """Downloads the newest checkpoint in `fs_dir_for_save` to the save folder, if the run is to be resumed.

    Nothing is downloaded when every machine has that checkpoint or a newer one. All ranks raise the same error.

    Args:
        config: The settings.
        store: The storage of `set_hdfs_info`; None without one.
        save_dir: The save folder.
        restart_of: After a restart, the names of the `plsc run` commands that have restarted the ranks. What they have
            trained is resumed without `set_resume` too.

    Returns:
        The age of that checkpoint, downloaded or not; None if there is none.

    Raises:
        StorageError: The checkpoint cannot be read.
        CheckpointError: The checkpoint is damaged.
        ConfigError: The folder holds another checkpoint of that name.
    """
    if store is None or config.hdfs is None or config.hdfs.fs_dir_for_save is None:
        return None
    place = config.hdfs.fs_dir_for_save

    found = parallel.from_rank_0(lambda: remote.newest(store, place), "the search for a checkpoint in HDFS")
    if found is None:
        return None
    wanted = config.resume or bool(restart_of.intersection(found.checkpoint.meta.get("launches", ())))
    if wanted and parallel.any_rank(_is_missing(config, found, save_dir), "a look at its checkpoints"):
        _fetch_to_save_dir(config, store, found, save_dir)
    return found.checkpoint.age


def _fetch_to_save_dir(config: Config, store: Retrying, found: remote.Remote, save_dir: Path) -> None:
    """Downloads a checkpoint to the save folder, where it is hidden until it is complete."""
    folder = save_dir / posixpath.basename(found.path)
    # An earlier download of another checkpoint of that name is left alone; `recover` removes it in time.
    hidden = folder.with_name(f".{folder.name}.fetching.{hashlib.sha256(found.meta_text).hexdigest()[:12]}")

    def check() -> None:
        meta = folder / "meta.json"
        if folder.exists() and not (meta.is_file() and meta.read_bytes() == found.meta_text):
            raise ConfigError(f"{folder}: holds another checkpoint than {place_of(store, found.path)}; move it away")

    parallel.together(check, "a look at its checkpoints")
    is_there = folder.exists()
    leads = _fetch(config, store, found, folder if is_there else hidden, "set_model_save_dir")
    if leads and not is_there:
        hidden.rename(folder)
    parallel.meet("the downloaded checkpoint")


def _is_missing(config: Config, found: remote.Remote, save_dir: Path) -> bool:
    """Returns whether this rank lacks files that it needs of a remote checkpoint, and has no newer checkpoint."""
    for folder in checkpoint.list_checkpoints(save_dir):
        try:
            own = checkpoint.open_checkpoint(folder, partial=True)
        except CheckpointError:
            continue
        is_whole = all((folder / name).exists() for name in _needed(config, own, [parallel.rank()]))
        if is_whole and own.age >= found.checkpoint.age:
            return False
    return True


def _fetch(
    config: Config, store: Retrying, found: remote.Remote, folder: Path, setter: str, *, whole: bool = False
) -> bool:
    """Downloads what the ranks of this machine need; ranks that see the same folder share the work.

    Args:
        config: The settings.
        store: The storage.
        found: The checkpoint in it.
        folder: The folder that receives the files.
        setter: The setter that names the folder, for messages.
        whole: Whether every rank needs the whole head, since its classes have other numbers there.

    Returns:
        Whether this rank is the first of those that see the folder.
    """
    leader = checkpoint.leader_of(folder, setter)
    group = [rank for rank, one in enumerate(parallel.all_gather_object(leader, "the folder")) if one == leader]
    needed = sorted(found.checkpoint.files) if whole else _needed(config, found.checkpoint, group)
    own = needed[group.index(parallel.rank()) :: len(group)]
    began, size = time.perf_counter(), sum(found.checkpoint.files[name].size for name in needed)
    logger.info("downloading %s to %s, %.1f MB", place_of(store, found.path), folder, size / 1e6)

    def receive() -> None:
        with parallel.working():  # a machine with a slow network may take longer than ranks wait for each other
            remote.download(store, found, folder, own)

    parallel.together(receive, f"the download of {found.path}")
    leads = leader == parallel.rank()
    parallel.together(lambda: remote.finish_download(found, folder) if leads else None, f"the download of {found.path}")
    logger.info("downloaded; the checksums are right; %.1f s", time.perf_counter() - began)
    return leads


def _needed(config: Config, found: checkpoint.Checkpoint, ranks: list[int]) -> list[str]:
    """Lists the files of a checkpoint that these ranks read."""
    heads = [checkpoint.head_file(number) for number in range(len(found.head_rows))]
    shared = sorted(set(found.files) - set(heads))
    if found.meta["num_classes"] != config.num_classes or not config.is_sharded:
        return [*shared, *heads]
    needed = list(shared)
    for number, classes in enumerate(found.heads):
        own, end = [], 0
        bounds = [shard_bounds(classes, parallel.world_size(), rank) for rank in ranks]
        for file in found.head_files(number):
            begin, end = end, end + found.head_rows[file]
            if any(begin < upper and lower < end for lower, upper in bounds):
                own.append(heads[file])
        needed += own or [heads[found.head_files(number)[0]]]  # a rank without rows reads names and shapes
    return needed
