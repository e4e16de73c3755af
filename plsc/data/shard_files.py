"""Files that hold many images each: how a path names them, and how threads read from any place of them."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import itertools
import logging
import os
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from plsc.data.sampler import WINDOW_BLOCKS
from plsc.errors import DataError
from plsc.machine.files import open_regular
from plsc.machine.mounts import mount_of

logger = logging.getLogger("plsc")

MOST_FILES = 1_000_000
SUBFOLDERS = ("data", "train")  # where the Hugging Face hub, and many others, keep the files
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
# How names of the files of a split begin, or what their first word that is not the name of the data set is.
_TRAIN = re.compile(r"(^|[-_.])(train|training)([-_.\d]|$)", re.IGNORECASE)
_OTHER = re.compile(r"(^|[-_.])(test|val|valid|validation|dev|eval)([-_.\d]|$)", re.IGNORECASE)
_BEGUN = 8 * WINDOW_BLOCKS  # blocks that were read ahead lately


def holds_files(path: str, suffixes: Sequence[str]) -> bool:
    """Returns whether a path names files with one of these suffixes: a file, a folder that holds some, or a pattern."""
    if os.path.isdir(path):
        try:
            return any(True for folder in _folders(path) for _ in _files_in(folder, suffixes))
        except OSError:
            return False
    return path.lower().endswith(tuple(suffixes))


def find_files(path: str, suffixes: Sequence[str]) -> list[str]:
    """Returns the files that a path names, sorted unless braces order them.

    Of a folder that holds the files of several splits, as `train-0.tar` and `test-0.tar`, those of training are taken.

    Args:
        path: A file; a folder that holds files with one of the suffixes, or whose subfolder `data` or `train` does; or
            a pattern with `{0000..0099}`, `{a,b}`, `*`, `?` or `[abc]`.
        suffixes: What the names of such files end with in a folder, in lower case.

    Raises:
        DataError: There are none, or a file that braces name is missing.
    """
    try:
        if os.path.isdir(path):
            found = next(
                filter(None, (sorted(_files_in(folder, suffixes), key=os.fsencode) for folder in _folders(path))), []
            )
            found = _of_training(path, found)
        elif os.path.lexists(path):
            found = [path]
        else:
            found = list(itertools.islice(_expanded(path), MOST_FILES + 1))
    except OSError as error:
        raise DataError(f"{path}: cannot be listed ({error.strerror or error}); check its permissions") from error
    if not found:
        kinds = " or ".join(suffixes[:1])
        raise DataError(
            f"{path}: no such file, and no {kinds} file in such a folder or of such a pattern; check the path"
        )
    if len(found) > MOST_FILES:
        raise DataError(f"{path}: the pattern names more than {MOST_FILES:,} files; correct its braces")
    return found


def folder_of(path: str) -> str:
    """Returns the folder that a data set lies in: the path itself, or the one around a file or a pattern of files."""
    is_pattern = glob.has_magic(path) or _BRACES.search(path) is not None
    if os.path.isfile(path) or (is_pattern and not os.path.isdir(path)):
        return os.path.dirname(path) or "."
    return path


def plain_name(path: str) -> str:
    """Returns a path without empty parts, `.` and `..`, as names of images are; '' if nothing is left."""
    return "/".join(part for part in path.split("/") if part not in ("", ".", ".."))


def _folders(path: str) -> Iterator[str]:
    yield path
    yield from filter(os.path.isdir, (os.path.join(path, name) for name in SUBFOLDERS))


def _files_in(folder: str, suffixes: Sequence[str]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.lower().endswith(tuple(suffixes)) and not name.startswith(".") and entry.is_file():
                yield os.path.join(folder, name)


def _of_training(path: str, files: Sequence[str]) -> list[str]:
    """Leaves out the files of other splits if some files are named after the training split."""
    names = [os.path.basename(file) for file in files]
    training = [file for file, name in zip(files, names) if _TRAIN.search(name)]
    others = [name for name in names if _OTHER.search(name) and not _TRAIN.search(name)]
    if not training or not others:
        return list(files)
    logger.info("%s: %d files of other splits are left out, such as %s", path, len(others), others[0])
    left = set(others)
    return [file for file, name in zip(files, names) if name not in left]


def _expanded(pattern: str) -> Iterator[str]:
    """Yields the files that a pattern names. Raises DataError if one that braces name is missing."""
    for name in without_braces(pattern):
        if os.path.lexists(name):
            yield name
        elif glob.has_magic(name):
            yield from sorted(glob.glob(name), key=os.fsencode)
        elif name != pattern:
            raise DataError(f"{name}: no such file, and {pattern} names it; copy it, or correct the pattern")


def without_braces(pattern: str) -> Iterator[str]:
    """Yields a pattern with each choice of its braces, such as `{0000..0099}` or `{a,b}`."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    ends = _RANGE.fullmatch(braces[1])
    if ends is not None:
        first, last = int(ends[1]), int(ends[2])
        width = (
            max(map(len, ends.groups())) if any(end.startswith("0") and len(end) > 1 for end in ends.groups()) else 0
        )
        choices: Iterator[str] = (f"{number:0{width}d}" for number in range(first, last + 1))
    else:
        choices = iter(braces[1].split(","))
    for choice in choices:
        yield from without_braces(f"{before}{choice}{after}")


