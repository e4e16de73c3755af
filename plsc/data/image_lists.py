"""Finds image files: those below a folder, and those that a text file lists."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from plsc.errors import DataError

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


def read_list(path: Path) -> list[tuple[int, str]]:
    """Returns the lines of a text file that are not blank, with their numbers.

    Raises:
        DataError: The file cannot be read, is not UTF-8 text, or has no such line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ValueError
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or "not UTF-8"
        raise DataError(
            f"{path}: cannot be read ({reason}); name a folder of images, or a UTF-8 list of them"
        ) from None
    found = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not found:
        raise DataError(f"{path}: lists no image; write one image per line")
    return found


def parse_line(path: Path, number: int, line: str) -> Listed:
    """Parses a line `path identity`, or `path<TAB>identity<TAB>template`, of the list `path`.

    Raises:
        DataError: The line has another form.
    """
    words = [word.strip() for word in (line.split("\t") if "\t" in line else line.rsplit(None, 1))]
    if not 2 <= len(words) <= 3 or not all(words[:2]):
        raise DataError(
            f"{path}:{number}: {line[:80]!r} is not 'path identity' or 'path<TAB>identity<TAB>template'; if the lines "
            "are plain paths, check that the images of the first lines exist"
        )
    name, identity = words[0], sys.intern(words[1])  # Millions of images share few identities.
    return Listed(name, identity, f"{identity}/{words[2]}" if words[2:] and words[2] else "", number)
