"""Finds out what a data set holds, for `plsc data info`."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Optional

import numpy as np

from plsc.data.encoded_image import check_header, open_image
from plsc.data.inputs import Inputs
from plsc.data.records import Records
from plsc.datasets.opening import open_data
from plsc.errors import DataError
from plsc.machine import threads
from plsc.shuffle.worker_pool import Tasks, run_workers

SAMPLE = 1000  # images that are looked at, unless all are
_TASK = 1000  # images that a worker takes at a time
_NAMED = 5  # damaged images of which the message is kept
_REPORTED = 64


@dataclass
class Seen:
    """What some images are like.

    Attributes:
        count: Number of images that were looked at.
        bytes: Their encoded bytes.
        kinds: Number of images of each format of Pillow.
        widths: Smallest and largest width, in pixels.
        heights: The same of the height.
        damaged: Number of damaged images.
        messages: What is wrong with the first of them, by their numbers.
    """

    count: int = 0
    bytes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    widths: Optional[tuple[int, int]] = None
    heights: Optional[tuple[int, int]] = None
    damaged: int = 0
    messages: dict[int, str] = field(default_factory=dict)

    def look(self, records: Records, i: int) -> None:
        """Takes in one image, by its header."""
        self.count += 1
        try:
            data, _ = records.read(i)
            self.bytes += len(data)
            kind, size = _header(data, records, i)
        except DataError as error:
            self.damaged += 1
            self.messages[i] = str(error)
            self._cut()
            return
        self.kinds[kind] += 1
        self._widen(*((value, value) for value in size))

    def add(self, other: Seen) -> None:
        """Takes in what another process has seen."""
        self.count, self.bytes, self.damaged = (
            self.count + other.count,
            self.bytes + other.bytes,
            self.damaged + other.damaged,
        )
        self.kinds += other.kinds
        self.messages.update(other.messages)
        self._cut()
        if other.widths and other.heights:
            self._widen(other.widths, other.heights)

    def _widen(self, widths: tuple[int, int], heights: tuple[int, int]) -> None:
        self.widths, self.heights = _hull(self.widths, widths), _hull(self.heights, heights)

    def _cut(self) -> None:
        self.messages = dict(sorted(self.messages.items())[:_NAMED])


def _header(data: bytes, records: Records, i: int) -> tuple[str, tuple[int, int]]:
    try:
        with open_image(data) as image:
            return image.format or "unknown", image.size
    except Exception:  # Pillow's errors are of many types, and `check_header` words them.
        check_header(io.BytesIO(data), records.where(i))
        raise DataError(f"{records.where(i)}: its header cannot be read; replace the image or remove it") from None


def _hull(one: Optional[tuple[int, int]], other: tuple[int, int]) -> tuple[int, int]:
    return other if one is None else (min(one[0], other[0]), max(one[1], other[1]))


@dataclass
class Survey:
    """What a data set holds.

    Attributes:
        data_format: Name of its format.
        images: Number of images.
        classes: Number of classes.
        class_names: Name of each class; empty if they are unknown.
        counts: Number of images of each class, int64 [classes].
        seen: What those images are like that were looked at.
    """

    data_format: str
    images: int
    classes: int
    class_names: Sequence[str]
    counts: np.ndarray
    seen: Seen

    @property
    def used(self) -> np.ndarray:
        """Number of images of each class that has any, int64."""
        return self.counts[self.counts > 0]

    @property
    def bytes(self) -> int:
        """Encoded bytes of all images; estimated from those that were looked at."""
        seen = self.seen
        return seen.bytes if seen.count == self.images else round(seen.bytes / max(seen.count, 1) * self.images)

    def name(self, label: int) -> str:
        """Returns the name of a class, or its number."""
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def histogram(self) -> list[tuple[int, int, int]]:
        """Returns the number of classes with 1, 2 to 3, 4 to 7... images: least, most, number of classes."""
        if not len(self.used):
            return []
        numbers = np.bincount(np.frexp(self.used.astype(np.float64))[1] - 1)
        first = int(np.flatnonzero(numbers)[0])
        return [(1 << power, (2 << power) - 1, int(numbers[power])) for power in range(first, len(numbers))]

    def to_json(self) -> dict[str, Any]:
        """Returns what `--json` prints."""
        seen, used = self.seen, self.used
        extremes: dict[str, Any] = {"smallest": None, "largest": None, "median": None}
        if len(used):
            smallest, largest = self.extremes()
            extremes = {
                "smallest": {"class": self.name(smallest), "images": int(self.counts[smallest])},
                "largest": {"class": self.name(largest), "images": int(self.counts[largest])},
                "median": float(np.median(used)),
            }
        return {
            "format": self.data_format,
            "images": self.images,
            "classes": self.classes,
            "used_classes": len(used),
            "has_class_names": bool(self.class_names),
            "images_per_class": {
                **extremes,
                "histogram": [{"from": a, "to": b, "classes": count} for a, b, count in self.histogram()],
            },
            "bytes": self.bytes,
            "examined": seen.count,
            "kinds": dict(seen.kinds.most_common()),
            "width": seen.widths,
            "height": seen.heights,
            "damaged": seen.damaged,
            "first_damaged": list(seen.messages.values()),
        }

    def extremes(self) -> tuple[int, int]:
        """Returns the classes with the fewest and the most images; classes without any do not count."""
        used = np.flatnonzero(self.counts)
        return int(used[np.argmin(self.counts[used])]), int(np.argmax(self.counts))


def survey(
    path: str,
    data_format: str,
    look_at_all: bool,
    watch: Callable[[int, int], None],
    inputs: Optional[Inputs] = None,
) -> Survey:
    """Finds out what a data set holds.

    Args:
        path: The data set; see `open_data`.
        data_format: Its format, or 'auto'.
        look_at_all: Whether to read every image, in several processes; otherwise `SAMPLE` of them, evenly spread.
        watch: Is called now and then with the number of images that were looked at, and that will be.
        inputs: Fetches what is in a store; see `open_data`.

    Raises:
        DataError: The data set cannot be opened. Damaged images are counted.
    """
    name, records = open_data(path, data_format, inputs)
    total = records.num_images
    numbers = np.arange(total) if look_at_all else np.unique(np.linspace(0, total - 1, min(SAMPLE, total)).astype(int))
    tasks = -(-len(numbers) // _TASK)
    workers = 1 if records.is_streamed else min(threads.cores(), tasks)
    if records.is_streamed:
        records.will_read(numbers)
    found = run_workers(
        partial(_look, records, numbers),
        tasks,
        workers,
        lambda done: watch(done, len(numbers)),
        advice="run again; if the machine ran out of memory, leave out --all",
    )
    seen = Seen()
    for one in found:
        seen.add(one)
    labels = records.labels()
    counts = np.bincount(labels[labels >= 0], minlength=records.num_classes).astype(np.int64)
    return Survey(name, total, len(counts), records.class_names, counts, seen)


def _look(records: Records, numbers: np.ndarray, tasks: Tasks) -> Seen:
    seen = Seen()
    for task in tasks:
        own = numbers[task * _TASK : (task + 1) * _TASK].tolist()
        for count, i in enumerate(own, 1):
            seen.look(records, i)
            if count % _REPORTED == 0:
                tasks.report(_REPORTED)
        tasks.report(len(own) % _REPORTED)
    return seen
