"""Finds image files: those below a folder, and those that a text file lists."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from plsc.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # editors of Windows begin a file with it, which may then be appended to another

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class Listed(NamedTuple):
    """An image file and what is known about it.

    Attributes:
        name: Path relative to the root of the collection.
        identity: Who or what the image shows; '' if unknown.
        template: Group of images of the identity that the image belongs to; '' if it stands alone.
        line: Line of the list that names the image, counted from 1; 0 if no list does.
    """

    name: str
    identity: str = ""
    template: str = ""
    line: int = 0


def image_files(folder: Path) -> list[Path]:
    """Returns the image files in a folder and its subfolders, sorted.

    Raises:
        DataError: The folder holds no image.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise DataError(f"{folder}: holds no image ({', '.join(SUFFIXES)}); name a folder of images")
    return found


def folder_of_images(root: Path, folder: Path) -> list[Listed]:
    """Returns the image files below `folder`, sorted, with names relative to `root`.

    The first subfolder is the identity; the path of two or more subfolders is the template.

    Raises:
        DataError: The folder holds no image.
    """
    listed = []
    for path in image_files(folder):
        folders = path.relative_to(folder).parts[:-1]
        template = "/".join(folders) if len(folders) > 1 else ""
        listed.append(Listed(path.relative_to(root).as_posix(), folders[0] if folders else "", template))
    return listed


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the lines of a text file that are not blank, with their numbers, counted from 1.

    Lines may end as on Unix, on Windows or on an old Mac. Their ends, and a byte order mark, are left out.

    Raises:
        OSError: The file cannot be read.
    """
    number = 0
    with open(path, "rb") as file:
        for raw in file:
            for line in raw.splitlines():
                number += 1
                line = line.removeprefix(_BYTE_ORDER_MARK)
                if line and not line.isspace():
                    yield number, line


def text_of(line: bytes) -> str:
    """Returns a line as text. Raises ValueError if it is not UTF-8."""
    if b"\0" in line:
        raise ValueError
    return line.decode("utf-8")


def columns_of(line: str) -> list[str]:
    """Splits a line of a list at its tabs, or, if it has none, at its last blank.

    Blanks around a column do not belong to it. Without a tab a path may hold blanks, and an identity may not.
    """
    line = line.strip()
    return [column.strip() for column in line.split("\t")] if "\t" in line else line.rsplit(None, 1)


def read_list(path: Path) -> list[tuple[int, str]]:
    """Returns the lines of a text file that are not blank, with their numbers.

    Raises:
        DataError: The file cannot be read, is not UTF-8 text, or has no such line.
    """
    try:
        found = [(number, text_of(line)) for number, line in lines_of(path)]
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or "not UTF-8"
        raise DataError(
            f"{path}: cannot be read ({reason}); name a folder of images, or a UTF-8 list of them"
        ) from None
    if not found:
        raise DataError(f"{path}: lists no image; write one image per line")
    return found


def parse_line(path: Path, number: int, line: str) -> Listed:
    """Parses a line `path identity`, or `path<TAB>identity<TAB>template`, of the list `path`.

    Raises:
        DataError: The line has another form.
    """
    words = columns_of(line)
    if not 2 <= len(words) <= 3 or not all(words[:2]):
        raise DataError(
            f"{path}:{number}: {line[:80]!r} is not 'path identity' or 'path<TAB>identity<TAB>template'; if the lines "
            "are plain paths, check that the images of the first lines exist"
        )
    name, identity = words[0], sys.intern(words[1])  # Millions of images share few identities.
    return Listed(name, identity, f"{identity}/{words[2]}" if words[2:] else "", number)
