"""Training batches from image files, prepared ahead of time in threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from plsc.data.pixels import NEWEST, PixelRule
from plsc.data.prefetch import prefetch
from plsc.data.sources import ImageSource
from plsc.data.transforms import Augmentation, augment, decode, normalize

Batch = tuple[np.ndarray, np.ndarray]

# Number of finished batches kept ready, in addition to those that the workers are preparing.
_READ_AHEAD = 2


class ImageLoader:
    """Decoded, augmented and normalised batches of this rank's share of a source.

    The batches do not depend on `num_workers`.

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

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch, from batch `start_step` on; only the last may be smaller than `batch_size`.

        Closing or dropping the iterator stops its threads.

        Yields:
            (images float32 [b, C, H, W], labels int64 [b]).
        """
        order = self._source.epoch_order(self._seed, epoch, self._rank, self._world_size)
        steps = range(start_step, self.steps_per_epoch)
        stop = threading.Event()

        def batch(step: int) -> Batch:
            return self._batch(order, epoch, step, stop)

        batches = prefetch(batch, steps, self._num_workers, self._num_workers + _READ_AHEAD)
        try:
            # `yield from` would close `batches` first, which waits for whole batches, before `stop` is set.
            for made in batches:  # noqa: UP028
                yield made
        finally:
            stop.set()
            batches.close()  # type: ignore[attr-defined]

    def _batch(self, order: np.ndarray, epoch: int, step: int, stop: threading.Event) -> Batch:
        first = step * self._batch_size
        chosen = order[first : first + self._batch_size]
        channels, height, width = self._image_shape
        images = np.empty((len(chosen), height, width, channels), np.uint8)
        labels = np.empty(len(chosen), np.int64)
        for k, i in enumerate(chosen.tolist()):
            if stop.is_set():  # The batch will not be used.
                break
            data, labels[k] = self._source.read(i)
            image = decode(data, self._image_shape, self._source.where(i), self._rule)
            # Each global position has its own generator. So the numbers do not depend on the thread, and a sample
            # that is repeated as padding is changed in another way than the first time.
            position = (first + k) * self._world_size + self._rank
            images[k] = augment(image, self._augmentation, np.random.default_rng((self._seed, epoch, position)))
        return normalize(images), labels
