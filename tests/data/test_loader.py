from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plsc.data.loader import ImageLoader, ReaderLoader
from plsc.data.sampler import epoch_indices
from plsc.data.transforms import Augmentation, decode, normalize
from plsc.errors import DataError

SHAPE = (3, 8, 8)


class Source:
    """Images in memory, image i of class i."""

    def __init__(self, count: int, bad: int = -1):
        rng = np.random.default_rng(0)
        self.labels = np.arange(count, dtype=np.int64)
        self.data = []
        self.opened = 0
        for _ in range(count):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
            self.data.append(file.getvalue())
        if bad >= 0:
            self.data[bad] = b"damaged"

    def __len__(self) -> int:
        return len(self.data)

    def where(self, i: int) -> str:
        return f"memory:{i}"

    def open(self, i: int) -> bytes:
        self.opened += 1
        return self.data[i]


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("plsc-")]


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    yield
    assert our_threads() == []


def loader(source: Source, workers: int, batch_size: int = 4, **kwargs: Any) -> ImageLoader:
    augmentation = kwargs.pop("augmentation", Augmentation(True, 10.0, 0.1))
    return ImageLoader(source, SHAPE, batch_size, augmentation, 5, workers, **kwargs)


def test_batches_hold_the_images_in_order() -> None:
    source = Source(10)
    batches = list(loader(source, 2, augmentation=Augmentation(False)).epoch(3))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    order = np.concatenate([labels for _, labels in batches])
    assert np.array_equal(order, epoch_indices(10, 5, 3, 0, 1))
    images = np.concatenate([images for images, _ in batches])
    assert images.dtype == np.float32
    expected = np.stack([decode(source.data[i], SHAPE, "") for i in order])
    assert np.array_equal(images, normalize(expected))


@pytest.mark.parametrize("rank", [0, 2])
def test_workers_do_not_change_the_batches(rank: int) -> None:
    source = Source(50)
    inline = list(loader(source, 0, rank=rank, world_size=3).epoch(1))
    threaded = list(loader(source, 3, rank=rank, world_size=3).epoch(1))
    resumed = list(loader(source, 3, rank=rank, world_size=3).epoch(1, start_step=2))
    assert len(inline) == loader(source, 0, rank=rank, world_size=3).steps_per_epoch == 5
    assert len(threaded) == 5
    assert len(resumed) == 3
    for left, right in [*zip(inline, threaded), *zip(inline[2:], resumed)]:
        assert np.array_equal(left[0], right[0])
        assert np.array_equal(left[1], right[1])
    other = list(loader(source, 0, rank=rank, world_size=3).epoch(2))
    assert not np.array_equal(inline[0][1], other[0][1])


def test_counts() -> None:
    one = loader(Source(9), 0, batch_size=2, rank=1, world_size=2)
    assert (one.num_images, one.steps_per_epoch) == (9, 3)
    assert list(one.epoch(0, start_step=3)) == []


@pytest.mark.parametrize("workers", [0, 3])
def test_error_surfaces_at_its_batch(workers: int) -> None:
    bad = int(epoch_indices(30, 5, 0, 0, 1)[9])
    batches = loader(Source(30, bad), workers).epoch(0)
    next(batches)
    next(batches)
    with pytest.raises(DataError, match=f"memory:{bad}: cannot decode"):
        next(batches)
    assert our_threads() == []


@pytest.mark.parametrize("close", [True, False])
def test_abandoned_iterator_stops_the_workers(close: bool) -> None:
    source = Source(400)
    batches = loader(source, 3).epoch(0)
    next(batches)
    time.sleep(0.2)
    assert source.opened <= 4 * (3 + 2)  # reads ahead only so far
    assert our_threads()
    if close:
        batches.close()  # type: ignore[attr-defined]
    else:
        del batches
    assert our_threads() == []


def samples(count: int, flat: bool = False) -> list[tuple[Any, Any]]:
    images = np.random.default_rng(0).random((count, *SHAPE), dtype=np.float32)
    return [(image.reshape(-1).tolist() if flat else image, k) for k, image in enumerate(images)]


