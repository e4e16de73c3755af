"""Locks on folders and files, which keep two processes from writing there at the same time.

They end with the process that took them, however it ends, and forked children do not inherit them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import platform
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Optional, Union

from plsc.errors import ConfigError

LOCK_NAME = ".plsc.lock"
_POLL_SECONDS, _QUIET_SECONDS = 0.1, 1.0
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EBADF}

logger = logging.getLogger("plsc")


class FolderInUseError(ConfigError):
    """Another process holds the lock on a folder."""


@contextlib.contextmanager
def lock_folder(folder: Union[str, Path], advice: str, patience: float = 0.0) -> Iterator[bool]:
    """Holds the lock on a folder, and makes the folder if it is missing.

    The lock belongs to a file in the folder, `.plsc.lock`, which names its holder and is removed on release. It ends
    with the process that took it, however that process ends: a file that a killed process left behind does not count,
    and forked children do not inherit the lock. A file system without locks protects nothing; a warning says so.

    Args:
        folder: The folder to lock.
        advice: What to do when the folder cannot be had, for error messages: "choose another folder with ...".
        patience: Seconds to wait for another holder.

    Yields:
        Whether the folder is protected. False on a file system without locks.

    Raises:
        FolderInUseError: Another process holds the lock.
        ConfigError: The folder cannot be made or written, or something else has the name of the lock file.
    """
    folder = Path(folder)
    descriptor, is_protected = _acquire(folder, advice, patience)
    _held.add(descriptor)
    try:
        yield is_protected
    finally:
        if descriptor in _held:  # it is not in a forked child that leaves this block
            _held.remove(descriptor)
            _release(descriptor, folder / LOCK_NAME)


class HeldFile:
    """A file of plsc's own that no other process can hold as long as this object is open.

    Attributes:
        path: The file.
        descriptor: The file, open for reading and writing.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        self._is_open = True
        _held.add(descriptor)

    def close(self) -> None:
        """Gives up the file."""
        if self._is_open and self.descriptor in _held:  # it is not in a forked child
            self._is_open = False
            _held.remove(self.descriptor)
            os.close(self.descriptor)


def hold_file(path: Path, make: bool = True, wait: bool = False) -> Optional[HeldFile]:
    """Takes the lock on a file, which must not be removed by others than its holder.

    Args:
        path: The file.
        make: Whether to make the file if it is missing.
        wait: Whether to wait as long as another process holds the file.

    Returns:
        The file, or None if another process holds it, or if it is missing and not to be made.

    Raises:
        OSError: The file cannot be opened or locked.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if make else 0), 0o666)
    except FileNotFoundError:
        if make:
            raise
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as problem:
        os.close(descriptor)
        if problem.errno in (errno.EACCES, errno.EWOULDBLOCK):
            return None
        raise
    if not _is_at(descriptor, path):  # its last holder has removed it
        os.close(descriptor)
        return hold_file(path, make, wait)
    return HeldFile(path, descriptor)


_held: set[int] = set()  # descriptors of the locks that this process holds


def _close_in_child() -> None:
    """Closes a forked child's copies of the descriptors, which would keep the locks of a parent that has ended."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _acquire(folder: Path, advice: str, patience: float) -> tuple[int, bool]:
    """Returns the descriptor of the lock file, and whether the file system has locks."""
    began, is_reported = time.monotonic(), False
    while True:
        descriptor = _open(folder, advice)
        try:
            is_protected = _try_lock(descriptor, folder)
            if not is_protected or _is_at(descriptor, folder / LOCK_NAME):
                _write_holder(descriptor)
                return descriptor, is_protected
        except BlockingIOError:
            waited, holder = time.monotonic() - began, _read_holder(descriptor)
            if _QUIET_SECONDS <= waited < patience and not is_reported:
                is_reported = True
                logger.info("%s: %s is writing there; waiting up to %.0f s for it to end", folder, holder, patience)
            if waited >= patience:
                os.close(descriptor)
                raise FolderInUseError(
                    f"{folder}: {holder} is writing there; wait for it to end, or {advice}"
                ) from None
            time.sleep(_POLL_SECONDS)
        except OSError as problem:
            os.close(descriptor)
            raise ConfigError(f"{folder}: cannot be locked ({problem.strerror}); {advice}") from None
        os.close(descriptor)  # the previous holder has removed this file, or still holds it


def _open(folder: Path, advice: str) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as problem:
        if problem.errno == errno.ELOOP:
            raise _not_a_lock(folder, advice) from None
        where = "" if problem.filename == str(folder) else f"{problem.filename}: "
        raise ConfigError(f"{folder}: cannot write there ({where}{problem.strerror}); {advice}") from None
    # The holder's name is written into the file, so a planted hard link must not lead to another file of the user.
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise _not_a_lock(folder, advice)
    return descriptor


def _not_a_lock(folder: Path, advice: str) -> ConfigError:
    return ConfigError(
        f"{folder / LOCK_NAME}: is a link or not a regular file, so that it is no lock of plsc; remove it, or {advice}"
    )


def _try_lock(descriptor: int, folder: Path) -> bool:
    """Takes the lock. Raises BlockingIOError if another process holds it; returns False if there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno == errno.EACCES:  # network file systems may report a held lock this way
            raise BlockingIOError from None
        if problem.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "%s: its file system has no locks (%s); nothing keeps a second process from writing there",
            folder,
            problem.strerror,
        )
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at `path`: its last holder may have removed it before this process locked it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _release(descriptor: int, path: Path) -> None:
    with contextlib.suppress(OSError):
        if _is_at(descriptor, path):
            path.unlink()
    os.close(descriptor)


def _write_holder(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a full disk; the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)


def _read_holder(descriptor: int) -> str:
    line = os.pread(descriptor, 200, 0).decode("utf-8", "replace").partition("\n")[0]
    return line if line.startswith("process ") else "another process"
