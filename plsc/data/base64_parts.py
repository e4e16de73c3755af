"""The format of base64 data: parts of `base64<TAB>label` lines, the file that lists them, and the manifest.

A folder that holds `base64_manifest.json` holds a complete data set, split for a number of ranks.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Hashable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Optional

import numpy as np

from plsc.errors import DataError
from plsc.storage.local_files import LOCAL, Files, Status

MANIFEST_NAME = "base64_manifest.json"
FILE_LIST_NAME = "base64_file_list.txt"
SKIPPED_NAME = "base64_skipped.txt"
FORMAT = "plsc-base64"
VERSION = 1
LONGEST_LABEL = 18  # digits: such a label fits an int64

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NEWLINE, _TAB, _ZERO, _NINE, _PADDING = b"\n\t09="


def rank_file_name(rank: int) -> str:
    """The name of the lines of one rank."""
    return f"base64_rank_{rank}"


@dataclass(frozen=True)
class Part:
    """One input file: its name in the list, its path, and what it was like when the list was read (bytes, ns)."""

    name: str
    path: str
    size: int
    modified: int


def read_file_list(data_dir: str, file_list: str, files: Files = LOCAL) -> list[Part]:
    """Reads and checks `data_dir/file_list`, one part a line, relative to `data_dir`.

    Raises DataError for the first line that is blank, ends the Windows way, is absolute or leaves the folder, or names
    a part twice, one that cannot be read, or one without lines.
    """
    list_path = os.path.join(data_dir, file_list)
    if not files.is_folder(data_dir):
        raise DataError(f"{data_dir}: no such folder; give the folder of {file_list} with --data_dir")
    try:
        lines = files.read(list_path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise DataError(
            f"{list_path}: cannot read the list of parts ({error.strerror}); check --data_dir and --file_list"
        ) from error
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{list_path}: names no parts; write one file name a line")
    parts: list[Part] = []
    seen: dict[Hashable, int] = {}
    for number, line in enumerate(lines, 1):
        where = f"{list_path}:{number}"
        name = _part_name(line, where)
        status = _part_status(files, os.path.join(data_dir, name), name, where)
        first = seen.setdefault(status.identity, number)
        if first != number:
            raise DataError(f"{where}: {name!r} is the part line {first} names; remove one of them")
        parts.append(Part(name, os.path.join(data_dir, name), status.size, status.modified))
    return parts


def _part_name(line: bytes, where: str) -> str:
    if not line.strip():
        raise DataError(f"{where}: blank line; remove it")
    if line.endswith(b"\r"):
        raise DataError(f"{where}: Windows line end; convert the list, for instance with sed -i 's/\\r$//'")
    try:
        name = line.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{where}: not UTF-8; save the list as UTF-8") from None
    if os.path.isabs(name):
        raise DataError(f"{where}: {name!r} is an absolute path; write it relative to --data_dir")
    if ".." in name.split("/"):
        raise DataError(f"{where}: {name!r} leaves --data_dir; write a path without '..'")
    return name


def _part_status(files: Files, path: str, name: str, where: str) -> Status:
    try:
        status = files.status(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{where}: cannot read part {name!r} ({reason}); restore it or remove the line") from error
    if not status.is_file:
        raise DataError(f"{where}: {name!r} is not a file; name files only")
    if status.size == 0:
        raise DataError(f"{where}: part {name!r} is empty; restore it or remove the line")
    return status


def open_part(part: Part) -> Any:
    """Opens a part, unbuffered. Raises DataError when it cannot be read or has changed since the list was read."""
    try:
        file = open(part.path, "rb", buffering=0)  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise DataError(f"{part.path}: cannot read the part ({error.strerror}); restore it and run again") from error
    status = os.fstat(file.fileno())
    if (status.st_size, status.st_mtime_ns) != (part.size, part.modified):
        file.close()
        raise changed(part)
    return file


def changed(part: Part) -> DataError:
    """The error for a part that was written to meanwhile."""
    return DataError(f"{part.path}: the part changed while it was being read; run again when nothing writes to it")


class Fault(enum.IntEnum):
    """What can be wrong with a line."""

    BLANK = 1
    WINDOWS = 2
    NO_TAB = 3
    NEGATIVE = 4
    LABEL = 5
    NO_IMAGE = 6
    ALPHABET = 7
    LENGTH = 8
    LONG = 9
    IMAGE = 10


ADVICE = {
    Fault.BLANK: "blank line; remove it",
    Fault.WINDOWS: "Windows line end; convert the part, for instance with sed -i 's/\\r$//'",
    Fault.NO_TAB: "no tab; write base64<TAB>label",
    Fault.NEGATIVE: "the label is negative; labels count from 0",
    Fault.LABEL: f"the label is not a number of 1 to {LONGEST_LABEL} digits; write base64<TAB>label",
    Fault.NO_IMAGE: "nothing before the tab; write base64<TAB>label",
    Fault.ALPHABET: "a character that is not base64 (A-Z a-z 0-9 + / and = at the end); encode the image again",
    Fault.LENGTH: "the base64 has a wrong length or padding, cut off perhaps; encode the image again",
    Fault.LONG: "the line is longer than {max_line} bytes; raise --max_line or remove the line",
    Fault.IMAGE: "Pillow cannot decode the image; replace it or remove the line",
}


class Lines(NamedTuple):
    """The lines of a block, all arrays of one length.

    `starts` and `ends` (of the newline) are positions in the block, `tabs` those of the last tab; `labels` int64;
    `faults` is 0 for a good line. What is said of a bad line, apart from its place and fault, means nothing.
    """

    starts: np.ndarray
    ends: np.ndarray
    tabs: np.ndarray
    labels: np.ndarray
    faults: np.ndarray


def find_lines(block: bytes, max_line: int) -> Lines:
    """Finds and checks the lines of a block that ends with a newline (or is empty)."""
    return _all_good(block, max_line) or _one_by_one(block, max_line)


def _all_good(block: bytes, max_line: int) -> Optional[Lines]:
    """Checks all lines at once; None when any is bad. `check_line` says what is good."""
    if not block:
        return None
    characters = np.frombuffer(block, np.uint8)
    controls = np.flatnonzero(characters <= _NEWLINE)
    tabs, ends = controls[::2], controls[1::2]
    if len(tabs) != len(ends) or (characters[tabs] != _TAB).any() or (characters[ends] != _NEWLINE).any():
        return None
    starts = _starts(ends)
    images = tabs - starts
    if (images < 4).any() or (images % 4).any() or (ends - starts > max_line).any():
        return None
    labels = _labels(characters, tabs, ends)
    if labels is None:
        return None
    # With the letters gone only tabs, newlines and '=' may be left, and each '=' must be one of the last two before
    # the tab: labels are digits, as was seen above.
    rest = block.translate(None, _ALPHABET)
    paddings = rest.count(b"=")
    last = characters[tabs - 1] == _PADDING
    last_two = last & (characters[tabs - 2] == _PADDING)
    if len(rest) != 2 * len(tabs) + paddings or paddings != last.sum() + last_two.sum():
        return None
    return Lines(starts, ends, tabs, labels, np.zeros(len(starts), np.uint8))


def _labels(characters: np.ndarray, tabs: np.ndarray, ends: np.ndarray) -> Optional[np.ndarray]:
    lengths = ends - tabs - 1
    if (lengths < 1).any() or (lengths > LONGEST_LABEL).any():
        return None
    labels = np.zeros(len(tabs), np.int64)
    for place in range(int(lengths.max(initial=0))):
        longer = np.flatnonzero(lengths > place)
        digits = characters[tabs[longer] + 1 + place]
        if (digits < _ZERO).any() or (digits > _NINE).any():
            return None
        labels[longer] = labels[longer] * 10 + (digits - _ZERO)
    return labels


def _starts(ends: np.ndarray) -> np.ndarray:
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    return starts


def _one_by_one(block: bytes, max_line: int) -> Lines:
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == _NEWLINE) if block else np.zeros(0, np.int64)
    starts = _starts(ends)
    tabs, labels = np.zeros_like(starts), np.zeros(len(starts), np.int64)
    faults = np.zeros(len(starts), np.uint8)
    for number in range(len(starts)):
        start = int(starts[number])
        line = bytes(block[start : int(ends[number])])
        fault = check_line(line, max_line)
        if fault:
            faults[number] = fault
        else:
            tabs[number] = start + line.rindex(b"\t")
            labels[number] = int(line[line.rindex(b"\t") + 1 :])
    return Lines(starts, ends, tabs, labels, faults)


def check_line(line: bytes, max_line: int) -> Optional[Fault]:
    """Says what is wrong with one line, given without its newline; None for a good one."""
    if len(line) > max_line:
        return Fault.LONG
    if not line.strip():
        return Fault.BLANK
    if line.endswith(b"\r"):
        return Fault.WINDOWS
    image, tab, label = line.rpartition(b"\t")
    if not tab:
        return Fault.NO_TAB
    if label.startswith(b"-") and label[1:].isdigit():
        return Fault.NEGATIVE
    if not label.isdigit() or len(label) > LONGEST_LABEL:
        return Fault.LABEL
    if not image:
        return Fault.NO_IMAGE
    letters = image[:-2] + image[-2:].rstrip(b"=")
    if letters.translate(None, _ALPHABET + b"="):
        return Fault.ALPHABET
    if b"=" in letters or len(image) % 4:
        return Fault.LENGTH
    return None


@dataclass(frozen=True)
class OutputFile:
    """One file of a split data set: `samples` lines, the last `padding` of which are copies; sizes in bytes."""

    name: str
    samples: int
    padding: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of split base64 data holds.

    `samples` are the distinct ones; `padding` of them stand a second time, so that each file has `samples_per_file`.
    """

    nranks: int
    seed: int
    samples: int
    padding: int
    skipped: int
    samples_per_file: int
    largest_label: int
    files: list[OutputFile]
    source_list: str
    sources: list[dict[str, Any]] = field(default_factory=list)
    file_list: str = FILE_LIST_NAME

    def to_json(self) -> str:
        """The text of `base64_manifest.json`."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"


def load_manifest(folder: str, files: Files = LOCAL) -> Optional[Manifest]:
    """Reads the manifest of a folder; None when it holds none.

    Raises DataError when the file is no manifest of base64 data, or of a newer version.
    """
    path = os.path.join(folder, MANIFEST_NAME)
    try:
        values = json.loads(files.read(path).decode("utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot read the manifest ({error.strerror}); check its permissions") from error
    except ValueError as error:
        raise DataError(f"{path}: not a manifest of base64 data ({error}); move it away") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise DataError(f"{path}: not a manifest of base64 data; move it away")
    version = values.pop("version", None)
    if version != VERSION:
        raise DataError(f"{path}: version {version!r}, and this plsc reads version {VERSION}; use a newer plsc")
    try:
        manifest = Manifest(**{**values, "files": [OutputFile(**file) for file in values["files"]]})
        if any(os.path.basename(file.name) != file.name for file in manifest.files):
            raise TypeError("a file name with a folder")
        return manifest
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: a damaged manifest ({error}); move it away and run the tool again") from error
