"""Readers of the user's own: their shapes made one, checked, read ahead in a thread, and split over the ranks."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Optional, Union

import numpy as np
import paddle

from plsc import parallel
from plsc.data.sampler import epoch_indices
from plsc.data.transforms import normalize
from plsc.errors import ConfigError, DataError

logger = logging.getLogger("plsc")

Batch = tuple[np.ndarray, np.ndarray]
# A function that returns an iterator over batches (as `paddle.batch` gives), a `paddle.io.DataLoader`, a
# `paddle.io.Dataset` of samples, or anything that can be iterated over again and again and gives batches.
Reader = Union[Callable[[], Iterable[Any]], Iterable[Any], paddle.io.Dataset]

_ARRAYS = (np.ndarray, paddle.Tensor)
_READ_AHEAD = 2  # batches
_LARGEST_NORMALISED = 16.0


def check_reader(name: str, reader: Any) -> Reader:
    """`reader`, if it can be read more than once.

    Raises:
        ConfigError: it cannot, or it is no reader.
    """
    if callable(reader) or isinstance(reader, (paddle.io.Dataset, paddle.io.DataLoader)):
        return reader
    if isinstance(reader, Iterable):
        if iter(reader) is not reader:
            return reader
        raise ConfigError(
            f"{name} = {type(reader).__name__}: it can be read only once; assign the function that makes it, without "
            "calling it"
        )
    raise ConfigError(
        f"{name} = {reader!r:.80}: expected a function that returns batches (as paddle.batch gives), a "
        "paddle.io.DataLoader, a paddle.io.Dataset, or a list of batches"
    )


def shard_reader(
    reader: Callable[[], Iterable[Any]], rank: Optional[int] = None, world_size: Optional[int] = None
) -> Callable[[], Iterator[Any]]:
    """Splits a reader over the ranks: rank r gets the items r, r + n, r + 2n, ... of what `reader()` gives.

    Use it on samples, before `paddle.batch`. Every rank gets equally many: the ones that are short of an item at the end
    get one of the first n again. Every rank still reads all items, so a reader that skips by itself is faster.

    Args:
        rank, world_size: those of this process when left out.
    """

    def sharded() -> Iterator[Any]:
        own = parallel.rank() if rank is None else rank
        ranks = parallel.world_size() if world_size is None else world_size
        first, number = [], -1
        for number, item in enumerate(reader()):
            if number < ranks:
                first.append(item)
            if number % ranks == own:
                yield item
        # The last round is short when the items do not divide; without an item there is nothing to repeat.
        if first and (number + 1) % ranks and own >= (number + 1) % ranks:
            yield first[own % len(first)]

    return sharded


class _End:
    """Marks the end of the reader in the queue."""


class ReaderLoader:
    """Batches of a user's own reader, checked and read ahead in one thread.

    Args:
        name: what the user assigned it to, for messages.
        reader: see `Reader`. Its batches are lists of (image, label), or (images [b, ...], labels [b]) as arrays or
            tensors. Images: float32 [C, H, W] or flat, taken as they are; or uint8 pixels, which are normalised. Labels
            are integers in [0, num_classes). The reader itself gives this rank's share, but for a Dataset with a length,
            which is shuffled and split here, as label files are.
        image_shape: (C, H, W).
        num_classes: None takes no labels: a sample may do without, and every label given is -1.
        num_images: of all ranks, for a reader that cannot tell; None when unknown.
        batch_size: of a Dataset, and to count batches by `num_images`.
        seed: of a Dataset's order; None keeps it.
    """

    def __init__(
        self,
        name: str,
        reader: Reader,
        image_shape: Sequence[int],
        num_classes: Optional[int],
        num_images: Optional[int],
        batch_size: int,
        seed: Optional[int] = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self._name = name
        self._reader = reader
        self._image_shape = tuple(image_shape)
        self._num_classes = num_classes
        self._batch_size = batch_size
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self.num_images = num_images
        self.splits = isinstance(reader, paddle.io.Dataset) and _length(reader) is not None
        self._num_batches: Optional[int] = None
        if self.splits:
            self.num_images = _length(reader)
            if not self.num_images:
                raise DataError(f"{name}: the Dataset is empty; give it samples")
        elif isinstance(reader, paddle.io.DataLoader) or not callable(reader):
            self._num_batches = _length(reader)
            self.num_images = num_images if self._num_batches is None else None
        self._warned = False

    @property
    def steps_per_epoch(self) -> Optional[int]:
        """Number of this rank's batches of an epoch, None when nobody can tell."""
        if self._num_batches is not None:
            return self._num_batches
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
            iterator = self._batches(epoch)
            for step, samples in enumerate(iterator):
                if stop.is_set():
                    return
                if step >= start_step and not _put(ready, self._batch(samples, epoch, step), stop):
                    return
            if step < 0:
                raise DataError(
                    f"{self._name} gave no batch in epoch {epoch}; it must give a new, non-empty iterator every time"
                )
            _put(ready, _End, stop)
        except BaseException as error:  # handed to the consumer, which raises it
            _put(ready, error, stop)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def _batches(self, epoch: int) -> Iterator[Any]:
        if isinstance(self._reader, paddle.io.Dataset):
            return self._dataset_batches(self._reader, epoch)
        return iter(self._reader() if callable(self._reader) else self._reader)

    def _dataset_batches(self, dataset: Any, epoch: int) -> Iterator[list[Any]]:
        samples: Iterator[Any]
        if not self.splits:
            samples = iter(dataset)
        elif self._seed is None:
            assert self.num_images is not None
            samples = (dataset[i] for i in range(self._rank, self.num_images, self._world_size))
        else:
            assert self.num_images is not None
            indices = epoch_indices(self.num_images, self._seed, epoch, self._rank, self._world_size)
            samples = (dataset[i] for i in indices.tolist())
        batch = []
        for sample in samples:
            batch.append(sample)
            if len(batch) == self._batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _batch(self, samples: Any, epoch: int, step: int) -> Batch:
        where = f"{self._name}, epoch {epoch}, batch {step}"
        if isinstance(samples, _ARRAYS) and self._num_classes is None:
            samples = (samples,)
        if isinstance(samples, (dict, *_ARRAYS)) or not isinstance(samples, Iterable):
            raise DataError(f"{where}: a batch is a list of (image, label), or (images, labels); got {_kind(samples)}")
        samples = list(samples)
        if not samples:
            raise DataError(f"{where}: the batch is empty; leave it out")
        if len(samples) <= 2 and all(isinstance(one, _ARRAYS) for one in samples):
            images, labels = self._arrays(samples, where)
        else:
            pairs = [self._sample(sample, f"{where}, sample {k}") for k, sample in enumerate(samples)]
            images, labels = np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs], np.int64)
        if self._num_classes is not None:
            bad = np.flatnonzero((labels < 0) | (labels >= self._num_classes))
            if len(bad):
                raise DataError(
                    f"{where}, sample {bad[0]}: label {labels[bad[0]]} is outside [0, {self._num_classes}); correct the "
                    "reader or check set_class_num"
                )
        return self._normalised(images, where), labels

    def _arrays(self, arrays: Sequence[Any], where: str) -> Batch:
        """Of images [b, ...] and labels [b] or [b, 1]."""
        raw, count = np.asarray(arrays[0]), len(arrays[0])
        images = self._images(raw, where, (count,))
        if self._num_classes is None:
            return images, np.full(count, -1, np.int64)
        if len(arrays) == 1:
            raise DataError(f"{where}: there are no labels; give (images, labels)")
        labels = np.asarray(arrays[1])
        if labels.dtype.kind not in "iu" or labels.size != count:
            raise DataError(f"{where}: labels {_kind(labels)} for {count} images; give as many integers")
        return images, labels.reshape(-1).astype(np.int64)

    def _sample(self, sample: Any, where: str) -> tuple[np.ndarray, int]:
        if self._num_classes is None:
            return self._images(sample[0] if isinstance(sample, (list, tuple)) and sample else sample, where), -1
        try:
            raw_image, raw_label = sample
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: not a pair; give (image, label)") from error
        image, label = self._images(raw_image, where), np.asarray(raw_label)
        if label.size != 1 or label.dtype.kind not in "iu":
            raise DataError(f"{where}: label {raw_label!r:.60} is not an integer; give (image, label)")
        return image, int(label.item())

    def _images(self, raw: Any, where: str, batch: tuple[int, ...] = ()) -> np.ndarray:
        """uint8 or float32 [*batch, C, H, W]."""
        try:
            images = np.asarray(raw)
            if images.dtype != np.uint8:
                images = images.astype(np.float32, copy=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: the image is not an array of numbers; give float32 or uint8, CHW") from error
        wanted = (*batch, *self._image_shape)
        if images.ndim == len(batch) + 1 and images.size == np.prod(wanted):
            images = images.reshape(wanted)
        if images.shape != wanted:
            raise DataError(
                f"{where}: image has shape {list(images.shape[len(batch) :])} but image_shape is "
                f"{list(self._image_shape)}; give CHW or flat images, or set the image shape"
            )
        return images

    def _normalised(self, images: np.ndarray, where: str) -> np.ndarray:
        if images.dtype == np.uint8:
            return normalize(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
        largest = float(np.abs(images).max())
        if largest > _LARGEST_NORMALISED and not self._warned:
            self._warned = True
            logger.warning(
                "%s: float images reach %.0f and are taken as they are, but test images are (x - 127.5) / 128: normalise "
                "them in the reader, or give uint8, which plsc normalises",
                where,
                largest,
            )
        return images


def _length(reader: Any) -> Optional[int]:
    try:
        return len(reader)
    except (TypeError, NotImplementedError, RuntimeError):
        return None


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _put(ready: queue.Queue[Any], item: Any, stop: threading.Event) -> bool:
    """Queue ``item``; False when the consumer has gone. Polls, as a blocked put cannot be woken by an event."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.05)
            return True
        except queue.Full:
            continue
    return False