def batched(items: list[Any], size: int) -> Any:
    def reader() -> Iterator[list[Any]]:
        for first in range(0, len(items), size):
            yield items[first : first + size]

    return reader


@pytest.mark.parametrize("flat", [False, True])
def test_reader_batches(flat: bool) -> None:
    items = samples(10)
    one = ReaderLoader(batched(samples(10, flat), 4), SHAPE, 10, 10, 4)
    for epoch in range(2):
        batches = list(one.epoch(epoch))
        assert [images.shape for images, _ in batches] == [(4, *SHAPE), (4, *SHAPE), (2, *SHAPE)]
        assert np.concatenate([labels for _, labels in batches]).tolist() == list(range(10))
        assert np.array_equal(
            np.concatenate([images for images, _ in batches]), np.stack([image for image, _ in items])
        )
    assert batches[0][0].dtype == np.float32
    assert batches[0][1].dtype == np.int64
    assert [labels.tolist() for _, labels in one.epoch(0, start_step=1)] == [[4, 5, 6, 7], [8, 9]]


def test_reader_counts() -> None:
    assert ReaderLoader(batched([], 4), SHAPE, 10, 10, 4, world_size=2).steps_per_epoch == 2
    assert ReaderLoader(batched([], 4), SHAPE, 10, None, 4).steps_per_epoch is None


GOOD = np.zeros(SHAPE, np.float32)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ((np.zeros((3, 8, 7)), 0), "shape"),
        ((np.zeros((8, 8, 3)), 0), "shape"),
        ((np.zeros(5), 0), "shape"),
        (("text", 0), "not an array"),
        ((GOOD, 10), r"label 10 is outside \[0, 10\)"),
        ((GOOD, -1), "label -1"),
        ((GOOD, 1.5), "not an integer"),
        ((GOOD, [1, 2]), "not an integer"),
        (GOOD, "not a pair"),
        (7, "not a pair"),
    ],
)
def test_reader_bad_sample(sample: Any, words: str) -> None:
    batches = ReaderLoader(batched([*samples(6), sample], 4), SHAPE, 10, None, 4).epoch(2)
    next(batches)
    with pytest.raises(DataError, match=f"epoch 2, batch 1, sample 2: .*{words}"):
        next(batches)


@pytest.mark.parametrize("label", [np.int32(3), np.array([3]), np.array(3, np.uint8)])
def test_reader_label_kinds(label: Any) -> None:
    ((_, labels),) = ReaderLoader(batched([(GOOD, label)], 4), SHAPE, 10, None, 4).epoch(0)
    assert labels.tolist() == [3]


def test_reader_empty() -> None:
    with pytest.raises(DataError, match="gave no batch"):
        list(ReaderLoader(batched([], 4), SHAPE, 10, None, 4).epoch(0))
    with pytest.raises(DataError, match="batch 0: the batch is empty"):
        list(ReaderLoader(lambda: iter([[]]), SHAPE, 10, None, 4).epoch(0))


def test_reader_own_error_surfaces() -> None:
    def reader() -> Iterator[list[Any]]:
        yield samples(2)
        raise KeyError("mine")

    batches = ReaderLoader(reader, SHAPE, 10, None, 2).epoch(0)
    next(batches)
    with pytest.raises(KeyError, match="mine"):
        next(batches)


@pytest.mark.parametrize("close", [True, False])
def test_reader_ends_with_the_consumer(close: bool) -> None:
    given, closed = [0], threading.Event()

    def reader() -> Iterator[list[Any]]:
        try:
            while True:
                given[0] += 1
                yield samples(1)
        finally:
            closed.set()

    batches = ReaderLoader(reader, SHAPE, 10, None, 1).epoch(0)
    next(batches)
    time.sleep(0.1)
    assert given[0] <= 5
    if close:
        batches.close()  # type: ignore[attr-defined]
    else:
        del batches
    assert closed.is_set()
    assert our_threads() == []
