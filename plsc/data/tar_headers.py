"""The headers of a tar file: what each member is called and where its bytes lie, without reading those bytes.

It reads the formats ustar, GNU and PAX. Python's `tarfile` reads them too, but makes large objects: walking a million
members takes it several times as long.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Optional

from plsc.errors import DataError
from plsc.machine.files import advice_on
from plsc.machine.names import quoted

BLOCK = 512  # bytes of a header; the data of a member is padded to whole blocks
REGULAR = (b"0", b"\0", b"7")
FOLDER = b"5"
_LINKS_AND_DEVICES = (b"1", b"2", b"3", b"4", FOLDER, b"6")  # no data follows their headers
_LONG_NAME, _LONG_TARGET, _VOLUME_LABEL = b"L", b"K", b"V"
_PAX, _PAX_OF_ALL = (b"x", b"X"), b"g"
_SPARSE, _CONTINUED = b"S", b"M"
_WINDOW = 4096  # bytes read at a time, often enough for a label and the header of the next image
_LONGEST_HEADER = 1 << 20  # bytes of a long name, or of the records of a PAX header
_ADLER = 65521
_ZEROS = bytes(BLOCK)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_CHUNK = 1 << 20


class Member(NamedTuple):
    """One member of a tar.

    Attributes:
        name: Its name, as it stands in the tar.
        kind: Its type flag, one byte; see `REGULAR` and `FOLDER`.
        header: Where its first header begins: that of a long name if it has one.
        data: Where its data begins.
        size: Bytes of its data.
    """

    name: bytes
    kind: bytes
    header: int
    data: int
    size: int


class Window:
    """A reader of small pieces of a file that lie close together.

    Args:
        pread: Reads the file; see `OpenFile`.
        path: Its name, for error messages.
    """

    def __init__(self, pread: Callable[[int, int], bytes], path: str) -> None:
        self._pread, self._path = pread, path
        self._data, self._first = b"", 0

    def at(self, place: int, size: int) -> bytes:
        """Returns `size` bytes, or fewer where the file ends. Raises DataError if the disk fails."""
        start = place - self._first
        if start < 0 or start + size > len(self._data):
            try:
                self._data = self._pread(max(size, _WINDOW), place)
            except OSError as error:
                advice = advice_on(error, "check the disk")
                raise DataError(f"{self._path}: cannot be read ({error.strerror or error}); {advice}") from error
            self._first, start = place, 0
        return self._data[start : start + size]


def members(window: Window, path: str, size: int, place: int = 0) -> Iterator[Member]:
    """Yields the members of a tar.

    Args:
        window: Reads the file.
        path: The file, for error messages.
        size: Its bytes.
        place: Where the header of the first member begins.

    Raises:
        DataError: It is no tar, or is compressed, damaged or cut off, or has members that cannot be read in place.
    """
    begin, longer, records, of_all = place, b"", {}, {}  # what the headers before a member say about it
    while True:
        header = window.at(place, BLOCK)
        if header == _ZEROS:
            return _check_end(window, path, size, place + BLOCK)
        length, kind = _checked(header, path, size, place), header[156:157]
        data = place + BLOCK
        if kind in (_LONG_NAME, _LONG_TARGET, *_PAX, _PAX_OF_ALL):
            text = _text(window, path, size, (data, length))
            if kind == _LONG_NAME:
                longer = text.partition(b"\0")[0]
            elif kind == _PAX_OF_ALL:
                of_all.update(_records(text, path, place))
            elif kind != _LONG_TARGET:
                records = _records(text, path, place)
            place = _after(data, length)
            continue
        name = longer or _name(header)
        if records or of_all:
            records = {**of_all, **records}
            name = records.get(b"path", name)
            length = _digits(records.get(b"size", b"%d" % length), path, place)
        if kind in (_SPARSE, _CONTINUED) or any(one.startswith(b"GNU.sparse") for one in records):
            raise _unreadable(path, name, kind)
        if kind == b"\0" and name.endswith(b"/"):  # as tars of the seventies name folders
            kind = FOLDER
        length = 0 if kind in _LINKS_AND_DEVICES else length
        if data + length > size:
            raise DataError(
                f"{path}: member {_shown(name)} needs {data + length:,} bytes and the file has {size:,}, so it was cut "
                "off; copy it again"
            )
        if kind != _VOLUME_LABEL:
            yield Member(name, kind, begin, data, length)
        place = begin = _after(data, length)
        longer, records = b"", {}


def name_of(header: bytes) -> Optional[bytes]:
    """Returns the name of a regular file that its header alone describes; None if that is not such a header."""
    with contextlib.suppress(ValueError):
        if len(header) == BLOCK and header[156:157] in REGULAR and _sum_fits(header):
            return _name(header)
    return None


def _after(data: int, length: int) -> int:
    """Returns where the header after some data begins."""
    return data + (length + BLOCK - 1) // BLOCK * BLOCK


def _checked(header: bytes, path: str, size: int, place: int) -> int:
    """Checks a header, and returns the length that it names."""
    if place >= size > 0:
        raise DataError(
            f"{path}: ends at byte {size:,} without the zero bytes that end a tar, so it was cut off; copy it again, "
            f"or, if nothing is missing, append the end: head -c 1024 /dev/zero >> {shlex.quote(path)}"
        )
    try:
        if len(header) == BLOCK and _sum_fits(header):
            return _number(header[124:136])
    except ValueError:
        pass
    if place:
        cut = "cut off" if len(header) < BLOCK else "damaged"
        raise DataError(f"{path}: byte {place:,} should begin a member and does not: the file is {cut}; copy it again")
    kind = next((name for magic, name in _COMPRESSED.items() if header.startswith(magic)), None)
    if kind is not None:
        raise DataError(
            f"{path}: is compressed ({kind}), and images are read from any place of a tar, which needs a plain one; "
            f"unpack it: {kind} -dc {shlex.quote(path)} > {shlex.quote(_plain(path))}"
        )
    raise DataError(f"{path}: {'is empty' if not size else 'is not a tar file'}; copy it again, or leave it out")


def _plain(path: str) -> str:
    """Returns a name for the unpacked file of a compressed one."""
    stem = re.sub(r"(\.tar|\.t?(gz|bz2|xz|zst))+$", "", path)
    return f"{stem}.tar" if f"{stem}.tar" != path else f"{stem}.plain.tar"


def _sum_fits(header: bytes) -> bool:
    """Returns whether the checksum of a header is right."""
    field = header[148:156]
    stored = _number(field)
    # The low half of an Adler-32 is the sum of all bytes plus one, much faster than sum().
    total = (zlib.adler32(header) & 0xFFFF) - (zlib.adler32(field) & 0xFFFF) + 8 * 32
    if (stored - total) % _ADLER == 0:
        return True
    signed = sum(byte - (byte >> 7 << 8) for byte in header[:148] + b" " * 8 + header[156:])
    return stored == signed  # as some old programs calculated it


def _number(field: bytes) -> int:
    """Returns the number of a field: octal digits, or binary after a byte of 0x80. Raises ValueError for others."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.rstrip(b"\0 ")
    if not text.isdigit():
        text = field.partition(b"\0")[0].strip(b" ")
        if text and not text.isdigit():
            raise ValueError(text)
    return int(text or b"0", 8)


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return b"%s/%s" % (prefix, name) if prefix else name


