"""Uploads checkpoints to HDFS while training continues.

Every rank uploads what is on its machine; the checkpoint becomes visible when all of it is there. Rank 0, which sees to
that and removes earlier ones, holds a claim on the folder for all ranks, so that no other training uploads there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import posixpath
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from plsc import checkpoint, parallel
from plsc.checkpoint import remote
from plsc.engine.callbacks import Callback, Run
from plsc.errors import CheckpointError, ConfigError, counted
from plsc.machine.locks import FolderInUseError
from plsc.machine.signals import StopRequest
from plsc.storage import Retrying, StorageError, StorageUnavailableError, claims
from plsc.storage.base import place_of
from plsc.storage.transfer import OpenFile

logger = logging.getLogger("plsc")

_POLL_SECONDS = 0.25
_MOST_WAITING = 2  # one upload that runs, and one that waits for it
_SECONDS_TO_RELEASE = 5.0


@dataclass
class _Upload:
    """The upload of one checkpoint.

    Attributes:
        folder: Folder of the checkpoint on this machine.
        meta_text: Content of its `meta.json`.
        files: This rank's part, open, so that it can still be read after the checkpoint has been removed here.
        kept: Names of the checkpoints that stay in the store; None keeps all.
        error: Why the upload failed; None when it has not.
        done: Set when the upload has ended.
    """

    folder: Path
    meta_text: bytes
    files: dict[str, OpenFile]
    kept: Optional[set[str]]
    error: Optional[StorageError] = None
    done: threading.Event = field(default_factory=threading.Event)


class Uploader(Callback):
    """The callback that uploads checkpoints to a folder of a store.

    Args:
        store: The store; it repeats failed attempts until `stop` is set.
        place: The folder in the store.
        when: When to upload, as in `Entry.set_hdfs_upload`.
        stop: Set when training ends.
    """

    def __init__(self, store: Retrying, place: str, when: str, stop: threading.Event) -> None:
        self._store, self._place, self._when, self._stop = store, place, when, stop
        self._is_stopping: Callable[[], bool] = lambda: False
        self._stop_request = StopRequest()
        self._uploads: list[_Upload] = []
        self._published: dict[str, remote.Remote] = {}  # checkpoints of this run, known to rank 0
        self._others_are_aside = False  # known to rank 0
        self._claim: Optional[claims.Claim] = None  # rank 0 has it, inside the block of `claiming`

    def end_waiting_if(self, is_stopping: Callable[[], bool], request: StopRequest) -> None:
        """Has the waiting for uploads at the end of training end with the program once `is_stopping` returns True.

        Args:
            is_stopping: Tells whether some rank has been asked to end.
            request: What the exit status comes from.
        """
        self._is_stopping, self._stop_request = is_stopping, request

    @contextlib.contextmanager
    def claiming(self) -> Iterator[None]:
        """Keeps other trainings from uploading to the folder in the `with` block, which every rank enters.

        Raises:
            FolderInUseError: Another training uploads there; on every rank.
            StorageError: The store does not answer, or refuses; on every rank.
        """
        place, advice = place_of(self._store, self._place), "choose another folder with set_hdfs_info"
        with contextlib.ExitStack() as stack:

            def take() -> None:
                with parallel.working():  # it takes a minute to see that a process of another machine has died
                    claim = claims.claiming(self._store, claims.inside(self._place), place, advice)
                    self._claim = stack.enter_context(claim)
                    self._claim.check()

            parallel.from_rank_0(take, "the claim on the folder of uploads")
            try:
                yield
            finally:
                self._stop.set()
                held = (stack.pop_all(),)
                releasing = threading.Thread(target=self._release, args=held, name="plsc-upload", daemon=True)
                releasing.start()
                releasing.join(_SECONDS_TO_RELEASE)

    def _release(self, held: contextlib.ExitStack) -> None:
        """Gives up the claim once no thread of this training writes to the folder any more."""
        for one in self._uploads:
            one.done.wait()
        held.close()

    def _check_claim(self) -> None:
        """Checks on rank 0 that the folder still belongs to this training, before something is moved or replaced there.

        Raises:
            StorageError: Another training has taken it over, or the store does not answer.
        """
        try:
            if self._claim is not None:
                self._claim.check()
        except FolderInUseError as problem:
            raise StorageError(str(problem)) from None

    def on_train_begin(self, run: Run) -> None:
        """Finds out what an earlier process of this run has uploaded, and cleans up what it left unfinished."""

        def learn() -> None:
            self._check_claim()  # again, since the store may have taken long for the claim of another training
            if not run.checkpoints:
                return
            name = _run_of(_meta_text(run.checkpoints[-1]))
            for line in remote.recover(self._store, self._place, name):
                logger.warning("%s", line)
            for one in remote.list_remote(self._store, self._place):
                if one.checkpoint.meta.get("run") == name:
                    self._published[posixpath.basename(one.path)] = one

        parallel.from_rank_0(learn, "the list of the checkpoints in HDFS")

    def on_save(self, run: Run, folder: Path) -> None:
        """Starts to upload the checkpoint, if it is not to be uploaded at the end only."""
        if self._when == "step" or (self._when == "epoch" and folder.name.isdigit()):
            if parallel.any_rank(sum(not one.done.is_set() for one in self._uploads) >= _MOST_WAITING, "the uploads"):
                logger.warning("%s is not uploaded yet: the uploads before it are still running", folder)
            else:
                self._start(run, folder)

    def on_train_end(self, run: Run) -> None:
        """Waits for the running uploads, and uploads every checkpoint that is wanted and missing.

        Raises:
            SystemExit: SIGTERM or Ctrl-C has come to some rank; no rank waits any longer.
            StorageError: Some checkpoint could not be uploaded; on every rank.
        """
        newest_first = list(reversed(run.checkpoints))
        wanted = [one for one in newest_first if self._when != "epoch" or one.name.isdigit() or one is newest_first[0]]
        self._finish()
        left, problem = [], None
        for folder in wanted:
            if self._is_published(folder):
                continue
            if not isinstance(problem, StorageUnavailableError):  # otherwise the next upload would wait in vain too
                self._start(run, folder)
                self._finish()
                errors = [one.error for one in self._uploads if one.folder == folder]
                problem = (
                    next(filter(None, parallel.all_gather_object(errors[-1], f"the upload of {folder.name}")), None)
                    or problem
                )
            if not self._is_published(folder):
                left.append(folder)
        if left:
            place = place_of(self._store, self._place)
            raise StorageError(
                f"NOT UPLOADED to {place}: {', '.join(map(str, left))}, which are complete on disk. {problem}. Upload "
                "them with `plsc fs put`, or by running the script again with set_resume(True)"
            )

    def hurry(self, run: Run, seconds: float) -> None:
        """Tries to upload the newest checkpoint within some seconds, because the machine is about to be taken away."""
        folder = run.checkpoints[-1]
        if not any(one.folder == folder for one in self._uploads):
            self._start(run, folder)
        self._wait(seconds)
        if parallel.from_rank_0(lambda: folder.name in self._published, f"the upload of {folder.name}"):
            logger.info("uploaded %s in time", folder)
        else:
            logger.warning("NOT UPLOADED to %s in time: %s", place_of(self._store, self._place), folder)

    def close(self) -> None:
        """Gives up the running uploads."""
        self._stop.set()
        for one in self._uploads:
            if not one.done.is_set():
                place = place_of(self._store, self._place)
                logger.warning("NOT UPLOADED to %s: %s, because training ended first", place, one.folder)

    def _start(self, run: Run, folder: Path) -> None:
        """Starts an upload in the background; every rank calls it."""
        meta_text, loss = parallel.from_rank_0(
            lambda: (_meta_text(folder), None if self._claim is None else self._claim.loss),
            f"the checkpoint {folder.name}",
        )
        names = checkpoint.parse_meta(folder, meta_text).files
        present = [name for name in names if (folder / name).exists()]
        holders = parallel.all_gather_object(present, f"its files of the checkpoint {folder.name}")
        if loss is None:
            files, error = _opened(folder, names, holders)
        else:
            files, error = {}, StorageError(loss)
        kept = {one.name for one in run.checkpoints} if run.config.keep_checkpoints else None
        upload = _Upload(folder, meta_text, files, kept, error)
        threading.Thread(target=self._run, args=(upload, list(self._uploads)), name="plsc-upload", daemon=True).start()
        self._uploads = [*(one for one in self._uploads if not one.done.is_set()), upload]

    def _run(self, upload: _Upload, before: Sequence[_Upload]) -> None:
        """Runs an upload after those before it, in a thread; it must not talk to other ranks but through the store."""
        for one in before:
            one.done.wait()
        try:
            if upload.error is not None:
                raise upload.error
            with parallel.working():
                self._transfer(upload)
        except StorageError as problem:
            upload.error = problem
            if not self._stop.is_set():
                logger.warning("%s could not be uploaded: %s", upload.folder, problem)
        finally:
            for file in upload.files.values():
                file.close()
            upload.done.set()

    def _transfer(self, upload: _Upload) -> None:
        path, began = posixpath.join(self._place, upload.folder.name), time.perf_counter()
        remote.upload_files(self._store, path, upload.meta_text, upload.files, self._stop)
        if parallel.rank() != 0:
            return
        self._check_claim()
        self._set_others_aside(upload)
        patience, silence = 2 * self._store.patience, parallel.silence_of_others
        remote.publish(self._store, path, upload.meta_text, patience, self._stop, silence, check=self._check_claim)
        found = checkpoint.parse_meta(Path(path), upload.meta_text)
        seconds, size = time.perf_counter() - began, sum(one.size for one in found.files.values())
        logger.info(
            "uploaded %s to %s, %.1f MB in %.1f s", upload.folder, place_of(self._store, path), size / 1e6, seconds
        )
        self._published[upload.folder.name] = remote.Remote(path, upload.meta_text, found)
        for name in sorted(set(self._published) - (set(self._published) if upload.kept is None else upload.kept)):
            self._check_claim()
            remote.remove(self._store, self._published.pop(name))

    def _set_others_aside(self, upload: _Upload) -> None:
        """Moves the checkpoints of other runs aside before the first of this run could replace one of them."""
        if self._others_are_aside:
            return
        target, count = remote.set_aside(self._store, self._place, _run_of(upload.meta_text))
        self._others_are_aside = True
        if count:
            logger.warning(
                "%s held an earlier run, with %s; it is now in %s",
                place_of(self._store, self._place),
                counted(count, "checkpoint"),
                place_of(self._store, target),
            )

    def _finish(self) -> None:
        """Waits for all uploads of all ranks. A signal to one of them ends that, and the program of each with it."""
        waited = parallel.all_gather_object(self._wait(math.inf), "its uploads")
        folder = next(filter(None, waited), None)
        if folder is not None:
            logger.warning(
                "stopped by %s while it was uploaded; run the script again with set_resume(True), or use "
                "`plsc fs put`: %s",
                self._stop_request.name,
                folder,
            )
            raise SystemExit(128 + self._stop_request.number)

    def _wait(self, seconds: float) -> Optional[Path]:
        """Waits for this rank's uploads. Returns the one that a signal has ended the wait for, unless time is short."""
        deadline = time.monotonic() + seconds
        for one in self._uploads:
            while not one.done.wait(max(0.0, min(_POLL_SECONDS, deadline - time.monotonic()))):
                if math.isinf(seconds) and self._is_stopping():
                    return one.folder
                if time.monotonic() >= deadline:
                    break
        return None

    def _is_published(self, folder: Path) -> bool:
        """Returns whether the store has the checkpoint that is in `folder` now."""
        known = self._published.get(folder.name)
        return parallel.from_rank_0(
            lambda: known is not None and known.meta_text == _meta_text(folder), f"the upload of {folder.name}"
        )