class OpenFile:
    """A file that is open as long as this object exists: while it is among the last that were used, or is being read.

    Args:
        path: The file.
        opener: Opens it for reading.

    Attributes:
        size: Its bytes.
        descriptor: That of the system; None for a file that is mounted.
        pread: Returns as many bytes as its first argument says, from the second on; fewer where the file ends.

    Raises:
        OSError: The file cannot be opened, or is a pipe or a device.
    """

    def __init__(self, path: str, opener: Callable[[str], BinaryIO] = open_regular) -> None:
        source = mount_of(path)
        size = None if source is None else source.size_of(path)
        self.pread: Callable[[int, int], bytes]
        if source is not None and size is not None:
            self.size, self.descriptor = size, None
            self.pread = lambda size, first: source.read(path, first, size)
            return
        with opener(path) as stream:
            self.descriptor = os.dup(stream.fileno())
        weakref.finalize(self, os.close, self.descriptor)
        self.size = os.fstat(self.descriptor).st_size
        self.pread = functools.partial(os.pread, self.descriptor)


def _most_files() -> int:
    """Returns how many files of all data sets stay open: a fourth of what this process may open, and at most 128."""
    limit = os.sysconf("SC_OPEN_MAX")
    return min(128, max(limit // 4, 1)) if limit > 0 else 128


@functools.lru_cache(_most_files())
def _opened(open_file: Callable[[str], OpenFile], path: str) -> OpenFile:
    """Returns a file that `open_file` opens.

    All data sets share this cache. It has no lock that a thread could hold while the process forks.
    """
    return open_file(path)


def _advise(open_file: Callable[[str], OpenFile], path: str, first: int, size: int) -> None:
    """Asks the system to read bytes of a file ahead."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # some file systems take no advice; `read` reports what is missing
            file = _opened(open_file, path)
            if file.descriptor is not None:
                os.posix_fadvise(file.descriptor, first, size, os.POSIX_FADV_WILLNEED)


class SharedFiles:
    """The files of a data set, which several threads read from any place.

    Few are open at a time: all data sets together keep the files that were used last, far fewer than a process may
    open, because a data set may have thousands of files, and a program many data sets.

    Args:
        opener: Opens a file for reading.
    """

    def __init__(self, opener: Callable[[str], BinaryIO] = open_regular) -> None:
        self._open = functools.partial(OpenFile, opener=opener)  # also what tells the files of data sets apart
        self._advise = functools.lru_cache(_BEGUN)(functools.partial(_advise, self._open))
        weakref.finalize(self, _opened.cache_clear).atexit = False

    def open(self, path: str) -> OpenFile:
        """Returns a file, which stays open as long as the result exists. Raises OSError if it cannot be opened."""
        return _opened(self._open, path)

    def close(self) -> None:
        """Closes the files that no thread reads at the moment, those of other data sets too. They are opened again."""
        _opened.cache_clear()

    def read(self, path: str, first: int, size: int) -> bytes:
        """Returns the `size` bytes from `first` on. Raises OSError if they cannot be read."""
        file = self.open(path)  # whose name here keeps it open, because another thread may take its place
        data = file.pread(size, first)
        if len(data) != size:
            raise OSError(errno.EIO, "the file has become shorter since it was opened", path)
        return data

    def read_ahead(self, path: str, first: int, size: int) -> None:
        """Asks the system to read a block of a file ahead, unless that was asked for lately."""
        self._advise(path, first, size)
