"""The format of base64 data: parts of `base64<TAB>label` lines, the file that lists them, and the manifest.

A folder with a `base64_manifest.json` holds a complete data set, split for a number of ranks.
"""

from __future__ import annotations

import binascii
import enum
import os
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Optional

import numpy as np

from plsc.errors import DataError, one_line
from plsc.machine.files import advice_on
from plsc.machine.json_files import as_integer, as_list, as_object, as_text, json_text, parse_json, short
from plsc.machine.names import from_text, is_utf8, quoted, why_missing
from plsc.storage.base import Status, Storage, StorageError, read_bytes
from plsc.storage.local import LOCAL, LocalStorage


def _find_fast_decoder() -> Optional[Callable[..., bytes]]:
    """Returns a decoder that is ten times as fast as Python's own, if it is installed."""
    try:
        import pybase64
    except ImportError:
        return None
    decoder: Callable[..., bytes] = pybase64.b64decode
    return decoder


_fast_decode = _find_fast_decoder()

MANIFEST_NAME = "base64_manifest.json"
FILE_LIST_NAME = "base64_file_list.txt"
SKIPPED_NAME = "base64_skipped.txt"
FORMAT = "plsc-base64"
VERSION = 1
LONGEST_LABEL = 18  # digits, so that a label fits an int64

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NEWLINE, _TAB, _ZERO, _NINE, _PADDING = b"\n\t09="


def rank_file_name(rank: int) -> str:
    """Returns the name of the file with the lines of one rank."""
    return f"base64_rank_{rank}"


@dataclass(frozen=True)
class Part:
    """One input file.

    Attributes:
        name: Its name in the list, with bytes that are not UTF-8 as surrogates; see `to_text`.
        path: Its path.
        size: Its size in bytes when the list was read.
        modified: Seconds since 1970 of its last change when the list was read.
    """

    name: str
    path: str
    size: int
    modified: float


def read_file_list(data_dir: str, file_list: str, storage: Storage = LOCAL) -> list[Part]:
    """Reads and checks `data_dir/file_list`, which names one part a line, relative to `data_dir`.

    On a disk the bytes of a line are the bytes of a name, whatever their encoding and the locale.

    Raises:
        DataError: A line is blank, has a Windows line end, is an absolute path or leaves the folder; or a part is named
            twice, cannot be read or is empty. The error names the first such line.
    """
    list_path = os.path.join(data_dir, file_list)
    found = storage.status(data_dir)
    if found is None or not found.is_folder:
        raise DataError(f"{data_dir}: no such folder; give the folder of {file_list} with --data_dir")
    try:
        lines = read_bytes(storage, list_path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except StorageError as error:
        raise DataError(
            f"{list_path}: cannot read the list of parts ({error.reason}); check --data_dir and --file_list"
        ) from error
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{list_path}: names no parts; write one file name per line")
    parts: list[Part] = []
    seen: dict[Hashable, int] = {}
    for number, line in enumerate(lines, 1):
        where = f"{list_path}:{number}"
        name = _part_name(line, where)
        path = os.path.join(data_dir, from_text(name) if isinstance(storage, LocalStorage) else _utf8(name, where))
        status = _part_status(storage, path, name, where)
        first = seen.setdefault(status.identity, number)
        if first != number:
            raise DataError(
                f"{where}: {quoted(name)} is the same file as the part in line {first}; remove one of the lines"
            )
        parts.append(Part(name, path, status.size, status.modified))
    return parts


def _part_name(line: bytes, where: str) -> str:
    if not line.strip():
        raise DataError(f"{where}: blank line; remove it")
    if line.endswith(b"\r"):
        raise DataError(f"{where}: Windows line end; convert the list, for example with sed -i 's/\\r$//'")
    name = line.decode("utf-8", "surrogateescape")
    if os.path.isabs(name):
        raise DataError(f"{where}: {quoted(name)} is an absolute path; write it relative to --data_dir")
    if ".." in name.split("/"):
        raise DataError(f"{where}: {quoted(name)} leaves --data_dir; write a path without '..'")
    return name


def _utf8(name: str, where: str) -> str:
    if not is_utf8(name):
        raise DataError(f"{where}: not UTF-8; save the list as UTF-8, since its parts are not files of this machine")
    return name


def _part_status(storage: Storage, path: str, name: str, where: str) -> Status:
    advice = "restore it or remove the line"
    try:
        status = storage.status(path)
    except (StorageError, ValueError) as error:  # a ValueError for a name with a null byte
        reason = getattr(error, "reason", error)
        raise DataError(f"{where}: cannot read part {quoted(name)} ({reason}); {advice}") from error
    if status is None:
        native = from_text(name)
        why = why_missing(path.removesuffix(native), native) if isinstance(storage, LocalStorage) else ""
        raise DataError(f"{where}: cannot read part {quoted(name)} (no such file); {advice}{why}")
    if not status.is_file:
        raise DataError(f"{where}: {quoted(name)} is not a file; name files only")
    if status.size == 0:
        raise DataError(f"{where}: part {quoted(name)} is empty; restore it or remove the line")
    return status


def open_part(part: Part) -> Any:
    """Opens a part, unbuffered. Raises DataError if it cannot be read, or has changed since the list was read."""
    try:
        file = open(part.path, "rb", buffering=0)  # noqa: SIM115 - the caller closes it
    except OSError as error:
        advice = advice_on(error, "restore it and run again")
        raise DataError(f"{part.path}: cannot read the part ({error.strerror}); {advice}") from error
    status = os.fstat(file.fileno())
    if (status.st_size, status.st_mtime) != (part.size, part.modified):
        file.close()
        raise changed(part)
    return file


def changed(part: Part) -> DataError:
    """Returns the error for a part that something wrote to in the meantime."""
    return DataError(f"{part.path}: the part changed while it was being read; run again once nothing writes to it")


class Fault(enum.IntEnum):
    """A reason why a line is bad."""

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
    Fault.WINDOWS: "Windows line end; convert the part, for example with sed -i 's/\\r$//'",
    Fault.NO_TAB: "no tab; write base64<TAB>label",
    Fault.NEGATIVE: "the label is negative; labels start at 0",
    Fault.LABEL: f"the label is not a number of 1 to {LONGEST_LABEL} digits; write base64<TAB>label",
    Fault.NO_IMAGE: "nothing before the tab; write base64<TAB>label",
    Fault.ALPHABET: "a character that is not base64 (A-Z a-z 0-9 + / and = at the end); encode the image again",
    Fault.LENGTH: "the base64 has a wrong length or padding, and may be cut off; encode the image again",
    Fault.LONG: "the line is longer than {max_line} bytes; raise --max_line or remove the line",
    Fault.IMAGE: "Pillow cannot decode the image; replace it or remove the line",
}


