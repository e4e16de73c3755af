"""Finds the image files below a folder: one walk for whatever reads a folder of images."""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Optional

from PIL import Image

from plsc.data.encoded_image import formats
from plsc.data.image_lists import Listed
from plsc.data.packed import FolderPacker, NamesInFolders
from plsc.errors import DataError, counted
from plsc.machine.names import readable
from plsc.storage.local import FOLDER_INDEX

logger = logging.getLogger("plsc")

_COMMON = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "QOI", "TGA", "TIFF", "WEBP")
_NO_IMAGE = frozenset(
    b".bin .cfg .csv .db .doc .docx .gz .html .idx .index .ini .json .jsonl .lmdb .log .lst .mat .md .mp4 .npy .npz"
    b" .parquet .pdf .pkl .pt .pth .py .rar .rec .tar .toml .tsv .txt .xls .xlsx .xml .yaml .yml .zip".split()
)
# What operating systems, network drives and trash cans leave in folders, in addition to names that begin with a dot.
_HIDDEN = frozenset(
    b"__MACOSX @eaDir #recycle #snapshot @Recycle $RECYCLE.BIN lost+found Thumbs.db thumbs.db desktop.ini Desktop.ini"
    b"".split()
) | {b"System Volume Information"}
_LISTS = frozenset((b"classes.txt", b"skipped.txt", b"damaged.txt", b"exclude.txt"))  # What plsc itself writes.
_NAMED = 3  # Suffixes that the log names.
INDEX = os.fsencode(FOLDER_INDEX)  # what `plsc.data.folder_index` writes into a folder of folders


