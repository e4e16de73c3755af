"""Batches from the readers that users write: any iterable of batches, read ahead in a thread."""

from __future__ import annotations

import contextlib
import inspect
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Optional, Union

import paddle

from plsc import parallel
from plsc.data.augmentation import Augmentation
from plsc.data.reader_batches import Batch, BatchMaker
from plsc.data.sampler import epoch_indices
from plsc.errors import ConfigError, DataError, StoppedError, shown

logger = logging.getLogger("plsc")

# A function that returns an iterator over batches (as `paddle.batch` makes), a `paddle.io.DataLoader`, a
# `paddle.io.Dataset` of samples, or any iterable that yields batches each time it is iterated over.
Reader = Union[Callable[[], Iterable[Any]], Iterable[Any], paddle.io.Dataset]

_READ_AHEAD = 2  # In batches.
_POLL_SECONDS = 0.25


def check_reader(name: str, reader: Any) -> Reader:
    """Returns `reader` if it can be read more than once.

    Args:
        name: The attribute that the user assigned it to, for error messages.
        reader: The value that the user assigned.

    Raises:
        ConfigError: The value is not a reader, wants arguments, or can be read only once.
    """
    if inspect.isroutine(reader) and not _takes_nothing(reader):
        raise ConfigError(
            f"{name}: plsc calls {reader.__name__} without arguments, but it wants some; assign one without any, "
            "such as functools.partial makes"
        )
    if isinstance(reader, paddle.io.DataLoader) and reader.num_workers > 0:
        logger.warning(
            "%s: Paddle forks the %d workers of its DataLoader from a process with threads, and they sometimes "
            "hang; use num_workers=0, which plsc reads ahead of training",
            name,
            reader.num_workers,
        )
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
        f"{name} = {shown(reader)}: expected a function that returns batches (as paddle.batch makes), a "
        "paddle.io.DataLoader, a paddle.io.Dataset, or a list of batches"
    )