def _text(window: Window, path: str, size: int, place: tuple[int, int]) -> bytes:
    """Returns the data (place, length) of a header that says more about the next one."""
    first, length = place
    if length > _LONGEST_HEADER or first + length > size:
        raise DataError(f"{path}: the header before byte {first:,} is damaged, or the file was cut off; copy it again")
    return window.at(first, length)


def _records(text: bytes, path: str, place: int) -> dict[bytes, bytes]:
    """Returns the records `length name=value` of a PAX header."""
    found, first, end = {}, 0, len(text.rstrip(b"\0"))
    while first < end:
        blank = text.find(b" ", first, first + 8)
        digits = text[first : max(blank, first)]
        last = first + (int(digits) if digits.isdigit() else 0) - 1
        name, equals, value = text[blank + 1 : max(last, 0)].partition(b"=")
        if blank < first or not equals or last <= blank or text[last : last + 1] != b"\n":
            raise DataError(f"{path}: the PAX header at byte {place:,} is damaged; copy the file again")
        found[name] = value
        first = last + 1
    return found


def _digits(text: bytes, path: str, place: int) -> int:
    if not text.isdigit() or len(text) > 18:
        raise DataError(f"{path}: the PAX header before byte {place:,} names no size; copy the file again")
    return int(text)


def _unreadable(path: str, name: bytes, kind: bytes) -> DataError:
    if kind == _CONTINUED:
        return DataError(f"{path}: is one of several volumes of a tar; write them again as one (tar without -M)")
    return DataError(
        f"{path}: member {_shown(name)} is sparse, so its bytes do not lie in one piece; write the tar again without "
        "--sparse"
    )


def _shown(name: bytes) -> str:
    return quoted(os.fsdecode(name))


def _check_end(window: Window, path: str, size: int, place: int) -> None:
    """Checks that no other tar follows the zero bytes that end one."""
    while place < size:
        chunk = window.at(place, min(_CHUNK, size - place))
        kept = chunk.lstrip(b"\0")
        if kept:
            first = place + (len(chunk) - len(kept)) // BLOCK * BLOCK
            header = window.at(first, BLOCK)
            try:
                follows = len(header) == BLOCK and _sum_fits(header)
            except ValueError:
                follows = False
            if follows:
                raise DataError(
                    f"{path}: another tar follows the end of the first, at byte {first:,}; join tars with "
                    "tar --concatenate, not with cat"
                )
            return
        place += len(chunk)
        if not chunk:
            return
