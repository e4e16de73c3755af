"""The index of a tar: where its images lie, and their labels."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from array import array
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from plsc.data.image_folders import has_image_suffix
from plsc.data.records import LARGEST_LABEL, check_label
from plsc.data.shard_files import OpenFile
from plsc.data.tar_headers import BLOCK, FOLDER, REGULAR, Member, Window, members
from plsc.errors import DataError, reason_of, shown
from plsc.machine.files import advice_on
from plsc.machine.json_files import parse_json
from plsc.machine.names import CONTROLS, quoted

CLASSES = b"__classes__"  # WebDataset passes over members of such names
_META = re.compile(rb"__[^/]*__($|/)")
_LABEL_FIELDS = ("label", "cls", "class")  # of a .json, the first that it has
_LARGEST_CLS, _LARGEST_JSON, _LARGEST_CLASSES = 1000, 1 << 20, 1 << 30  # bytes
_SHORT = 1024  # bytes of a label that is kept until the sample is complete
_LARGEST_IMAGE = (1 << 32) - 1  # bytes
_INTEGER = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_CONTROL = re.compile(f"[{re.escape(CONTROLS)}]")


@dataclass
class TarIndex:
    """Where the n images of a tar lie, and their labels.

    Attributes:
        path: The tar.
        offsets: Where each image begins, int64 [n].
        lengths: Bytes of each image, uint32 [n].
        labels: Their labels, or numbers of `texts`, int32 [n].
        headers: How many blocks before each image its first header begins, uint16 [n].
        keys: A hash of the key of each image, uint64 [n].
        texts: Labels that are no integers, numbered in the order in which they appear.
        first_of: First member with an integer as its label (False), and with a text (True), and that label.
        classes: Text of the member `__classes__`; None without one.
        left_out: Number of members or keys that are left out, and the name of the first, by reason.
        absolute: First name that begins with a slash; b"" without one.
    """

    path: str
    offsets: Any = field(default_factory=lambda: array("q"))
    lengths: Any = field(default_factory=lambda: array("I"))
    labels: Any = field(default_factory=lambda: array("i"))
    headers: Any = field(default_factory=lambda: array("H"))
    keys: Any = field(default_factory=lambda: array("Q"))
    texts: dict[str, int] = field(default_factory=dict)
    first_of: dict[bool, tuple[bytes, Union[int, str]]] = field(default_factory=dict)
    classes: Optional[bytes] = None
    left_out: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    absolute: bytes = b""

    def leave_out(self, reason: str, name: bytes) -> None:
        """Counts a member or a key that is left out."""
        count, first = self.left_out.get(reason, (0, name))
        self.left_out[reason] = count + 1, first


class _Label(NamedTuple):
    """A member that may hold a label, and its content if that is short."""

    member: Member
    content: Optional[bytes]


@dataclass
class _Sample:
    """The members of a key that have been met."""

    key: bytes
    images: list[Member] = field(default_factory=list)
    cls: Optional[_Label] = None
    json: Optional[_Label] = None


def index_tar(path: str) -> TarIndex:
    """Reads the headers and the labels of a tar.

    Raises:
        DataError: The tar is damaged, an image has no label or a wrong one, or two images have one key.
    """
    try:
        file = OpenFile(path)
    except OSError as error:
        advice = advice_on(error, "copy it again, or correct the path")
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); {advice}") from error
    index, window = TarIndex(path), Window(file.pread, path)
    sample = _Sample(b"")
    for member in members(window, path, file.size):
        if member.kind not in REGULAR:
            if member.kind != FOLDER:
                index.leave_out("links, devices and other special members", member.name)
            continue
        name = clean_name(member.name)
        if name.startswith(b"__") and _META.match(name):
            if name == CLASSES:
                index.classes = _content(window, path, _Label(member, None), _LARGEST_CLASSES)
            continue
        if b".." in name and b".." in name.split(b"/"):
            raise DataError(
                f"{where_member(path, member.name)}: the name leads out of its folder; nothing is unpacked, but names "
                "go into other files: write the tar again with plain names"
            )
        index.absolute = index.absolute or (member.name if member.name.startswith(b"/") else b"")
        folder, slash, base = name.rpartition(b"/")
        stem, _, suffix = base.partition(b".")
        if not stem or not suffix:
            index.leave_out("names without a key or a suffix", member.name)
            continue
        key = folder + slash + stem
        if key != sample.key:
            _add(index, window, sample)
            sample = _Sample(key)
        _sort(window, path, sample, member, suffix.lower())
    _add(index, window, sample)
    for one in ("offsets", "lengths", "labels", "headers", "keys"):
        setattr(index, one, np.array(getattr(index, one)))
    _check_keys(index, window, file.size)
    return index


def clean_name(name: bytes) -> bytes:
    """Returns the name of a member without `./` or `/` at its beginning."""
    while name.startswith((b"./", b"/")):
        name = name.lstrip(b"/").removeprefix(b"./")
    return name


def where_member(path: str, name: bytes) -> str:
    """Returns `TAR: member 'NAME'`, for messages."""
    return f"{path}: member {quoted(os.fsdecode(name))}"


def member_at(window: Window, path: str, size: int, header: int) -> Member:
    """Returns the member whose first header begins at `header`. Raises DataError if the file has changed."""
    return next(members(window, path, size, header), Member(b"", b"", 0, 0, 0))


@functools.lru_cache(maxsize=1024)
def _is_image(suffix: bytes) -> bool:
    return has_image_suffix(f"x.{os.fsdecode(suffix)}")


def _sort(window: Window, path: str, sample: _Sample, member: Member, suffix: bytes) -> None:
    """Notes what a member is in its sample."""
    known = None
    if suffix in (b"cls", b"json"):
        # A short text is read now, because it is in the window.
        label = _Label(member, window.at(member.data, member.size) if member.size <= _SHORT else None)
        if suffix == b"cls":
            known, sample.cls = sample.cls, label
        else:
            known, sample.json = sample.json, label
    elif _is_image(suffix):
        sample.images.append(member)
    if known is not None:
        raise DataError(
            f"{where_member(path, member.name)}: the tar has two members of this name; write it again, each name once"
        )


def _add(index: TarIndex, window: Window, sample: _Sample) -> None:
    """Adds the image of a sample that is complete."""
    if not sample.images:
        if sample.key:
            index.leave_out("keys without an image", sample.key)
        return
    image = _image_of(index.path, sample)
    label = _label_of(index.path, window, sample, image)
    is_text = isinstance(label, str)
    index.first_of.setdefault(is_text, (image.name, label))
    index.offsets.append(image.data)
    index.lengths.append(image.size)
    index.labels.append(index.texts.setdefault(label, len(index.texts)) if isinstance(label, str) else label)
    index.headers.append((image.data - image.header) // BLOCK)
    index.keys.append(int.from_bytes(hashlib.blake2b(sample.key, digest_size=8).digest(), "little"))


def _image_of(path: str, sample: _Sample) -> Member:
    """Returns the image of a sample: the only one, or the only one with a plain suffix, as `jpg` next to `seg.png`."""
    found = sample.images
    if len(found) > 1:
        plain = [one for one in found if one.name.rpartition(b"/")[2].count(b".") == 1]
        found = plain if len(plain) == 1 else found
    if len(found) > 1:
        first, second = (quoted(os.fsdecode(one.name)) for one in found[:2])
        raise DataError(
            f"{path}: {first} and {second} have the same key, which ends at the first dot of the name, and a key has "
            "one image; rename them"
        )
    if found[0].size > _LARGEST_IMAGE:
        raise DataError(f"{where_member(path, found[0].name)}: {found[0].size:,} bytes are too many for an image")
    return found[0]


def _label_of(path: str, window: Window, sample: _Sample, image: Member) -> Union[int, str]:
    """Returns the label of a sample, an integer or the name of a class."""
    if sample.cls is not None:
        content = _content(window, path, sample.cls, _LARGEST_CLS).strip()
        if content.isdigit() and len(content) < 10:  # most are
            return int(content)
        return _parsed(content, where_member(path, sample.cls.member.name))
    if sample.json is None:
        raise DataError(
            f"{where_member(path, image.name)}: has no label, because no .cls or .json of the same key stands next to "
            "it; add it, or, if the members are in disorder, write the tar again with tar --sort=name"
        )
    where = where_member(path, sample.json.member.name)
    try:
        found = parse_json(_content(window, path, sample.json, _LARGEST_JSON))
    except ValueError as error:
        raise DataError(f"{where}: is not JSON ({reason_of(error)}); correct it") from None
    name = next((one for one in _LABEL_FIELDS if isinstance(found, dict) and found.get(one) is not None), None)
    if name is None:
        raise DataError(f"{where}: has no label; write one as 'label', 'cls' or 'class', or add a .cls")
    label = found[name]
    if isinstance(label, str):
        return _parsed(label.strip().encode("utf-8", "surrogatepass"), where)
    if isinstance(label, bool) or not isinstance(label, int):
        raise DataError(f"{where}: {name!r} is {shown(label)}; a label is an integer, or the name of a class")
    check_label(label, where, None, label)
    return label


def _parsed(text: bytes, where: str) -> Union[int, str]:
    """Returns a label that is written as text."""
    try:
        label = text.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{where}: the label {text[:40]!r} is not text in UTF-8; correct it") from None
    if _INTEGER.fullmatch(label):
        number = int(label) if len(label) < 20 else (-1 if label.startswith("-") else LARGEST_LABEL + 1)
        check_label(number, where, None, number)
        return number
    if not label or _FLOAT.fullmatch(label) or _CONTROL.search(label):
        raise DataError(f"{where}: label {shown(label)} is neither an integer nor the name of a class; correct it")
    return label


def _content(window: Window, path: str, label: _Label, most: int) -> bytes:
    member, content = label
    if member.size > most:
        raise DataError(
            f"{where_member(path, member.name)}: has {member.size:,} bytes, more than the {most:,} that a label may "
            "have; correct it"
        )
    return window.at(member.data, member.size) if content is None else content


def _check_keys(index: TarIndex, window: Window, size: int) -> None:
    """Raises DataError if two samples of a tar have the same key."""
    order = np.argsort(index.keys, kind="stable")
    twins = np.flatnonzero(np.diff(index.keys[order]) == 0)
    for place in twins.tolist():
        pair = [
            member_at(window, index.path, size, int(index.offsets[i]) - BLOCK * int(index.headers[i])).name
            for i in order[place : place + 2].tolist()
        ]
        first, second = (quoted(os.fsdecode(name)) for name in pair)
        raise DataError(
            f"{index.path}: {first} and {second} have the same key, the name up to its first dot, and do not follow "
            "each other; give each sample its own key, or write the tar again with tar --sort=name"
        )