@dataclass
class LeftOut:
    """What a walk left out.

    Attributes:
        counts: Number of files or folders by reason, a plural.
        first: The first of their names, in the order of bytes, by reason.
        suffixes: Number of files that are no images by suffix.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, bytes] = field(default_factory=dict)
    suffixes: Counter[bytes] = field(default_factory=Counter)

    def add(self, reason: str, name: bytes) -> None:
        """Counts one file or folder."""
        self.counts[reason] += 1
        self.first[reason] = min(self.first.get(reason, name), name)

    def log(self, folder: Path, count: int) -> None:
        """Logs one line about a folder of `count` images if something was left out."""
        said = str(self)
        if said:
            logger.info("%s: %s; left out: %s", folder, counted(count, "image"), said)

    def __str__(self) -> str:
        """Returns, for instance, "hidden: 2 (such as .a.jpg), files that Pillow does not open: 3 (2 .txt, 1 .heic)"."""
        words = []
        for reason, count in sorted(self.counts.items()):
            words.append(f"{reason}: {count:,} (such as {readable(os.fsdecode(self.first[reason]))})")
        if self.suffixes:
            most = sorted(self.suffixes.items(), key=lambda one: (-one[1], one[0]))[:_NAMED]
            named = [f"{count:,} {readable(os.fsdecode(one)) or 'without a suffix'}" for one, count in most]
            named += ["..."] * (len(self.suffixes) > _NAMED)
            words.append(f"files that Pillow does not open: {sum(self.suffixes.values()):,} ({', '.join(named)})")
        return ", ".join(words)


@dataclass
class Visited:
    """The subfolders that a walk has listed.

    Attributes:
        folders: Their paths, each with a slash at its end.
        changed: The `change_times` of each before it was listed.
        is_plain: Whether what was found follows from the names in these folders alone: no file was opened, and no link
            was followed.
    """

    folders: list[bytes] = field(default_factory=list)
    changed: list[tuple[int, int]] = field(default_factory=list)
    is_plain: bool = True


class Run(NamedTuple):
    """Images of a folder that follow each other.

    Attributes:
        prefix: What their names begin with: '' or the path of the folder with a slash at its end.
        names: The rest of their names.
    """

    prefix: bytes
    names: list[bytes]


def image_files(folder: Path) -> list[Path]:
    """Returns the image files in a folder and its subfolders, sorted; see `image_names`.

    Raises:
        DataError: The folder holds no image, or a folder in it cannot be listed.
    """
    return [folder / name for name in image_names(folder)]


class FolderFiles(Sequence[Listed]):
    """The images below a folder, without a Python object for each.

    Args:
        files: Their names in the folder.
        prefix: What is before the names.
    """

    def __init__(self, files: NamesInFolders, prefix: str) -> None:
        self._files, self._prefix = files, prefix

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: Any) -> Any:
        """Returns an image. The first subfolder is the identity; the path of two or more is the template."""
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        name = self._files[i]
        inside = name.rpartition("/")[0]
        return Listed(self._prefix + name, inside.partition("/")[0], inside if "/" in inside else "")

    def identities(self) -> set[str]:
        """Returns the different identities."""
        return {prefix.partition("/")[0] for prefix in self._files.prefixes}


def folder_of_images(root: Path, folder: Path, left_out: Optional[LeftOut] = None) -> FolderFiles:
    """Returns the image files below `folder`, sorted, with names relative to `root`.

    The first subfolder is the identity; the path of two or more subfolders is the template. For `left_out` see
    `image_names`.

    Raises:
        DataError: The folder holds no image, or a folder in it cannot be listed.
    """
    above = folder.relative_to(root).as_posix()
    packer = FolderPacker()
    for run in _runs(folder, left_out):
        packer.add(run.prefix, run.names)
    return FolderFiles(packer.finish(), "" if above == "." else f"{above}/")


def image_names(folder: Path, left_out: Optional[LeftOut] = None) -> list[str]:
    """Returns the names of the image files below a folder, relative to it, sorted.

    An image is a file that Pillow opens. A common suffix decides by itself; of other files, the content does. Links are
    followed. Hidden files and folders are left out.

    Args:
        folder: The folder.
        left_out: Record to which what is left out is added, for callers that log it for many folders together. With
            None it is logged here.

    Returns:
        Native names, in the order of the bytes of their parts, which is the same in every locale.

    Raises:
        DataError: The folder holds no image, or a folder in it cannot be listed.
    """
    return [os.fsdecode(run.prefix + name) for run in _runs(folder, left_out) for name in run.names]


def _runs(folder: Path, left_out: Optional[LeftOut]) -> Iterator[Run]:
    """Yields the images below a folder; for the arguments and errors see `image_names`."""
    own, found = LeftOut() if left_out is None else left_out, 0
    for run in runs_of_images(os.fsencode(folder), own):
        found += len(run.names)
        yield run
    if not found:
        left = "" if left_out is not None or not str(own) else f"; left out: {own}"
        raise DataError(f"{folder}: holds no image{left}; name a folder of images")
    if left_out is None:
        own.log(folder, found)


def runs_of_images(
    root: bytes, left_out: LeftOut, without: Collection[bytes] = (), visited: Optional[Visited] = None
) -> Iterator[Run]:
    """Yields the images below `root`, in the order of the bytes of the parts of their names.

    Args:
        root: The folder.
        left_out: Record to which what is left out is added.
        without: Names of subfolders of `root` that are not looked into.
        visited: Record to which the subfolders are added.

    Raises:
        DataError: A folder cannot be listed.
    """
    names, folders = entries_of(root, b"", [], left_out, visited)
    names = [name for name in names if name not in folders or name not in without]
    stack = [(b"", iter(names), folders)]  # The folders around the current place, with what is still to be looked at.
    while stack:
        prefix, rest, folders = stack[-1]
        run: list[bytes] = []
        for name in rest:
            if name in folders:
                if run:
                    yield Run(prefix, run)
                around = [os.path.join(root, one) for one, _, _ in stack]
                names, below = entries_of(root, prefix + name + b"/", around, left_out, visited)
                stack.append((prefix + name + b"/", iter(names), below))
                break
            run.append(name)
        else:
            if run:
                yield Run(prefix, run)
            stack.pop()


def entries_of(
    root: bytes, prefix: bytes, around: Sequence[bytes], left_out: LeftOut, visited: Optional[Visited] = None
) -> tuple[list[bytes], set[bytes]]:
    """Returns the sorted names of the images and folders in `root/prefix`, and which of them are folders.

    Args:
        root: The folder of the walk.
        prefix: Path of a folder in it, with a slash at its end; '' for `root` itself.
        around: The folders that it is in.
        left_out: Record to which what is left out is added.
        visited: Record to which the folder is added, unless it is `root`.

    Raises:
        DataError: The folder cannot be listed.
    """
    folder = os.path.join(root, prefix[:-1]) if prefix else root
    names: list[bytes] = []
    folders: set[bytes] = set()
    suffixes = image_suffixes()
    try:
        if visited is not None and prefix:
            visited.folders.append(prefix)
            visited.changed.append(change_times(folder))
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if visited is not None and entry.is_symlink():
                    visited.is_plain = False
                if name == INDEX and not prefix:
                    continue
                if name.startswith(b".") or name in _HIDDEN:
                    left_out.add("hidden", prefix + name)
                elif _is(entry, "is_dir"):
                    if entry.is_symlink() and _leads_back(entry.path, [*around, folder]):
                        left_out.add("links to a folder that contains them", prefix + name)
                        continue
                    folders.add(name)
                    names.append(name)
                elif not _is(entry, "is_file"):
                    left_out.add("broken links" if entry.is_symlink() else "pipes, sockets or devices", prefix + name)
                elif (suffix := os.path.splitext(name)[1].lower()) in suffixes or _is_image(
                    entry.path, suffix, visited
                ):
                    names.append(name)
                elif prefix or name not in _LISTS:
                    left_out.suffixes[suffix] += 1
    except OSError as problem:
        place = os.fsdecode(problem.filename or folder)
        raise DataError(
            f"{place}: cannot be read ({problem.strerror or problem}); change its permissions, or move it away"
        ) from problem
    names.sort()
    return names, folders


def change_times(folder: bytes) -> tuple[int, int]:
    """Returns when the names in a folder were changed and when the folder was, in nanoseconds since 1970.

    Archives and copies set the first of them, but nothing sets the second, which a new name of the folder changes too.
    """
    found = os.stat(folder)
    return found.st_mtime_ns, found.st_ctime_ns


def _is(entry: os.DirEntry[bytes], kind: str) -> bool:
    """Returns `entry.is_dir()` or `entry.is_file()`; a link to itself is neither."""
    try:
        return getattr(entry, kind)()
    except OSError as problem:
        if problem.errno != errno.ELOOP:
            raise
        return False


def _leads_back(link: bytes, around: Sequence[bytes]) -> bool:
    """Returns whether a link leads to one of the folders that it is in, so that to follow it would never end."""
    target = os.stat(link)
    within = os.path.join(os.path.realpath(os.path.dirname(link)), b"")
    if within.startswith(os.path.join(os.path.realpath(link), b"")):
        return True
    return any(os.path.samestat(target, os.stat(folder)) for folder in around)


def may_be_image(name: str) -> bool:
    """Returns whether a walk takes a file for an image, or looks at its content to know.

    Args:
        name: Its path relative to the folder of the walk.
    """
    *folders, last = os.fsencode(name).split(b"/")
    if any(part.startswith(b".") or part in _HIDDEN for part in (*folders, last)):
        return False
    return os.path.splitext(last)[1].lower() not in _NO_IMAGE and (bool(folders) or last not in _LISTS)


def has_image_suffix(name: str) -> bool:
    """Returns whether a name ends as those of images commonly do."""
    return is_image_suffix(os.path.splitext(name)[1])


@functools.lru_cache(maxsize=1024)
def is_image_suffix(suffix: str) -> bool:
    """Returns whether a suffix, such as `.jpg`, is a common one of images."""
    return os.fsencode(suffix).lower() in image_suffixes()


@functools.cache
def image_suffixes() -> frozenset[bytes]:
    """Returns the suffixes of the common formats that Pillow opens on this machine."""
    every = Image.registered_extensions().items()
    return frozenset(suffix.encode() for suffix, format in every if format in _COMMON and format in Image.OPEN)


@functools.lru_cache(maxsize=8)
def _by_content(names: tuple[str, ...]) -> list[str]:
    """Returns those formats that Pillow recognises by the first bytes of a file."""
    return [name for name in names if Image.OPEN[name][1] is not None]


def _is_image(path: bytes, suffix: bytes, visited: Optional[Visited]) -> bool:
    """Returns whether Pillow opens a file of an unusual suffix, or of none; notes in `visited` that it was opened.

    Raises:
        OSError: The file cannot be read.
    """
    if suffix in _NO_IMAGE:
        return False
    if visited is not None:
        visited.is_plain = False
    with open(path, "rb") as stream:
        try:
            Image.open(stream, formats=_by_content(formats())).close()
        except (Image.UnidentifiedImageError, SyntaxError, ValueError, EOFError, TypeError, OverflowError):
            return False
        except Image.DecompressionBombError:  # It is an image, and decoding it will say what is wrong.
            return True
        except OSError as problem:
            if problem.errno is None:  # Pillow's own, for a damaged header.
                return False
            raise
    return True
