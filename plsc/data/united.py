"""Several data sets as one: their images one after another, and the classes of all of them numbered together."""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, Optional

import numpy as np

from plsc.data.class_names import compared
from plsc.data.exclusion import KeptRecords
from plsc.data.records import Records
from plsc.data.sampler import epoch_indices, mix_blocks, samples_at, samples_in_turn
from plsc.errors import ConfigError, DataError

# What each kind of draw adds to (seed, epoch), so that no two of them use the same random numbers.
_PASS, _MIXING, _TURNS = 1, 2, 3


class Classes(NamedTuple):
    """The classes of several data sets, numbered together.

    Attributes:
        total: Number of all classes.
        names: Name of each class; empty if no set has names.
        numbers: For each set, the number that each of its classes has in the union, int64 [classes of the set].
    """

    total: int
    names: list[str]
    numbers: list[np.ndarray]


class UnitedRecords(Records):
    """Several data sets as one.

    The images are numbered set after set. Without weights, and if none of the sets has blocks, an epoch has the order
    that one set of all the images would have. Otherwise each set has an order of its own, of its blocks or of its
    images, and each rank draws from the orders of all sets in turns that it mixes at random.

    Args:
        titles: What to call each set in the names of its images; all different.
        sources: The sets, opened for rank 0 of 1.
        classes: Their classes.
        weights: How often the images of each set are drawn in an epoch, on average. The draws go through all images of
            the set before one comes up again, and stop at `weight * num_images`, so that a fraction is another random
            subset in each epoch. None draws each image once.

    Raises:
        DataError: A weight is so small that an epoch would draw no image of its set.
    """

    def __init__(
        self,
        titles: Sequence[str],
        sources: Sequence[Records],
        classes: Classes,
        weights: Optional[Sequence[float]] = None,
    ) -> None:
        self._titles, self._sources, self._classes, self._weights = titles, sources, classes, weights
        self.class_names = classes.names
        sizes = [source.num_images for source in sources]
        self._firsts = np.cumsum([0, *sizes]).tolist()
        self.num_images = self._firsts[-1]
        self._draws = np.array(sizes if weights is None else _draws_of(titles, sizes, weights), np.int64)
        self._is_plain = self._draws.tolist() == sizes and all(source.blocks is None for source in sources)
        if any(source.shuffle for source in sources):
            self.shuffle = ", ".join(source.shuffle or "full" for source in sources)
        self.slow_draws = next((source.slow_draws for source in sources if source.slow_draws), "")

    def without(self, left_out: np.ndarray) -> UnitedRecords:
        """Returns the sets without some of their images. Weights count the images that are kept.

        Args:
            left_out: Numbers of the images that are left out, int64, increasing.

        Raises:
            DataError: A set keeps no image.
        """
        kept: list[Records] = []
        for number, source in enumerate(self._sources):
            first, end = np.searchsorted(left_out, self._firsts[number : number + 2])
            if end - first == source.num_images:
                raise DataError(
                    f"set_dataset_dir: exclude names every image of {self._titles[number]} ({source.num_images:,}); "
                    "keep some to train on, or leave the whole data set out"
                )
            kept.append(KeptRecords(source, left_out[first:end] - self._firsts[number]) if end > first else source)
        return UnitedRecords(self._titles, kept, self._classes, self._weights)

    def will_read(self, images: np.ndarray) -> None:
        """Has each set prepare for its images to be read in this order."""
        numbers = np.searchsorted(self._firsts, images, side="right") - 1
        for number, source in enumerate(self._sources):
            source.will_read(images[numbers == number] - self._firsts[number])

    def end_waiting_if(self, is_stopping: Callable[[], bool]) -> None:
        """Has a read that waits for a store raise StoppedError as soon as `is_stopping` returns True."""
        for source in self._sources:
            source.end_waiting_if(is_stopping)

    def will_read_blocks(self) -> None:
        """Prepares for an epoch in which the images of each block of a set are read at about the same time."""
        for source in self._sources:
            source.will_read_blocks()

    def close(self) -> None:
        """Releases what the sets hold."""
        for source in self._sources:
            source.close()

    @property
    def num_classes(self) -> int:
        """Number of classes of all sets together."""
        return self._classes.total

    @property
    def epoch_images(self) -> int:
        """Number of images that an epoch draws, of all sets and ranks together."""
        return int(self._draws.sum())

    @property
    def classes_of_sets(self) -> tuple[tuple[str, int], ...]:
        """Title and number of classes of each set."""
        return tuple((title, len(own)) for title, own in zip(self._titles, self._classes.numbers))

    def name(self, i: int) -> str:
        """Returns the name of the image in its set, after the title of the set."""
        number, image = self._place(i)
        return f"{self._titles[number]}/{self._sources[number].name(image)}"

    def where(self, i: int) -> str:
        """Returns where the set says that the image is."""
        number, image = self._place(i)
        return self._sources[number].where(image)

    def read(self, i: int) -> tuple[bytes, int]:
        """Returns the encoded bytes of image `i`, and the number of its class in the union."""
        number, image = self._place(i)
        data, label = self._sources[number].read(image)
        numbers = self._classes.numbers[number]
        if not 0 <= label < len(numbers):
            raise DataError(
                f"{self._sources[number].where(image)}: label {label} is outside [0, {len(numbers)}), the classes that "
                f"{self._titles[number]} had when it was opened; the data has changed or is damaged: copy it again"
            )
        return data, int(numbers[label])

    def labels(self) -> np.ndarray:
        """Returns the label of every image, int64 [num_images]."""
        of_sets = zip(self._classes.numbers, self._sources)
        return np.concatenate([numbers[source.labels()] for numbers, source in of_sets])

    def digests(self) -> dict[str, str]:
        """Returns the digests of all sets. They name a set by its number, since its path may depend on the machine."""
        return {
            f"data set {number}: {name}": digest
            for number, source in enumerate(self._sources, 1)
            for name, digest in source.digests().items()
        }

    def epoch_order(self, seed: int, epoch: int, rank: int, world_size: int) -> np.ndarray:
        """Returns the images of a rank in the order of an epoch; see `Records.epoch_order`."""
        if self._is_plain:
            return epoch_indices(self.num_images, seed, epoch, rank, world_size)
        self.will_read_blocks()
        shares = self._shares(world_size)
        order = np.random.default_rng((seed, epoch, _TURNS, rank)).permutation(
            np.repeat(np.arange(len(self._sources), dtype=np.int64), shares[rank])
        )
        firsts = shares[:rank].sum(axis=0)
        drawn = [
            self._firsts[number] + self._drawn(number, np.arange(first, first + count), (seed, epoch), rank)
            for number, (first, count) in enumerate(zip(firsts.tolist(), shares[rank].tolist()))
        ]
        places = [np.flatnonzero(order == number) for number in range(len(drawn))]
        for place, images in zip(places, drawn):
            order[place] = images
        return order

    def _shares(self, world_size: int) -> np.ndarray:
        """Returns how many draws of each set each rank takes, int64 [world_size, sets]; all ranks take equally many.

        Of the draws of all sets, one set after another, a rank takes every `world_size`-th. The ranks that would have
        fewer continue at the beginning.
        """
        ranks, ends, total = np.arange(world_size)[:, None], np.cumsum(self._draws), self.epoch_images
        before = (np.append(0, ends) - ranks + world_size - 1) // world_size
        shares = np.diff(before, axis=1)
        repeated = np.arange(total, -(-total // world_size) * world_size)
        sets = np.searchsorted(ends, repeated % total, side="right")
        np.add.at(shares, (repeated % world_size, sets), 1)
        return shares

    def _drawn(self, number: int, draws: np.ndarray, key: tuple[int, int], rank: int) -> np.ndarray:
        """Returns what some consecutive draws of an epoch give, as images of their set, int64 [draws].

        Args:
            number: The set.
            draws: Numbers of the draws.
            key: Seed and epoch.
            rank: Rank that draws; it mixes the images of neighbouring blocks.
        """
        source = self._sources[number]
        size, blocks = source.num_images, source.blocks
        images, turns = [], []
        for passed in np.unique(draws // size).tolist():
            within = draws[draws // size == passed] - passed * size
            own = (*key, _PASS, number, passed)
            if blocks is None:
                state = np.random.SeedSequence(own).generate_state(1)
                images.append(samples_at(size, int(state[0]), key[1], within))
            else:
                found, turn = samples_in_turn(blocks, within, own)
                images.append(found)
                turns.append(turn + passed * (len(blocks) - 1))
        if not images:
            return draws
        if blocks is None:
            return np.concatenate(images)
        return mix_blocks(np.concatenate(images), np.concatenate(turns), (*key, _MIXING, number, rank), source.window)

    def _place(self, i: int) -> tuple[int, int]:
        """Returns the set of image `i`, and its number there."""
        number = bisect.bisect_right(self._firsts, i) - 1
        return number, i - self._firsts[number]


def _draws_of(titles: Sequence[str], sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Returns how many images of each set an epoch draws."""
    draws = [round(weight * size) for weight, size in zip(weights, sizes)]
    for title, size, weight, count in zip(titles, sizes, weights, draws):
        if not count:
            raise DataError(
                f"set_dataset_dir: with the weight {weight:g}, an epoch draws none of the {size} images of {title}; "
                "raise the weight, or leave the set out"
            )
    return draws


def titles_of(paths: Sequence[str]) -> list[str]:
    """Returns what to call data sets: the last parts of their paths, with numbers where they are the same."""
    names = [os.path.basename(os.path.abspath(path)) for path in paths]
    titles: list[str] = []
    for name in names:
        title, count = name, 1
        while title in titles or (count > 1 and title in names):
            count += 1
            title = f"{name}_{count}"
        titles.append(title)
    return titles


def merge_classes(titles: Sequence[str], sources: Sequence[Records]) -> Classes:
    """Returns the union of the classes of several sets.

    Two sets share the classes whose names agree. All other classes are numbered one set after another. If some sets
    have names, a class of the others is called `title:number`.

    Args:
        titles: What the sets are called.
        sources: The sets.

    Raises:
        DataError: Two classes of a set have the same name.
    """
    counts = [source.num_classes for source in sources]
    if not any(len(source.class_names) for source in sources):
        return separate_classes(titles, sources)
    names: list[str] = []
    known: dict[str, int] = {}
    numbers = []
    for title, source, count in zip(titles, sources, counts):
        own = np.arange(len(names), len(names) + count)
        if not len(source.class_names):
            names += _unnamed(title, count)
        else:
            _check_names(title, source.class_names)
            for label, name in enumerate(source.class_names):
                own[label] = known.setdefault(compared(name), len(names))
                if own[label] == len(names):
                    names.append(name)
        numbers.append(own)
    return Classes(len(names), names, numbers)


def separate_classes(titles: Sequence[str], sources: Sequence[Records]) -> Classes:
    """Returns the classes of several sets one set after another. Names are `title/name` if any set has names."""
    counts = [source.num_classes for source in sources]
    ends = np.cumsum(counts)
    numbers = [np.arange(end - count, end) for end, count in zip(ends, counts)]
    names: list[str] = []
    if any(len(source.class_names) for source in sources):
        for title, source, count in zip(titles, sources, counts):
            named = [f"{title}/{name}" for name in source.class_names]
            names += named or _unnamed(title, count)
    return Classes(int(ends[-1]), names, numbers)


def check_count(classes: Classes, num_classes: int, titles: Sequence[str], exactly: bool) -> None:
    """Checks the number of classes that the user gave.

    Args:
        classes: The classes of the data.
        num_classes: The number that was given; 0 accepts every number.
        titles: What the sets are called.
        exactly: Whether there may not be more classes than the data has.

    Raises:
        ConfigError: There are too few classes for the data, or, with `exactly`, too many.
    """
    if not num_classes or num_classes == classes.total or (num_classes > classes.total and not exactly):
        return
    of_sets = ", ".join(f"{len(own):,} in {title}" for own, title in zip(classes.numbers, titles))
    raise ConfigError(
        f"set_class_num({num_classes}): the data sets have {classes.total:,} classes together ({of_sets}); call "
        f"set_class_num({classes.total}), or set_class_num('auto')"
    )


def _unnamed(title: str, count: int) -> list[str]:
    return [f"{title}:{number}" for number in range(count)]


def _check_names(title: str, names: Sequence[str]) -> None:
    first_of: dict[str, int] = {}
    for number, name in enumerate(names):
        first = first_of.setdefault(compared(name), number)
        if first != number:
            same = "are both called" if names[first] == name else "differ only in Unicode normalization (NFC, NFD):"
            raise DataError(
                f"{title}: the classes {first} and {number} {same} {ascii(name)}, so it is not known which one the "
                "class of that name in another data set is; rename one of them, or choose heads='separate'"
            )