class Lines(NamedTuple):
    """The lines of a block, as arrays of one length. Of a bad line only the start, the end and the fault are valid.

    Attributes:
        starts: Where each line begins in the block.
        ends: Where its newline is.
        tabs: Where its last tab is.
        labels: Its label, int64.
        faults: Its `Fault`, or 0 for a good line.
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
    """Checks all lines at once by the rules of `check_line`. Returns None if any line is bad."""
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
    # Without the letters and digits only tabs, newlines and '=' may remain, and each '=' must be one of the last two
    # characters before the tab. That labels are digits is checked above.
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
    """Returns what is wrong with a line, given without its newline, or None if it is good."""
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


def decode_base64(image: bytes) -> Optional[bytes]:
    """Decodes an image, or returns None for base64 that `check_line` calls bad, without the time of that check."""
    try:
        data = binascii.a2b_base64(image) if _fast_decode is None else _fast_decode(image, validate=True)
    except binascii.Error:
        return None
    # Python's decoder skips characters that are not base64, and then the image is too short.
    padding = 2 if image.endswith(b"==") else int(image.endswith(b"="))
    return data if image and len(image) % 4 == 0 and len(data) == len(image) // 4 * 3 - padding else None


@dataclass(frozen=True)
class OutputFile:
    """One file of a split data set.

    Attributes:
        name: Its name.
        samples: How many lines it has.
        padding: How many of them, at the end, are copies.
        bytes: Its size.
        sha256: The SHA-256 of its bytes, in hexadecimal.
    """

    name: str
    samples: int
    padding: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The description of a folder of split base64 data.

    Attributes:
        nranks: The number of files.
        seed: The seed of the order.
        samples: The number of distinct samples.
        padding: The number of copies that make all files equally long.
        skipped: The number of bad lines that were left out.
        samples_per_file: The number of lines of each file, copies included.
        largest_label: The largest label.
        files: The files, in the order of ranks.
        source_list: The name of the list of parts.
        sources: The name, the bytes and the lines of each part.
        file_list: The name of the list of files.
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
        """Returns the text of `base64_manifest.json`."""
        return json_text({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"


def load_manifest(folder: str, storage: Storage = LOCAL) -> Optional[Manifest]:
    """Reads the manifest of a folder. Returns None if there is none.

    Raises:
        DataError: The file is not a manifest of base64 data, or of a newer version.
    """
    path = os.path.join(folder, MANIFEST_NAME)
    try:
        if storage.status(path) is None:
            return None
        values = parse_json(read_bytes(storage, path))
    except StorageError as error:
        raise DataError(f"{path}: cannot read the manifest ({error.reason}); check its permissions") from error
    except ValueError as error:
        raise DataError(f"{path}: not a manifest of base64 data ({one_line(str(error))}); move it away") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise DataError(f"{path}: not a manifest of base64 data; move it away")
    version = values.pop("version", None)
    if version != VERSION:
        raise DataError(
            f"{path}: is of version {short(version)}, but this plsc reads version {VERSION}; use a newer plsc"
        )
    try:
        return _checked(Manifest(**{**values, "files": [OutputFile(**one) for one in as_list(values["files"])]}))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else one_line(str(error))
        raise DataError(f"{path}: the manifest is damaged ({reason}); move it away and run the tool again") from error


def _checked(manifest: Manifest) -> Manifest:
    """Returns the manifest. Raises ValueError if its numbers and names are not those that the tool writes."""
    for file in manifest.files:
        if os.path.basename(as_text(file.name)) != file.name or "\0" in file.name:
            raise ValueError("a file name with a folder in it")
        if as_integer(file.padding) > as_integer(file.samples) or as_integer(file.bytes) < file.samples:
            raise ValueError(f"the numbers of {short(file.name)} contradict each other")
        as_text(file.sha256)
    total = sum(file.samples - file.padding for file in manifest.files)
    same = all(file.samples == manifest.samples_per_file for file in manifest.files)
    if as_integer(manifest.nranks, 1) != len(manifest.files) or as_integer(manifest.samples, 1) != total or not same:
        raise ValueError("its numbers contradict each other")
    for name in ("seed", "padding", "skipped", "largest_label"):
        as_integer(getattr(manifest, name))
    for name in (manifest.source_list, manifest.file_list):
        if "\0" in as_text(name):
            raise ValueError("a name with a null character")
    for source in as_list(manifest.sources):
        as_object(source)
    return manifest
