"""The writer of base64 parts, and the names of files and folders that data sets are written to."""

from __future__ import annotations

import binascii
import os
import re
from collections.abc import Sequence
from pathlib import Path

from plsc.data.base64_parts import FILE_LIST_NAME, MANIFEST_NAME, SKIPPED_NAME
from plsc.data.records import Record
from plsc.machine.files import refuse_links
from plsc.machine.names import CONTROLS, from_text, to_text

_LONGEST = 255  # bytes of the name of a file, on nearly every file system
_ROOM = 16  # bytes that stay free for a number, where two names are the same
_BUFFER = 1 << 20
# Names that readers of folders take for those of operating systems, as they do names that begin with @, # or $.
_HIDDEN = ("__macosx", "lost+found", "thumbs.db", "desktop.ini", "system volume information")
# Names of files by which readers recognise other formats, and of lists that `convert` and other commands write.
_LISTS = frozenset(
    ("classes.txt", "skipped.txt", "damaged.txt", "label.txt", "file_list.txt", "train.rec", "train.idx", "property")
    + (MANIFEST_NAME, FILE_LIST_NAME, SKIPPED_NAME)
)
_ENDS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".parquet", ".rec")
_PLAIN = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,200}\.(jpg|jpeg|png|webp|bmp|gif)")
_NOT_IN_NAMES = str.maketrans(dict.fromkeys((*CONTROLS, "/"), "_"))


class Base64Writer:
    """Writes lines of base64, a tab and the label, as the shuffle tool takes them.

    Args:
        path: The part to make.
        class_names: Not used: the lines have no place for names.
    """

    def __init__(self, path: Path, class_names: Sequence[str] = ()) -> None:
        self._file = open(path, "wb", buffering=_BUFFER, opener=refuse_links)  # noqa: SIM115 - `close` closes it

    def add(self, record: Record) -> None:
        """Writes one line."""
        self._file.write(binascii.b2a_base64(record.data, newline=False) + b"\t%d\n" % record.label)

    def close(self) -> None:
        """Writes what is buffered, and closes the file."""
        self._file.close()


def class_folders(class_names: Sequence[str], num_classes: int = 0) -> list[str]:
    """Returns the name of the folder of each class.

    It is the name of the class, or its number if the classes have no names. A name that a folder cannot have, or that
    another class has already, is changed and begins with the number.

    Args:
        class_names: Name of each class; empty if they are unknown.
        num_classes: Number of classes if they have no names.
    """
    count = len(class_names) or num_classes
    digits = len(str(max(count - 1, 0)))
    if not class_names:
        return [f"{number:0{digits}d}" for number in range(count)]
    names = list(map(from_text, class_names))
    used: dict[str, None] = {}  # a set that keeps the order
    every = set(names)
    for number, name in enumerate(names):
        folder = name
        while file_name(folder) != folder or folder in used or (folder != name and folder in every):
            folder = file_name(f"{number:0{digits}d}_{folder}")
        used[folder] = None
    return list(used)


def file_name(name: str) -> str:
    """Returns a name as the folder of a class, or an image in it, can have it.

    It is not hidden, not blank and not too long, has no slashes and controls, and is not the name of a list or of a
    file of another data format.

    Args:
        name: A native text; see `plsc.machine.names`.
    """
    if _PLAIN.fullmatch(name):  # as most are; the rest takes three times as long as the regular expression
        return name
    name = name.translate(_NOT_IN_NAMES)
    if not _is_writable(name):
        name = name.encode("ascii", "backslashreplace").decode().replace("\\", "_")
    if name.startswith(("@", "#", "$")) or name.lower() in _HIDDEN or name.lower() in _LISTS or not name.strip():
        name = f"_{name}"
    if name.lower().endswith(_ENDS):
        name = f"{name}_"
    if name.startswith("."):
        name = f"_{name[1:]}" if name.strip(".") else "_"
    if len(os.fsencode(name)) <= _LONGEST - _ROOM:
        return name
    stem, suffix = os.path.splitext(name)
    suffix = suffix if len(os.fsencode(suffix)) <= _ROOM else ""
    while len(os.fsencode(stem + suffix)) > _LONGEST - _ROOM:
        stem = stem[:-1]
    return stem + suffix


def _is_writable(name: str) -> bool:
    """Returns whether the locale has all characters of a name."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def numbered(name: str, number: int) -> str:
    """Returns a name of a file with a number before its suffix, from 2 on: `a.jpg`, `a-2.jpg`."""
    if number < 2:
        return name
    stem, suffix = os.path.splitext(name)
    return f"{stem}-{number}{suffix}"


def names_text(class_names: Sequence[str]) -> bytes:
    """Returns the content of `classes.txt`: one name a line, in the order of the numbers of the classes."""
    lines = (" ".join(to_text(name).split("\n")).replace("\r", " ") for name in class_names)
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
