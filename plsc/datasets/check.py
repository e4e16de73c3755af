"""Finds what is wrong with the images of a data set: damaged ones, duplicates, and images of its test sets."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Optional

import numpy as np

from plsc.data.collection import ArrayImages, Collection, RecordImages, open_collection
from plsc.data.damaged import is_damage
from plsc.data.exclusion import line_of
from plsc.data.image_lists import columns_of, read_list
from plsc.data.pair_sets import read_pairs
from plsc.data.pixels import PixelRule
from plsc.data.prefetch import prefetch
from plsc.data.records import Records
from plsc.data.sources import format_of, open_images
from plsc.data.verification import load_verification
from plsc.datasets.look_alikes import Closest, are_alike, close_pairs, digest_of, hash_of, reduced
from plsc.errors import DataError

_CHUNK = 64
_PAIRS = 1 << 16  # of images that may look alike, of which memory holds small copies at a time
_LISTED_FORMATS = ("jpeg", "folder")  # whose identities a test need not number
_MOST_REASONS = 100_000  # that are kept; when a whole disk is gone, the reasons are alike


class View(NamedTuple):
    """How images are looked at.

    Attributes:
        shape: (C, H, W), to which they are resized.
        rule: What their pixels mean.
        workers: Number of threads.
        advance: Called with the number of images that are done, for a progress bar.
        chunk: Images that a thread decodes at a time.
    """

    shape: tuple[int, int, int]
    rule: PixelRule
    workers: int
    advance: Callable[[int], None]
    chunk: int = _CHUNK


@dataclass
class Findings:
    """What `check` has found. Images are numbered from 0 in the data set, and on in the test sets, one after another.

    Attributes:
        images: The data set, and the test sets.
        names: What they are called.
        labels: Class of each image of the data set.
        damaged: Images that cannot be decoded.
        reasons: Why, for the first of them, by number.
        members: Images that have the same pixels as another one, group by group, each in the order of the data set.
        groups: First of the members of each group, and their number, int64 [G + 1].
        near: Images of the data set that look like another one before them, and that one, int64 [n, 2].
        leaks: Images of the data set that are or look like an image of a test set, and that one, int64 [n, 2].
    """

    images: Sequence[Collection]
    names: Sequence[str]
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    damaged: array = field(default_factory=lambda: array("q"))
    reasons: dict[int, str] = field(default_factory=dict)
    members: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    groups: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    near: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    leaks: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))

    def __post_init__(self) -> None:
        self._firsts = np.cumsum([0, *(one.num_images for one in self.images)])

    @property
    def total(self) -> int:
        """Number of images, those of the test sets included."""
        return int(self._firsts[-1])

    def set_of(self, i: int) -> int:
        """Returns 0 for an image of the data set, and n for one of test set n."""
        return int(np.searchsorted(self._firsts, i, side="right")) - 1

    def name(self, i: int) -> str:
        """Returns what an image is called in its set."""
        return self.images[self.set_of(i)].name(i - int(self._firsts[self.set_of(i)]))

    def pixels(self, i: int, view: View) -> np.ndarray:
        """Returns an image; see `Collection.pixels`."""
        number = self.set_of(i)
        return self.images[number].pixels(i - int(self._firsts[number]), view.shape, view.rule)

    def group_of_members(self) -> Iterator[np.ndarray]:
        """Yields the images of each group with the same pixels."""
        for first, end in zip(self.groups[:-1], self.groups[1:]):
            yield self.members[first:end]

    def are_of_one_class(self, images: np.ndarray) -> bool:
        """Returns whether images of the data set have the same label."""
        return bool((self.labels[images] == self.labels[images[0]]).all())


def check(records: Records, path: Path, tests: Sequence[Path], view: View) -> Findings:
    """Decodes all images of a data set and of test sets, and compares them.

    Images are the same if their pixels are, decoded and resized to the shape of the view, and alike if `look_alike`
    says so. Of several that an image looks like, the one with the closest hash counts.

    Args:
        records: The data set, opened for rank 0 of 1.
        path: Its path.
        tests: Test sets; see `open_test`.
        view: How images are looked at.

    Raises:
        DataError: A test set cannot be used.
    """
    opened = [open_test(test, view) for test in tests]
    images, count = RecordImages(path, records), records.num_images
    found = Findings([images, *opened], [str(one) for one in (path, *tests)])
    ahead = 2 * view.workers + 2
    if records.is_streamed:
        records.will_read(np.arange(count))
        # Threads that read far from each other would need more files than the cache holds.
        view, ahead = view._replace(chunk=1), view.workers
    high, low = np.zeros(found.total, np.uint64), np.zeros(found.total, np.uint64)
    hashes = np.zeros(found.total, np.uint64)

    def look_at(first: int) -> tuple[int, list[tuple[bytes, int]], dict[int, str]]:
        prints, reasons = [], {}
        for i in range(first, min(first + view.chunk, found.total)):
            try:
                pixels = found.pixels(i, view)
                prints.append((digest_of(pixels), hash_of(pixels)))
            except DataError as error:
                if not is_damage(error) or i >= count:
                    raise
                reasons[i] = str(error)
                prints.append((bytes(16), 0))
        return first, prints, reasons

    starts = range(0, found.total, view.chunk)
    for first, prints, reasons in prefetch(look_at, starts, view.workers, ahead):
        end = first + len(prints)
        digests = np.frombuffer(b"".join(digest for digest, _ in prints), "<u8")
        high[first:end], low[first:end] = digests[::2], digests[1::2]
        hashes[first:end] = [bits for _, bits in prints]
        for i, reason in reasons.items():
            found.damaged.append(i)
            if len(found.reasons) < _MOST_REASONS:
                found.reasons[i] = reason
        view.advance(len(prints))
    found.labels = images.labels  # which the first pass may have found on its way
    good = np.delete(np.arange(found.total, dtype=np.int32 if found.total < 1 << 31 else np.int64), found.damaged)
    _group(found, good, high, low)
    leaks = _same_as_tests(count, found.total, high, low)
    del low
    near, alike = _closest(hashes, good, count, high)
    found.near = _confirmed(found, near, view)
    alike = alike[~np.isin(alike[:, 0], leaks[:, 0])]
    found.leaks = np.concatenate([leaks, _confirmed(found, alike, view)])
    return found


def open_test(path: Path, view: View) -> Collection:
    """Opens the images of a test set: a `.bin` file, a pairs file, a list or folder of images, or data for training.

    Raises:
        DataError: It is none of these, or damaged.
    """
    if path.suffix == ".bin":
        return ArrayImages(path.stem, load_verification(str(path), view.shape, view.rule).images)
    if format_of(str(path)) not in (None, *_LISTED_FORMATS):
        return RecordImages(path, open_images(str(path), None, 0, 1))
    if os.path.isfile(path):
        words = columns_of(read_list(path)[0][1], -1)
        is_header = len(words) <= 2 and all(word.isdigit() for word in words)
        if is_header or len(words) == 3 and words[2] in ("0", "1") and os.path.exists(path.parent / words[1]):
            return read_pairs(path).images
    return open_collection(path)


def _group(found: Findings, good: np.ndarray, high: np.ndarray, low: np.ndarray) -> None:
    """Finds the images of the data set that have the same digest."""
    own = good[good < len(found.labels)]
    order = own[np.argsort(high[own], kind="stable")]
    equal = high[order[1:]] == high[order[:-1]]
    several = np.zeros(len(order), bool)
    several[1:] |= equal
    several[:-1] |= equal
    order = order[several]
    order = order[np.lexsort((order, low[order], high[order]))]
    starts = np.flatnonzero(
        np.append(True, (high[order[1:]] != high[order[:-1]]) | (low[order[1:]] != low[order[:-1]]))[: len(order)]
    )
    sizes = np.diff(np.append(starts, len(order)))
    kept = np.repeat(sizes > 1, sizes)  # two digests may share their first half
    found.members = order[kept].astype(np.int64)
    found.groups = np.append(0, np.cumsum(sizes[sizes > 1]))


def _same_as_tests(count: int, total: int, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Returns the images of the data set that have the digest of one of a test set, and that one, int64 [n, 2]."""
    tests = {(int(high[j]), int(low[j])): j for j in reversed(range(count, total))}
    hits = np.flatnonzero(np.isin(high[:count], high[count:])) if tests else np.zeros(0, np.int64)
    pairs = [(i, tests[key]) for i in hits.tolist() if (key := (int(high[i]), int(low[i]))) in tests]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _closest(hashes: np.ndarray, good: np.ndarray, count: int, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which image before it each image of the data set may look like, and which of the test sets.

    Args:
        hashes: Hash of each image, uint64.
        good: The images that could be decoded.
        count: Number of images of the data set, which come first.
        high: First half of the digests, uint64; images that share it are the same, and do not count.
    """
    near, alike = Closest(count), Closest(count if len(hashes) > count else 0)
    for one, other, bits in close_pairs(hashes, good):
        first, second = np.minimum(one, other), np.maximum(one, other)
        differ = high[first] != high[second]
        inside, across = differ & (second < count), differ & (first < count) & (second >= count)
        near.offer(second[inside], first[inside], bits[inside])
        alike.offer(first[across], second[across], bits[across])
    return near.pairs(), alike.pairs()


def _confirmed(found: Findings, pairs: np.ndarray, view: View) -> np.ndarray:
    """Returns the pairs of images that do look alike. Images are read in order, because some may have to be fetched."""

    def reduce(images: np.ndarray) -> np.ndarray:
        return np.stack([reduced(found.pixels(i, view)) for i in images.tolist()])

    answers = []
    for first in range(0, len(pairs), _PAIRS):
        part = pairs[first : first + _PAIRS]
        images, rows = np.unique(part, return_inverse=True)
        chunks = (images[start : start + view.chunk] for start in range(0, len(images), view.chunk))
        small = np.concatenate(list(prefetch(reduce, chunks, view.workers, 2 * view.workers + 2)))
        answers += [are_alike(small[i], small[j]) for i, j in rows.reshape(-1, 2).tolist()]
    return pairs[np.array(answers, bool)]


class Listing(NamedTuple):
    """What `write_list` has written.

    Attributes:
        images: Number of images on the list.
        unnamed: Number of images that should be there, and that no line can name without naming a good image too.
    """

    images: int
    unnamed: int


def write_list(found: Findings, stream: BinaryIO) -> Listing:
    """Writes a list of images to leave out of training, for `set_dataset_dir(exclude=...)`.

    It names damaged images; of the same images in one class all but the first; the same images in several classes, all
    of them, because one label at least is wrong; and images that are or look like those of a test set. Images that look
    alike are not on it: they may be two photographs of one moment.
    """
    listed = np.zeros(len(found.labels), bool)
    unnamed = 0
    for i, why, first in _bad_images(found):
        name = found.name(i)
        line = None if first is not None and name == found.name(first) else line_of(name, why)
        if line is None:
            unnamed += 1
        elif not listed[i]:
            stream.write(line)
            listed[i] = True
    return Listing(int(listed.sum()), unnamed)


def _bad_images(found: Findings) -> Iterator[tuple[int, str, Optional[int]]]:
    """Yields the images to leave out, why, and an image that is kept instead, if there is one."""
    for i in found.damaged:
        yield i, found.reasons.get(i, "cannot be decoded"), None
    for i, j in found.leaks.tolist():
        yield i, f"is or looks like {found.name(j)} of {found.names[found.set_of(j)]}", None
    leaked = set(found.leaks[:, 0].tolist())
    for members in found.group_of_members():
        first, *rest = members.tolist()
        if first in leaked:  # and the others too
            continue
        if found.are_of_one_class(members):
            for i in rest:
                yield i, f"the same as {found.name(first)}", first
        else:
            for i in members.tolist():
                other = rest[0] if i == first else first
                yield i, f"the same as {found.name(other)}, in several classes", None
