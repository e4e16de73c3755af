"""Batches for training from image files, prepared ahead in threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from plsc.data.prefetch import prefetch
from plsc.data.sources import ImageSource
from plsc.data.transforms import Augmentation, augment, decode, normalize

Batch = tuple[np.ndarray, np.ndarray]

# Batches kept ready beyond the ones the workers are busy with.
_READ_AHEAD = 2


class ImageLoader:
    """Decoded, augmented and normalised batches of this rank's share of ``source``.

    ``image_shape`` is (C, H, W); ``batch_size`` is per rank; ``num_workers`` threads prepare whole batches
    (0: in the calling thread). The batches do not depend on ``num_workers``.
    """

    splits = True  # every rank gets as many batches of its own

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
    ):
        self._source = source
        self._image_shape = tuple(image_shape)
        self._batch_size = batch_size
        self._augmentation = augmentation
        self._seed = seed
        self._num_workers = num_workers
        self._rank = rank
        self._world_size = world_size

    @property
    def num_images(self) -> int:
        """Number of images of all ranks together."""
        return self._source.num_images

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch, the same on every rank."""
        per_rank = -(-self.num_images // self._world_size)
        return -(-per_rank // self._batch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield (float32 [b, C, H, W], int64 [b]) from batch ``start_step`` on; only the last may have b < batch_size.

        Closing or dropping the iterator stops its threads.
        """
        order = self._source.epoch_order(self._seed, epoch, self._rank, self._world_size)
        steps = range(start_step, self.steps_per_epoch)
        stop = threading.Event()

        def batch(step: int) -> Batch:
            return self._batch(order, epoch, step, stop)

        batches = prefetch(batch, steps, self._num_workers, self._num_workers + _READ_AHEAD)
        try:
            # `yield from` would close `batches` first, and wait for whole batches before they are told to stop.
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
            if stop.is_set():  # nobody will look at this batch
                break
            data, labels[k] = self._source.read(i)
            image = decode(data, self._image_shape, self._source.where(i))
            # One generator per global position: the same numbers whichever thread gets here, and a sample that
            # is repeated as padding is changed in another way.
            position = (first + k) * self._world_size + self._rank
            images[k] = augment(image, self._augmentation, np.random.default_rng((self._seed, epoch, position)))
        return normalize(images), labels
