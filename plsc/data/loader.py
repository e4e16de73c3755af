"""Batches for training, from image files or from a user's own reader, prepared ahead in threads."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable

import numpy as np

from plsc.data.sampler import epoch_indices
from plsc.data.sources import ImageSource
from plsc.data.transforms import Augmentation, augment, decode, normalize
from plsc.errors import DataError

Batch = tuple[np.ndarray, np.ndarray]

# Batches kept ready beyond the ones the workers are busy with.
_READ_AHEAD = 2


class ImageLoader:
    """Decoded, augmented and normalised batches of this rank's share of ``source``.

    ``image_shape`` is (C, H, W); ``batch_size`` is per rank; ``num_workers`` threads prepare whole batches
    (0: in the calling thread). The batches do not depend on ``num_workers``.
    """

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
        return len(self._source)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch, the same on every rank."""
        per_rank = -(-self.num_images // self._world_size)
        return -(-per_rank // self._batch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield (float32 [b, C, H, W], int64 [b]) from batch ``start_step`` on; only the last may have b < batch_size.

        Closing or dropping the iterator stops its threads.
        """
        indices = epoch_indices(self.num_images, self._seed, epoch, self._rank, self._world_size)
        steps = range(start_step, self.steps_per_epoch)
        stop = threading.Event()
        if self._num_workers <= 0:
            for step in steps:
                yield self._batch(indices, epoch, step, stop)
            return
        executor = ThreadPoolExecutor(self._num_workers, thread_name_prefix="plsc-images")
        pending: deque[Future[Batch]] = deque()
        try:
            for step in steps:
                pending.append(executor.submit(self._batch, indices, epoch, step, stop))
                if len(pending) >= self._num_workers + _READ_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            stop.set()
            executor.shutdown(wait=True, cancel_futures=True)

    def _batch(self, indices: np.ndarray, epoch: int, step: int, stop: threading.Event) -> Batch:
        first = step * self._batch_size
        chosen = indices[first : first + self._batch_size]
        channels, height, width = self._image_shape
        images = np.empty((len(chosen), height, width, channels), np.uint8)
        for k, i in enumerate(chosen.tolist()):
            if stop.is_set():  # nobody will look at this batch
                break
            image = decode(self._source.open(i), self._image_shape, self._source.where(i))
            # One generator per global position: the same numbers whichever thread gets here, and a sample that
            # is repeated as padding is changed in another way.
            position = (first + k) * self._world_size + self._rank
            images[k] = augment(image, self._augmentation, np.random.default_rng((self._seed, epoch, position)))
        return normalize(images), self._source.labels[chosen].astype(np.int64, copy=False)


class _End:
    """Marks the end of the reader in the queue."""


class ReaderLoader:
    """Batches of a user's own reader, checked and read ahead in one thread.

    ``batched_reader()`` gives a new iterator over lists of (image, label): the image float32 [C, H, W] or a flat
    array of C*H*W elements, already normalised; the label an integer in [0, num_classes). The reader itself picks
    this rank's share. ``num_images`` counts the images of all ranks, None when unknown.
    """

    def __init__(
        self,
        batched_reader: Callable[[], Iterable[Sequence[Any]]],
        image_shape: Sequence[int],
        num_classes: int,
        num_images: int | None,
        batch_size: int,
        world_size: int = 1,
    ):
        self._reader = batched_reader
        self._image_shape = tuple(image_shape)
        self._num_classes = num_classes
        self._batch_size = batch_size
        self._world_size = world_size
        self.num_images = num_images

    @property
    def steps_per_epoch(self) -> int | None:
        """Number of batches of an epoch, None when ``num_images`` is unknown."""
        if self.num_images is None:
            return None
        per_rank = -(-self.num_images // self._world_size)
        return -(-per_rank // self._batch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield (float32 [b, C, H, W], int64 [b]) of a fresh pass over the reader, without the first ``start_step``.

        Closing or dropping the iterator stops its thread.
        """
        ready: queue.Queue[Batch | BaseException | type[_End]] = queue.Queue(_READ_AHEAD)
        stop = threading.Event()
        thread = threading.Thread(
            target=self._read, args=(epoch, start_step, ready, stop), name="plsc-reader", daemon=True
        )
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, type):
                    return
                yield item
        finally:
            stop.set()
            # A reader that hangs must not hang us too; the thread is a daemon.
            thread.join(timeout=10)

    def _read(self, epoch: int, start_step: int, ready: queue.Queue[Any], stop: threading.Event) -> None:
        iterator: Any = None
        step = -1
        try:
            iterator = iter(self._reader())
            for step, samples in enumerate(iterator):
                if stop.is_set():
                    return
                if step >= start_step and not _put(ready, self._batch(samples, epoch, step), stop):
                    return
            if step < 0:
                raise DataError(
                    f"the reader gave no batch in epoch {epoch}; it must return a new, non-empty iterator at every call"
                )
            _put(ready, _End, stop)
        except BaseException as error:  # handed to the consumer, which raises it
            _put(ready, error, stop)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def _batch(self, samples: Sequence[Any], epoch: int, step: int) -> Batch:
        where = f"reader, epoch {epoch}, batch {step}"
        samples = list(samples)
        if not samples:
            raise DataError(f"{where}: the batch is empty; leave it out")
        images = np.empty((len(samples), *self._image_shape), np.float32)
        labels = np.empty(len(samples), np.int64)
        for k, sample in enumerate(samples):
            images[k], labels[k] = self._sample(sample, f"{where}, sample {k}")
        return images, labels

    def _sample(self, sample: Any, where: str) -> tuple[np.ndarray, int]:
        try:
            raw_image, raw_label = sample
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: not a pair; give (image, label)") from error
        try:
            image = np.asarray(raw_image, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: the image is not an array of numbers; give float32 CHW") from error
        if image.ndim == 1 and image.size == int(np.prod(self._image_shape)):
            image = image.reshape(self._image_shape)
        if image.shape != self._image_shape:
            raise DataError(
                f"{where}: image has shape {list(image.shape)} but image_shape is {list(self._image_shape)}; "
                "give CHW or flat images, or set the image shape"
            )
        label = np.asarray(raw_label)
        if label.size != 1 or label.dtype.kind not in "iu":
            raise DataError(f"{where}: label {raw_label!r:.60} is not an integer; give (image, label)")
        value = int(label.item())
        if not 0 <= value < self._num_classes:
            raise DataError(
                f"{where}: label {value} is outside [0, {self._num_classes}); correct the reader or check set_class_num"
            )
        return image, value


def _put(ready: queue.Queue[Any], item: Any, stop: threading.Event) -> bool:
    """Queue ``item``; False when the consumer has gone. Polls, as a blocked put cannot be woken by an event."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.05)
            return True
        except queue.Full:
            continue
    return False
