"""Claims on places in stores, which keep two machines from writing to one of them at the same time.

A store may have no locks, and no renaming that fails where something stands already. A claim therefore is a small file:
`.<name>.claim` next to a place that is to be made, `.plsc.claim` in a folder that exists. Its holder writes it again
every few seconds. Who finds a claim watches it: one that changes is held, and one that does not was left by a process
that has died. No clock is compared with that of another machine. Where two processes write their claims at once, the
last one to write has the place: each waits a little, and reads what stands there before it writes anything else.

A process whose claim was removed or replaced has lost the place for good, since another one may have written there in
the meantime. A claim that cannot be parsed is no loss: a failed writing leaves one in HDFS and on disks, and somebody
may be writing it at this moment. Its holder writes it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import posixpath
import re
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any, Optional

from plsc.machine.json_files import as_object, parse_json
from plsc.machine.locks import FolderInUseError
from plsc.storage.base import Status, Storage, StorageError, read_bytes, write_bytes
from plsc.storage.retry import Retrying

_REFRESH_SECONDS, _SILENT_SECONDS = 5.0, 60.0
# At least; an answer of the store that takes longer makes it more. An object store has many servers: the file of one
# process may take longer than that of another.
_SETTLE_SECONDS, _OBJECTS_SETTLE_SECONDS = 0.5, 2.0
_POLL_SECONDS, _QUIET_SECONDS, _RELEASE_SECONDS = 1.0, 1.0, 3.0
_MOST_BYTES, _ATTEMPTS = 1000, 5
_INSIDE = ".plsc.claim"
_NAME = re.compile(r"\..+\.claim", re.DOTALL)

logger = logging.getLogger("plsc")


class Claim:
    """A claim on a place.

    Args:
        store: The store.
        path: The file of the claim.
        place: What messages call the place.
        advice: What to do, other than to wait, when another process has the place.

    Attributes:
        loss: Why this process no longer has the place; None as long as that is not known.
    """

    def __init__(self, store: Retrying, path: str, place: str, advice: str) -> None:
        self._store, self._path, self._place, self._advice = store, path, place, advice
        self._token, self._count, self._settled = secrets.token_hex(16), 0, 0.0
        self._since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self._using, self._ended = threading.Lock(), threading.Event()
        self.loss: Optional[str] = None

    def take(self) -> None:
        """Writes the claim, and keeps it up in a thread.

        Raises:
            FolderInUseError: Another process holds the place.
            StorageError: The store does not answer, or refuses.
        """
        earlier = self._read(self._store)
        if earlier is not None:
            self._outlast(earlier)
            self._store.delete(self._path)  # HDFS may let another user remove a file that it does not let him replace
        self._write(self._store, None)
        threading.Thread(target=self._keep_up, name="plsc-claim", daemon=True).start()

    def check(self) -> None:
        """Checks that this process still has the place.

        Raises:
            FolderInUseError: Another process has taken it over.
            StorageError: The store does not answer, or refuses.
        """
        for _ in range(_ATTEMPTS):
            time.sleep(max(0.0, self._settled - time.monotonic()))
            with self._using:
                found = self._read(self._store)
                if self._has_lost(found):
                    raise FolderInUseError(str(self.loss))
                if self._is_own(found):
                    return
                self._write(self._store, found)
        raise StorageError(f"{self._place}: the store does not return what was written there; check the server")

    def release(self) -> None:
        """Removes the claim. A store that does not answer keeps it, and is not waited for long."""
        self._ended.set()
        store = self._store.with_patience(0)

        def remove() -> None:
            with self._using, contextlib.suppress(StorageError):
                if self._is_own(self._read(store)):
                    store.delete(self._path)

        thread = threading.Thread(target=remove, name="plsc-claim", daemon=True)
        thread.start()
        thread.join(_RELEASE_SECONDS)

    def _outlast(self, earlier: str) -> None:
        """Waits until the claim of another process is gone, or must be that of a dead one."""
        holder, began, is_reported = _holder(earlier), time.monotonic(), False
        entered = began
        while time.monotonic() - began < _SILENT_SECONDS and not _has_ended(earlier):
            if not is_reported and time.monotonic() - entered >= _QUIET_SECONDS:
                is_reported = True
                logger.info(
                    "%s: %s may be writing there; waiting up to %.0f s to see", self._place, holder, _SILENT_SECONDS
                )
            time.sleep(_POLL_SECONDS)
            asked = time.monotonic()
            found = self._read(self._store)
            if found is None:
                return
            if found != earlier:
                held = found if _parsed(found) else earlier  # it may be writing the claim at this moment
                raise FolderInUseError(
                    f"{self._place}: {_holder(held)} {_what_it_does(held)}; wait for it to end, or {self._advice}"
                )
            if time.monotonic() - asked > _REFRESH_SECONDS:  # the store may have kept the holder from writing too
                began = time.monotonic()
        logger.info("%s: %s was writing there, and has ended; taking over", self._place, holder)

    def _keep_up(self) -> None:
        """Writes the claim again and again, until it is released or lost."""
        store = self._store.with_patience(0, self._ended)
        while not self._ended.wait(_REFRESH_SECONDS):
            # While the store is down, nobody else can take the place; what the command does there reports it.
            with self._using, contextlib.suppress(StorageError):
                if self._ended.is_set() or self._has_lost(found := self._read(store)):
                    return
                self._write(store, found)

    def _read(self, store: Retrying) -> Optional[str]:
        """Returns what the file holds; None if there is none."""
        found = store.status(self._path)
        if found is None:
            return None
        try:
            return read_bytes(store, self._path).decode("utf-8", "replace") if found.size <= _MOST_BYTES else ""
        except StorageError:
            if store.status(self._path) is None:  # its holder has just removed it
                return None
            raise

    def _write(self, store: Retrying, found: Optional[str]) -> None:
        """Writes the claim where `found` is. Unless that is this claim, `check` then waits until it is settled."""
        began = time.monotonic()
        self._count += 1
        about = {  # `is_claim` knows a claim by some of these
            "token": self._token,
            "holder": f"process {os.getpid()} on {platform.node()}",
            "machine": _machine(),
            "process": os.getpid(),
            "start": _start_of(os.getpid()),
            "since": self._since,
            "count": self._count,
        }
        write_bytes(store, self._path, json.dumps(about).encode())
        if not self._is_own(found):
            now = time.monotonic()
            self._settled = now + max(_SETTLE_SECONDS if store.renames else _OBJECTS_SETTLE_SECONDS, 3 * (now - began))

    def _is_own(self, text: Optional[str]) -> bool:
        return text is not None and _parsed(text).get("token") == self._token

    def _has_lost(self, found: Optional[str]) -> bool:
        """Returns whether this process has lost the place; what was found there may show it."""
        if self.loss is None and (found is None or (_parsed(found) and not self._is_own(found))):
            what = "the claim of this process was removed"
            if found is not None:
                what = f"{_holder(found)} has taken the place of this process there"
            self.loss = f"{self._place}: {what}; start again when nothing else writes there, or {self._advice}"
        return self.loss is not None


def next_to(path: str) -> str:
    """Returns the file of the claim on a place that is to be made."""
    folder, name = posixpath.split(path)
    return posixpath.join(folder, f".{name}.claim")


def inside(folder: str) -> str:
    """Returns the file of the claim on a folder that exists. The folder above it may belong to another user."""
    return posixpath.join(folder, _INSIDE)


def is_claim(storage: Storage, path: str, found: Status) -> bool:
    """Returns whether a file is a claim. The file of a user may be named like one on a place that is to be made.

    Args:
        storage: The store, which is asked for what such a file holds.
        path: The file.
        found: Its status.
    """
    name = posixpath.basename(path)
    if name == _INSIDE:
        return True
    if _NAME.fullmatch(name) is None or not found.is_file or found.size > _MOST_BYTES:
        return False
    try:
        text = read_bytes(storage, path).decode("utf-8", "replace")
    except StorageError:
        return storage.status(path) is None  # its holder has just removed it
    return {"token", "holder", "count"} <= _parsed(text).keys()


@contextlib.contextmanager
def claiming(store: Retrying, path: str, place: str, advice: str = "name another place") -> Iterator[Claim]:
    """Holds a claim for the time of a `with` block.

    Args:
        store: The store.
        path: The file of the claim.
        place: What messages call the place.
        advice: What to do, other than to wait, when another process has the place.

    Raises:
        FolderInUseError: Another process holds the place.
        StorageError: The store does not answer, or refuses.
    """
    claim = Claim(store, path, place, advice)
    try:
        claim.take()
        yield claim
    finally:
        claim.release()


def _parsed(text: str) -> dict[str, Any]:
    """Returns what a claim says; nothing for one that is being written."""
    try:
        return as_object(parse_json(text))
    except ValueError:
        return {}


def _holder(text: str) -> str:
    """Returns who holds a claim."""
    name = _parsed(text).get("holder")
    is_name = isinstance(name, str) and re.fullmatch(r"process \d{1,10} on [\w.-]{1,255}", name) is not None
    return str(name) if is_name else "another process"


def _what_it_does(text: str) -> str:
    """Returns what messages say of the holder of a claim."""
    since = _parsed(text).get("since")
    is_time = isinstance(since, str) and re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", since) is not None
    return f"has been writing there since {since}" if is_time else "is writing there"


def _has_ended(text: str) -> bool:
    """Returns whether a claim is that of a process of this machine which no longer runs."""
    about = _parsed(text)
    number, start = about.get("process"), about.get("start")
    if not isinstance(number, int) or not 0 < number < 1 << 31 or about.get("machine") != _machine():
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it belongs to another user, and may be hidden
        return False
    return isinstance(start, int) and _start_of(number) != start


def _start_of(number: int) -> Optional[int]:
    """Returns when a process began, in ticks since the machine did; None if it has ended, waited for or not."""
    try:
        with open(f"/proc/{number}/stat", "rb") as stream:
            state, *rest = stream.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if state == b"Z" else int(rest[18])


def _machine() -> str:
    """Returns what this machine, or this container with its own numbers of processes, has for itself until it boots."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            known = [stream.read(), os.readlink("/proc/self/ns/pid"), platform.node()]
    except OSError:
        return secrets.token_hex(8)  # another one than that of any claim
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]
