"""Training batches from image files, prepared ahead of time in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Optional, Union

import numpy as np

from plsc.data.augmentation import Augmentation, augment
from plsc.data.damaged import Skipping, is_damage, too_many
from plsc.data.generators import generators_of
from plsc.data.pixels import NEWEST, PixelRule
from plsc.data.prefetch import prefetch
from plsc.data.sources import ImageSource
from plsc.data.transforms import decode, normalize_each
from plsc.errors import DataError, is_mistake

Batch = tuple[np.ndarray, ...]  # images and labels, and the targets if there are any

# Number of finished batches kept ready, in addition to those that the workers are preparing.
READ_AHEAD = 2
# Images that a thread reads one after another before it decodes them. A read between two decodings finds nothing of the
# system's tables in the processor's caches, and takes two to three times as long.
_READ_TOGETHER, _BYTES_TOGETHER = 64, 1 << 20

Encoded = Union[tuple[bytes, int], DataError]  # the bytes and the label of an image, or why it cannot be read


class _Made(NamedTuple):
    """A batch, and why images that belong in it cannot be used, by their numbers."""

    batch: Batch
    damaged: dict[int, str]


_ADVICE = "set_skip_damaged(n) would train without such images, and plsc data check finds all of them"


class ImageLoader:
    """Decoded, augmented and normalised batches of this rank's share of a source.

    The batches do not depend on `num_workers`. With `skipping`, the place of a damaged image in a batch is taken by the
    next good image in the rank's order of the epoch, whose first image follows the last. So the batches depend on the
    data alone, and a resumed run has the same.

    Args:
        source: The images and labels.
        image_shape: Shape of one image, (C, H, W).
        batch_size: Images per batch and rank.
        augmentation: Random changes to the images.
        seed: Seed of the order and of the changes.
        num_workers: Number of threads that prepare whole batches; 0 prepares them in the calling thread.
        rank: Rank of this process.
        world_size: Number of ranks.
        rule: What the pixels of the images mean.
        skipping: Which damaged images are replaced; None replaces none.
        targets: A function, which threads call, from the numbers of a batch's images, int64 [b], to what a teacher says
            of them, [b, ...]; None without any.

    Attributes:
        splits: Whether the loader splits the samples over the ranks; always True.
    """

    splits = True

    def __init__(
        self,
        source: ImageSource,
        image_shape: Sequence[int],
        batch_size: int,
        augmentation: Augmentation,
        seed: int = 0,
        num_workers: int = 4,
        rank: int = 0,
        world_size: int = 1,
        rule: PixelRule = NEWEST,
        skipping: Optional[Skipping] = None,
        targets: Optional[Callable[[np.ndarray], np.ndarray]] = None,
    ):
        self._source = source
        self._image_shape = tuple(image_shape)
        self._batch_size = batch_size
        self._augmentation = augmentation
        self._seed = seed
        self._num_workers = num_workers
        self._rank = rank
        self._world_size = world_size
        self._rule = rule
        self._skipping = skipping
        self._targets = targets
        self._is_stopping: Callable[[], bool] = lambda: False

    @property
    def num_images(self) -> int:
        """Number of images of an epoch, of all ranks together."""
        return self._source.epoch_images

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch, the same on every rank."""
        per_rank = -(-self.num_images // self._world_size)
        return -(-per_rank // self._batch_size)

    def digests(self) -> dict[str, str]:
        """Returns a digest of each thing that must be the same on every rank, by its name."""
        return self._source.digests()

    def end_waiting_if(self, is_stopping: Callable[[], bool]) -> None:
        """Has `epoch` end the wait for a batch with a StoppedError as soon as `is_stopping` returns True."""
        self._is_stopping = is_stopping

    def order(self, epoch: int) -> np.ndarray:
        """Returns the numbers of this rank's images in the order of an epoch, [ceil(num_images / world_size)]."""
        return self._source.epoch_order(self._seed, epoch, self._rank, self._world_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch, from batch `start_step` on; only the last may be smaller than `batch_size`.

        Closing or dropping the iterator stops its threads.

        Yields:
            (images float32 [b, C, H, W], labels int64 [b]), and the targets [b, ...] if there are any.

        Raises:
            DataError: An image is damaged; with `skipping`, a batch alone has more damaged images than it allows.
            StoppedError: The wait for the batch has been ended.
        """
        order = self.order(epoch)
        self._source.will_read(order[start_step * self._batch_size :])
        steps = range(start_step, self.steps_per_epoch)
        stop = threading.Event()

        def batch(step: int) -> _Made:
            return self._batch(order, epoch, step, stop)

        batches = prefetch(batch, steps, self._num_workers, self._num_workers + READ_AHEAD, self._is_stopping)
        try:
            yield from map(self._reported, batches)  # A variable would hold a batch while the next one is made.
        finally:
            stop.set()
            batches.close()  # type: ignore[attr-defined]

    def _reported(self, made: _Made) -> Batch:
        for i, reason in made.damaged.items():
            assert self._skipping is not None
            self._skipping.report(self._source.name(i), reason)
        return made.batch

    def _batch(self, order: np.ndarray, epoch: int, step: int, stop: threading.Event) -> _Made:
        first = step * self._batch_size
        count = len(order[first : first + self._batch_size])
        images = np.empty((count, *self._image_shape), np.float32)
        labels, numbers = np.empty(count, np.int64), np.empty(count, np.int64)
        damaged: dict[int, str] = {}
        encoded = self._read(order[first : first + count])
        # Each global position has its own generator. So the numbers do not depend on the thread, and a sample that is
        # repeated as padding is changed in another way than the first time.
        positions = (first + np.arange(count)) * self._world_size + self._rank
        generators = generators_of(self._seed, epoch, positions)

        def changed() -> Iterator[np.ndarray]:
            for k in range(count):
                if stop.is_set():  # The batch will not be used.
                    return
                numbers[k], image, labels[k] = self._good_image(order, first + k, next(encoded), damaged)
                yield augment(image, self._augmentation, next(generators))

        normalize_each(changed(), images)
        targets = () if self._targets is None or stop.is_set() else (self._targets(numbers),)
        return _Made((images, labels, *targets), damaged)

    def _read(self, numbers: np.ndarray) -> Iterator[Encoded]:
        """Yields what `Records.read` returns for some images, or raises for them; reads a few at a time."""
        some: list[Encoded] = []
        size = 0
        for i in numbers.tolist():
            try:
                found = self._source.read(i)
            except DataError as error:
                yield from (*some, error)
                some, size = [], 0
                continue
            some.append(found)
            size += len(found[0])
            if len(some) == _READ_TOGETHER or size > _BYTES_TOGETHER:
                yield from some
                some, size = [], 0
        yield from some

    def _good_image(
        self, order: np.ndarray, place: int, encoded: Encoded, damaged: dict[int, str]
    ) -> tuple[int, np.ndarray, int]:
        """Returns the number of the image at a place of the order, the image and its label.

        If the image is damaged, the next one that is not takes its place.

        Args:
            order: The images of the rank.
            place: The place.
            encoded: What `_read` gave for it.
            damaged: Receives why images cannot be used, by their numbers.

        Raises:
            DataError: The image is damaged and may not be skipped.
        """
        most, last = self._skipping.most if self._skipping is not None else 0, DataError("")
        for turn in range(len(order)):
            i = int(order[(place + turn) % len(order)])
            try:
                if turn:
                    encoded = self._source.read(i)
                if isinstance(encoded, DataError):
                    raise encoded
                data, label = encoded
                return i, decode(data, self._image_shape, partial(self._source.where, i), self._rule), label
            except DataError as error:
                if not most or not is_damage(error):
                    if self._skipping is not None and is_damage(error):
                        error.args = (f"{error}; {_ADVICE}", *error.args[1:])
                    raise
                damaged[i], last = str(error), error
                if len(damaged) > most:
                    break
        problem = too_many(most, len(damaged), str(last))
        problem.mistake = is_mistake(last)  # type: ignore[attr-defined]
        raise problem