def shard_reader(
    reader: Callable[[], Iterable[Any]], rank: Optional[int] = None, world_size: Optional[int] = None
) -> Callable[[], Iterator[Any]]:
    """Splits a reader over the ranks: of n ranks, rank r gets items r, r + n, r + 2n, ... of `reader()`.

    Apply it to samples, before `paddle.batch`. All ranks get equally many items: if the items do not divide evenly,
    each rank that is one short gets one of the first n items again. Every rank still reads all items, so a reader that
    skips the items of other ranks itself is faster.

    Args:
        reader: Function that returns an iterable of samples.
        rank: Rank to read for; by default that of this process.
        world_size: Number of ranks; by default that of this run.

    Returns:
        A reader of the samples of the rank.
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
        # The last round is short if the items do not divide evenly. Without any item there is nothing to repeat.
        if first and (number + 1) % ranks and own >= (number + 1) % ranks:
            yield first[own % len(first)]

    return sharded


class _End:
    """The mark that a reader has ended, in the queue of batches."""


class ReaderLoader:
    """Batches of a user's reader, checked, and read ahead in one thread.

    Args:
        name: The attribute that the user assigned the reader to, for error messages.
        reader: See `Reader`. Its batches are lists of (image, label), or (images [b, ...], labels [b]) as arrays or
            tensors. Images are float32 [C, H, W] or flat, and are used unchanged; or uint8 pixels, which are
            normalised. Labels are integers in [0, num_classes). The reader itself must yield only the share of this
            rank, except for a Dataset with a length, which is shuffled and split here in the same way as a label file.
        image_shape: Shape of one image, (C, H, W).
        num_classes: Number of classes. With None labels are not needed, and every label of a batch is -1.
        num_images: Number of images of all ranks, for a reader that has no length; None if it is unknown.
        batch_size: Batch size of a Dataset; also used to derive the number of batches from `num_images`.
        seed: Seed of the order of a Dataset and of the changes to images; None keeps its order.
        augmentation: Random changes to uint8 images; None changes none.
        rank: Rank of this process.
        world_size: Number of ranks.

    Attributes:
        num_images: Number of images of all ranks; None if it is unknown.
        splits: Whether the loader splits the samples over the ranks, rather than the reader.
        in_memory: Whether the reader is a list, which costs nothing to read.
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
        augmentation: Optional[Augmentation] = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self._name = name
        self._reader = reader
        self._make_batch = BatchMaker(image_shape, num_classes, augmentation)
        self._batch_size = batch_size
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self.num_images = num_images
        self.splits = isinstance(reader, paddle.io.Dataset) and _length(reader) is not None
        self.in_memory = isinstance(reader, (list, tuple))
        self._num_batches: Optional[int] = None
        self._is_stopping: Callable[[], bool] = lambda: False
        if self.splits:
            self.num_images = _length(reader)
            if not self.num_images:
                raise DataError(f"{name}: the Dataset is empty; give it samples")
        elif isinstance(reader, paddle.io.DataLoader) or not callable(reader):
            self._num_batches = _length(reader)
            self.num_images = num_images if self._num_batches is None else None

    @property
    def steps_per_epoch(self) -> Optional[int]:
        """Number of batches of this rank in an epoch; None if it is unknown."""
        if self._num_batches is not None:
            return self._num_batches
        if self.num_images is None:
            return None
        per_rank = -(-self.num_images // self._world_size)
        return -(-per_rank // self._batch_size)

    def digests(self) -> dict[str, str]:
        """Returns what must be the same on every rank, by its name: the length of a Dataset that is split here."""
        return {f"the length of {self._name}": str(self.num_images)} if self.splits else {}

    def end_waiting_if(self, is_stopping: Callable[[], bool]) -> None:
        """Has `epoch` end the wait for a batch with a StoppedError as soon as `is_stopping` returns True."""
        self._is_stopping = is_stopping

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of a new pass over the reader, without the first `start_step`.

        Closing or dropping the iterator stops its thread.

        Yields:
            (images float32 [b, C, H, W], labels int64 [b]).

        Raises:
            DataError: The reader yields no batch, or one that is wrong.
            StoppedError: The wait for the batch has been ended.
        """
        # Here rather than in the thread: only the main thread can start the processes of a DataLoader.
        iterator = self._batches(epoch)
        ready: queue.Queue[Batch | BaseException | type[_End]] = queue.Queue(_READ_AHEAD)
        stop = threading.Event()
        thread = threading.Thread(
            target=self._read, args=(iterator, epoch, start_step, ready, stop), name="plsc-reader", daemon=True
        )
        thread.start()
        del iterator  # The thread closes it.
        try:
            while True:
                item = self._next(ready)
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, type):
                    return
                yield item
        finally:
            stop.set()
            # The timeout keeps a reader that hangs from blocking this thread; its own thread is a daemon.
            thread.join(timeout=0 if self._is_stopping() else 10)

    def _next(self, ready: queue.Queue[Any]) -> Any:
        """Returns the next item of a queue."""
        while True:
            with contextlib.suppress(queue.Empty):
                return ready.get(timeout=0 if self._is_stopping() else _POLL_SECONDS)
            if self._is_stopping():
                raise StoppedError(f"{self._name} had not yielded it yet")

    def _read(self, iterator: Any, epoch: int, start_step: int, ready: queue.Queue[Any], stop: threading.Event) -> None:
        step = -1
        try:
            for step, samples in enumerate(iterator):
                if stop.is_set():
                    return
                if step < start_step:
                    continue
                are_samples = isinstance(self._reader, paddle.io.Dataset)
                seed = None if self._seed is None else (self._seed, epoch, step, self._rank)
                batch = self._make_batch(samples, f"{self._name}, epoch {epoch}, batch {step}", are_samples, seed)
                if not _put(ready, batch, stop):
                    return
            if step < 0:
                raise DataError(
                    f"{self._name} gave no batch in epoch {epoch}; it must return a new, non-empty iterator every time"
                )
            _put(ready, _End, stop)
        except BaseException as error:  # The consumer raises it.
            _put(ready, self._explained(error), stop)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def _batches(self, epoch: int) -> Iterator[Any]:
        if isinstance(self._reader, paddle.io.Dataset):
            return self._dataset_batches(self._reader, epoch)
        batches = self._reader() if callable(self._reader) else self._reader
        if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
            raise DataError(
                f"{self._name}: the function returned {shown(batches)}; it must return batches, or be a generator"
            )
        return iter(batches)

    def _explained(self, error: BaseException) -> BaseException:
        """Returns what to do if a reader has started the processes of a DataLoader in the thread, else `error`."""
        if not isinstance(error, ValueError) or "signal only works in main thread" not in str(error):
            return error
        return DataError(
            f"{self._name}: a DataLoader that the function iterates over cannot start processes here; assign the "
            "DataLoader itself, or give it num_workers=0"
        )

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


def _length(reader: Any) -> Optional[int]:
    try:
        return len(reader)
    except (TypeError, ValueError, NotImplementedError, RuntimeError):  # A DataLoader of a stream raises ValueError.
        return None


def _takes_nothing(function: Any) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # Some functions in C have no signature.
        pass
    return True


def _put(ready: queue.Queue[Any], item: Any, stop: threading.Event) -> bool:
    """Queues `item`; returns False if the consumer has gone.

    It polls, because an event cannot wake a blocked put.
    """
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.05)
            return True
        except queue.Full:
            continue
    return False
