"""Numbers for classes that data names, and the file `classes.txt`, which may fix them."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Optional

import numpy as np

from plsc.data.image_lists import BYTE_ORDER_MARK
from plsc.errors import DataError, counted
from plsc.machine.files import open_regular
from plsc.machine.names import quoted, readable, to_text, twins_among

logger = logging.getLogger("plsc")

CLASSES = "classes.txt"


class Classes(NamedTuple):
    """Named classes.

    Attributes:
        names: Name of each class in the order of the numbers.
        numbers: Number of each class that was found, int32.
    """

    names: Sequence[str]
    numbers: np.ndarray


def name_of(raw: bytes) -> str:
    """Returns the name of a class for humans: Unicode on one line, whatever the bytes of a folder or list are."""
    return readable(to_text(os.fsdecode(raw)))


def compared(name: str) -> str:
    """Returns the form in which names are compared: systems write the same letters as different characters."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def find_names(names: Sequence[str], known: Sequence[str], owner: str) -> np.ndarray:
    """Returns the number that each class has in another list of classes, int64 [classes]; -1 if that does not name it.

    Args:
        names: The names of the classes.
        known: The names in the other list.
        owner: What the other list belongs to, for messages.

    Raises:
        DataError: Two classes of the other list have the same name, or two of the classes.
    """
    number_of: dict[str, int] = {}
    for number, name in enumerate(known):
        _check_is_new(number_of, compared(name), number, name, owner)
    seen: dict[str, int] = {}
    found = np.full(len(names), -1, np.int64)
    for number, name in enumerate(names):
        same = compared(name)
        _check_is_new(seen, same, number, name, "the data")
        found[number] = number_of.get(same, -1)
    return found


def _check_is_new(seen: dict[str, int], same: str, number: int, name: str, owner: str) -> None:
    first = seen.setdefault(same, number)
    if first != number:
        raise DataError(
            f"{owner}: the classes {first} and {number} are both called {quoted(name)}, so it is not known which of "
            "them that name means; rename one of them"
        )


def number_classes(
    found: Sequence[bytes], folder: str, where: Callable[[int], str], num_classes: Optional[int]
) -> Classes:
    """Numbers classes: in the order of `classes.txt` in the folder of the data, or else by the bytes of their names.

    Args:
        found: The names that the data uses, each once.
        folder: Folder of the data.
        where: Returns where a name is used, for error messages.
        num_classes: Number of classes; None accepts every number.

    Raises:
        DataError: `classes.txt` lacks a name or is damaged, two names are shown the same, or there are more or fewer
            classes than `num_classes`.
    """
    names, given = list(map(name_of, found)), read_classes(folder)
    listed = list(map(name_of, sorted(found) if given is None else given))
    numbers = {name: number for number, name in enumerate(listed)}
    for k, name in enumerate(names):
        if name not in numbers:
            raise DataError(
                f"{where(k)}: the class {quoted(name)} is not in {os.path.join(folder, CLASSES)}, which numbers the "
                "classes; append it to that file, or leave the class out of the data"
            )
    if num_classes not in (None, len(listed)):
        raise DataError(
            f"{folder if given is None else os.path.join(folder, CLASSES)}: names {counted(len(listed), 'class')}, but "
            f"set_class_num says {num_classes}; call set_class_num({len(listed)}) or set_class_num('auto')"
        )
    for every in (listed, names):
        if len(set(every)) < len(every):
            (twice, _), *_ = Counter(every).most_common(1)
            raise DataError(f"{folder}: two classes are called {quoted(twice)}; rename one of them")
    report_twins(folder, listed)
    return Classes(listed, np.array([numbers[name] for name in names], np.int32))


def read_classes(folder: str) -> Optional[list[bytes]]:
    """Returns the names of the classes in `classes.txt`, one on each line; None if there is no such file.

    Raises:
        DataError: The file cannot be read, or has a blank line.
    """
    path = os.path.join(folder, CLASSES)
    if not os.path.lexists(path) or os.path.isdir(path):  # A class may have this name.
        return None
    try:
        with open_regular(path) as file:
            lines = file.read().removeprefix(BYTE_ORDER_MARK).rstrip(b"\r\n").split(b"\n")
    except OSError as problem:
        raise DataError(
            f"{path}: cannot be read ({problem.strerror or problem}); it must hold a class name on each line"
        ) from None
    names = [line.removesuffix(b"\r") for line in lines]
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise DataError(f"{path}:{number}: is blank; write the name of a class on each line")
    return names


def report_twins(place: object, names: Iterable[str]) -> None:
    """Logs the first two names that look the same and are not, if there are any."""
    twins = twins_among(sorted(names))
    if twins is not None:
        logger.info(
            "%s: the identities %s and %s look the same but differ in Unicode normalization (NFC, NFD), so they count "
            "as two; rename one if it is the same identity",
            place,
            *map(ascii, twins),
        )


def names_of_numbers(dataset_dir: str, count: int, num_classes: Optional[int]) -> Sequence[str]:
    """Returns what `classes.txt` calls the classes of data whose labels are integers; empty if it does not fit.

    Args:
        dataset_dir: Folder of the data.
        count: Number of classes that the data needs at least.
        num_classes: Number of classes; None if it is to be found.
    """
    path = os.path.join(dataset_dir, CLASSES)
    try:
        names = read_classes(dataset_dir) or []
    except DataError as problem:
        logger.info("%s; the classes have no names", problem)
        return ()
    if any(b"\t" in name for name in names):  # a table, which others may have written for another purpose
        return ()
    if names and (len(names) < count or num_classes not in (None, len(names))):
        given, wanted = counted(len(names), "name"), counted(num_classes or count, "class")
        logger.info("%s: has %s for %s, so the classes have none", path, given, wanted)
        return ()
    return list(map(name_of, names))
