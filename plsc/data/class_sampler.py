"""Draws images by their classes: each class as often as any other, or several images of a class for each batch.

The classes take turns. In a turn, a class gives the next K of its images, K being 1 unless batches of P identities are
wanted. An epoch consists of rounds, in which each class has a turn, and of a rest, in which some classes have one.
Every number below is computed from (seed, epoch, position), so that no rank keeps an order, and a rank computes its own
part alone.

    P  classes of a batch       C  classes       R  whole rounds of an epoch
    K  images of a turn         E  extra turns of a round, which fill its last batch
"""

from __future__ import annotations

import logging
from typing import NamedTuple, Optional

import numpy as np

from plsc.data.permutations import GOLDEN, keys_of, permuted
from plsc.data.records import Records, WrappedRecords
from plsc.errors import ConfigError, counted

logger = logging.getLogger("plsc")

SAMPLERS = ("uniform", "balanced", "pxk")
DEFAULT_IMAGES = 4  # of a class in a batch, for 'pxk'

_AT_A_TIME = 1 << 17  # positions that are computed together


class Turns(NamedTuple):
    """How classes take turns in an epoch.

    Attributes:
        num_classes: C, the number of classes that have images.
        classes_of_batch: P; no class has two turns in one batch.
        turns: Number of turns of an epoch, a multiple of P.
    """

    num_classes: int
    classes_of_batch: int
    turns: int

    @property
    def extra(self) -> int:
        """E, the number of extra turns of a round."""
        return -self.num_classes % self.classes_of_batch

    @property
    def rounds(self) -> int:
        """R, the number of whole rounds of an epoch."""
        return self.turns // (self.num_classes + self.extra)

    def at(self, seed: int, epoch: int, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns whose turns some of an epoch are.

        The extra turns of all rounds, and those of the rest, go to the classes in a circle. So how many turns a class
        has had before follows from its place in the circle alone.

        Args:
            seed: Seed of the order.
            epoch: Number of the epoch.
            turns: Numbers of the turns, from 0, int64 [n].

        Returns:
            The place of the class in the circle, in [0, C), and how many turns it has had in all epochs, int64 [n].
        """
        extra, rounds = self.extra, self.rounds
        length = self.num_classes + extra
        rest = self.turns - rounds * length
        round_of, within = np.divmod(turns, length)
        key = keys_of(seed, 0, epoch, round_of)
        order = self._orders(within, key)
        of_rest = np.flatnonzero(round_of == rounds)
        order[of_rest] = permuted(within[of_rest], rest, key[of_rest])
        begin = epoch * (rounds * extra + rest) + round_of * extra  # of the extra turns of the round in the circle
        place = (order + begin) % self.num_classes
        before = (begin - place + self.num_classes - 1) // self.num_classes  # how often the circle has come by
        return place, epoch * rounds + round_of + before + (within >= self.num_classes)

    def _orders(self, within: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Returns the classes of whole rounds, counted from the first that has an extra turn, int64 [n].

        Args:
            within: Numbers of the turns in their rounds, int64 [n].
            key: Keys of the rounds, uint64 [n].
        """
        classes, extra = self.num_classes, self.extra
        if not extra:
            return permuted(within, classes, key)
        # The classes with an extra turn come first, and the others in random order after them. Then all but the last
        # are mixed: those share their batch with the extra turns, and must not be of the same classes.
        mixed = classes + extra - self.classes_of_batch
        order = permuted(within, mixed, key)
        order = np.where(order < extra, order, extra + permuted(order - extra, classes - extra, key + GOLDEN))
        return np.where(within < classes, order, within - classes)


class ClassSampler(WrappedRecords):
    """A data set whose epochs draw images by their classes. It has the images of another one.

    Args:
        source: The data set, opened for rank 0 of 1.
        batch_size: Number of images of a rank in a batch.
        images_per_class: K, the number of images of a class in a batch; None draws classes independent of batches.
        world_size: Number of ranks.

    Raises:
        ConfigError: A batch of all ranks is no multiple of K, or has more classes than there are.
    """

    def __init__(
        self, source: Records, batch_size: int, images_per_class: Optional[int] = None, world_size: int = 1
    ) -> None:
        super().__init__(source)
        if source.slow_draws:
            logger.warning("set_sampler draws images from all over the data, which is slow here: %s", source.slow_draws)
        labels = source.labels()
        self._drawn = self.num_images
        narrow = np.int32 if self.num_images < 1 << 31 else np.int64
        self._images = np.argsort(labels, kind="stable").astype(narrow)  # sorted by class
        ordered = labels[self._images]
        self._firsts = np.append(0, np.flatnonzero(np.diff(ordered)) + 1)
        self._counts = np.diff(np.append(self._firsts, len(ordered)))
        self._batch_size, self._of_turn = batch_size, images_per_class or 1
        self._classes_of_batch, self._has_whole_batches = 1, images_per_class is not None
        if self._has_whole_batches:
            batch = batch_size * world_size
            self._classes_of_batch = self._fitting(batch, world_size)
            self._drawn = -(-self.num_images // batch) * batch

    def _fitting(self, batch: int, world_size: int) -> int:
        """Returns P. Raises ConfigError if there is none for the batch of all ranks."""
        of_turn, classes = self._of_turn, len(self._counts)
        said = f"set_sampler('pxk', images_per_class={of_turn})"
        each = "" if world_size == 1 else f" ({self._batch_size} on each of {world_size} ranks)"
        if batch % of_turn:
            raise ConfigError(
                f"{said}: a batch of {batch} images{each} cannot hold {of_turn} of each class; choose a "
                f"set_train_batch_size that makes it a multiple of {of_turn}"
            )
        if batch // of_turn > classes:
            raise ConfigError(
                f"{said}: a batch of {batch} images{each} needs {batch // of_turn} classes, and the data has "
                f"{classes}; lower set_train_batch_size, or raise images_per_class"
            )
        turns = -(-self.num_images // batch) * (batch // of_turn)
        if turns < classes:
            logger.info(
                "%s: an epoch of %s has room for %s of the %s; the others come in the next epochs",
                said,
                counted(self.num_images, "image"),
                f"{turns:,}",
                counted(classes, "class"),
            )
        return batch // of_turn

    @property
    def epoch_images(self) -> int:
        """Number of images that an epoch draws: that of the data set, for 'pxk' rounded up to whole batches."""
        return self._drawn

    def epoch_order(self, seed: int, epoch: int, rank: int, world_size: int) -> np.ndarray:
        """Returns the images of a rank in the order of an epoch, int64 [ceil(epoch_images / world_size)].

        Some images come more than once in an epoch, and others not at all. No image of a class comes again before the
        turn that completes all of them, in this epoch or in earlier ones.
        """
        per_rank = -(-self.epoch_images // world_size)
        circle = np.random.default_rng((seed, len(self._counts))).permutation(len(self._counts))
        order = np.empty(per_rank, np.int64)
        for first in range(0, per_rank, _AT_A_TIME):
            some = np.arange(first, min(first + _AT_A_TIME, per_rank))
            slots = self._slots(some, rank, world_size)
            order[first : first + len(some)] = self._images_at(seed, epoch, slots, circle)
        return order

    def _slots(self, own: np.ndarray, rank: int, world_size: int) -> np.ndarray:
        """Returns where a rank's images stand in an epoch in which the images of a turn stand side by side.

        Args:
            own: Numbers of the images among those of the rank, int64 [n].
            rank: The rank.
            world_size: Number of ranks.
        """
        if not self._has_whole_batches:
            return (own * world_size + rank) % self.epoch_images
        # The images of a class are on one rank, where the batch of a rank holds whole turns.
        batch, within = np.divmod(own, self._batch_size)
        return (batch * world_size + rank) * self._batch_size + within

    def _images_at(self, seed: int, epoch: int, slots: np.ndarray, circle: np.ndarray) -> np.ndarray:
        """Returns the images at some places of an epoch, int64 [n]. `circle` has the classes in random order."""
        of_turn, classes_of_batch = self._of_turn, self._classes_of_batch
        turns = Turns(len(self._counts), classes_of_batch, self.epoch_images // of_turn)
        number, copy = np.divmod(slots, of_turn)
        place, turn = turns.at(seed, epoch, number)
        chosen = circle[place]
        counts = self._counts[chosen]
        # In a pass each image of a class comes once; to fill its last turn, some come twice. No turn has one twice if
        # the class has K images.
        turns_of_pass = -(-counts // of_turn)
        passed, within = np.divmod(turn, turns_of_pass)
        drawn = permuted((within * of_turn + copy) % counts, counts, keys_of(seed, 1, chosen, passed))
        return self._images[self._firsts[chosen] + drawn]
