"""Text files that list images: one parser of lines for `label.txt`, lists to embed, galleries and pairs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import AnyStr, NamedTuple, Optional

from plsc.errors import DataError
from plsc.machine.files import open_regular
from plsc.machine.names import quoted

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # editors of Windows begin a file with it, which may then be appended to another
_LONGEST_SHOWN = 80  # bytes


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


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the lines of a text file that are not blank, with their numbers, counted from 1.

    Lines may end as on Unix, on Windows or on an old Mac. Their ends, and a byte order mark, are left out.

    Raises:
        OSError: The file cannot be read.
    """
    number = 0
    with open_regular(path) as file:
        for raw in file:
            for line in raw.splitlines():
                number += 1
                line = line.removeprefix(BYTE_ORDER_MARK)
                if line and (32 < line[0] < 127 or not is_blank(line)):
                    yield number, line


def is_blank(line: bytes) -> bool:
    """Returns whether a line has no columns; see `columns_of`."""
    return not byte_columns_of(line)


def checked(line: bytes, where: str) -> bytes:
    """Returns a line. Raises DataError if it holds a zero byte, which no name does."""
    if b"\0" in line:
        raise DataError(
            f"{where}: not UTF-8 text, because it holds a zero byte; save the list as UTF-8 (not as UTF-16)"
        )
    return line


def columns_of(line: bytes, splits: int = 1) -> list[str]:
    """Splits a line of a list at its tabs, or, if it has none, at its last blanks.

    Blanks around a column do not belong to it. Without a tab a path may hold blanks, and an identity may not. A line
    may hold the bytes of any name. Where they are UTF-8, the blanks of Unicode count too.

    Args:
        line: The line.
        splits: Number of blanks to split at; -1 for all.

    Returns:
        Native texts; see `plsc.machine.names`.
    """
    return list(map(os.fsdecode, byte_columns_of(line, splits)))


def byte_columns_of(line: bytes, splits: int = 1) -> list[bytes]:
    """Returns the bytes of what `columns_of` returns."""
    try:
        return [column.encode("utf-8") for column in _split(line.decode("utf-8"), "\t", splits)]
    except UnicodeDecodeError:
        return _split(line, b"\t", splits)


def _split(line: AnyStr, tab: AnyStr, splits: int) -> list[AnyStr]:
    line = line.strip()
    return [column.strip() for column in line.split(tab)] if tab in line else line.rsplit(None, splits)


def read_list(path: Path, most: Optional[int] = None) -> list[tuple[int, bytes]]:
    """Returns the lines of a text file that are not blank, or the first `most` of them, with their numbers.

    Raises:
        DataError: The file cannot be read, is not text, or has no such line.
    """
    try:
        found = [(number, checked(line, f"{path}:{number}")) for number, line in islice(lines_of(path), most)]
    except OSError as problem:
        raise DataError(
            f"{path}: cannot be read ({problem.strerror}); name a folder of images, or a list of them"
        ) from None
    if not found:
        raise DataError(f"{path}: lists no image; write one image per line")
    return found


def parse_line(path: Path, number: int, line: bytes) -> Listed:
    """Parses a line `path identity`, or `path<TAB>identity<TAB>template`, of the list `path`.

    Raises:
        DataError: The line has another form.
    """
    words = columns_of(line)
    if not 2 <= len(words) <= 3 or not all(words[:2]):
        raise DataError(
            f"{path}:{number}: {beginning_of(line)} is not 'path identity' or 'path<TAB>identity<TAB>template'; if the "
            "lines are plain paths, check that the images of the first lines exist"
        )
    name, identity = words[0], sys.intern(words[1])  # Millions of images share few identities.
    return Listed(name, identity, f"{identity}/{words[2]}" if words[2:] else "", number)


def beginning_of(line: bytes) -> str:
    """Returns the beginning of a line for an error message."""
    return quoted(line[:_LONGEST_SHOWN].decode("utf-8", "surrogateescape"))