def _opened(
    folder: Path, names: Iterable[str], holders: Sequence[Sequence[str]]
) -> tuple[dict[str, OpenFile], Optional[StorageError]]:
    """Opens the files of a checkpoint that this rank uploads. Returns them by name, and what is wrong with others.

    Args:
        folder: The checkpoint.
        names: All its files.
        holders: For each rank, those that are on its machine.
    """
    files, error = {}, None
    for name in names:
        owner = _owner_of(name, holders)
        if owner is None:
            error = StorageError(f"{folder}: no machine of this run has {name}")
        elif owner == parallel.rank():
            try:
                files[name] = OpenFile.open(folder / name)
            except ConfigError as problem:
                error = StorageError(str(problem))
    return files, error


def _owner_of(name: str, holders: Sequence[Sequence[str]]) -> Optional[int]:
    """Returns which rank uploads a file: the one that wrote it, or else the first whose machine has it."""
    ranks = [rank for rank, names in enumerate(holders) if name in names]
    number = checkpoint.head_number(name)  # each rank writes a shard of each head
    writer = None if number is None else number % len(holders)
    return writer if writer in ranks else ranks[0] if ranks else None


def _run_of(meta_text: bytes) -> str:
    return str(json.loads(meta_text)["run"])


def _meta_text(folder: Path) -> bytes:
    try:
        return (folder / checkpoint.META).read_bytes()
    except OSError as problem:
        raise CheckpointError(f"{folder}: cannot be read ({problem.strerror or problem})") from None
