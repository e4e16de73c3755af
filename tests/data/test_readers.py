from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
import pytest
from thread_checks import no_threads_left, plsc_threads  # noqa: F401 - the first is a fixture

from plsc.data.augmentation import Augmentation
from plsc.data.readers import ReaderLoader, check_reader, shard_reader
from plsc.data.sampler import epoch_indices
from plsc.data.transforms import normalize
from plsc.errors import ConfigError, DataError

SHAPE = (3, 8, 8)


def loader(reader: Any, num_images: Any = None, batch_size: int = 4, classes: Any = 10, **kwargs: Any) -> ReaderLoader:
    return ReaderLoader("train_reader", reader, SHAPE, classes, num_images, batch_size, **kwargs)


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
    one = loader(batched(samples(10, flat), 4), 10)
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
    assert loader(batched([], 4), 10, world_size=2).steps_per_epoch == 2
    assert loader(batched([], 4)).steps_per_epoch is None


GOOD = np.zeros(SHAPE, np.float32)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ((np.zeros((3, 8, 7)), 0), "shape"),
        ((np.zeros((8, 8, 3)), 0), "shape"),
        ((np.zeros(5), 0), "shape"),
        (("text", 0), "not an array"),
        ((GOOD, 10), r"label 10 is outside \[0, 10\)"),
        ((GOOD, -1), "label -1 is negative; correct the reader: labels count from 0$"),
        ((GOOD, 1.5), "not an integer"),
        ((GOOD, [1, 2]), "not an integer"),
        (GOOD, "not a pair"),
        (7, "not a pair"),
    ],
)
def test_reader_bad_sample(sample: Any, words: str) -> None:
    batches = loader(batched([*samples(6), sample], 4)).epoch(2)
    next(batches)
    with pytest.raises(DataError, match=f"epoch 2, batch 1, sample 2: .*{words}"):
        next(batches)


@pytest.mark.parametrize("label", [np.int32(3), np.array([3]), np.array(3, np.uint8)])
def test_reader_label_kinds(label: Any) -> None:
    ((_, labels),) = loader(batched([(GOOD, label)], 4)).epoch(0)
    assert labels.tolist() == [3]


def test_reader_empty() -> None:
    with pytest.raises(DataError, match="gave no batch"):
        list(loader(batched([], 4)).epoch(0))
    with pytest.raises(DataError, match="batch 0: the batch is empty"):
        list(loader(lambda: iter([[]])).epoch(0))


def test_the_iterator_is_made_in_the_calling_thread() -> None:
    made: list[threading.Thread] = []

    def reader() -> Iterator[Any]:
        made.append(threading.current_thread())
        return iter([samples(2)])

    assert len(list(loader(reader).epoch(0))) == 1
    assert made == [threading.current_thread()]


def test_a_data_loader_that_cannot_start_its_processes_is_explained() -> None:
    def reader() -> Iterator[Any]:
        yield samples(2)
        raise ValueError("signal only works in main thread of the main interpreter")

    with pytest.raises(DataError, match="^train_reader: a DataLoader .*assign the DataLoader itself.*num_workers=0$"):
        list(loader(reader).epoch(0))


@pytest.mark.parametrize("reader", [lambda: None, lambda: 3])
def test_a_function_that_returns_no_batches_is_refused(reader: Any) -> None:
    with pytest.raises(DataError, match="train_reader: the function returned .*generator"):
        list(loader(reader).epoch(0))


@pytest.mark.parametrize("reader", [lambda epoch: [], lambda *, last: []])
def test_a_function_that_wants_arguments_is_refused(reader: Any) -> None:
    with pytest.raises(ConfigError, match="train_reader: plsc calls <lambda> without arguments"):
        check_reader("train_reader", reader)
    assert callable(check_reader("train_reader", lambda epoch=3, *others, **named: []))


def test_reader_own_error_surfaces() -> None:
    def reader() -> Iterator[list[Any]]:
        yield samples(2)
        raise KeyError("mine")

    batches = loader(reader, batch_size=2).epoch(0)
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

    batches = loader(reader, batch_size=1).epoch(0)
    next(batches)
    time.sleep(0.1)
    assert given[0] <= 5
    if close:
        batches.close()  # type: ignore[attr-defined]
    else:
        del batches
    assert closed.is_set()
    assert plsc_threads() == []


class Samples(paddle.io.Dataset):
    """Ten images, image i of class i."""

    def __init__(self, count: int = 10):
        super().__init__()
        self.samples = samples(count)

    def __getitem__(self, i: int) -> Any:
        return self.samples[i]

    def __len__(self) -> int:
        return len(self.samples)


class Stream(paddle.io.IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter(samples(10))


def whole(count: int, size: int) -> list[Any]:
    images, labels = map(np.stack, zip(*samples(count)))
    return [(images[i : i + size], labels[i : i + size]) for i in range(0, count, size)]


def test_workers_of_a_data_loader_give_a_warning(caplog):
    check_reader("train_reader", paddle.io.DataLoader(Samples(), batch_size=4))
    assert not caplog.records
    check_reader("train_reader", paddle.io.DataLoader(Samples(), batch_size=4, num_workers=2))
    assert "train_reader: Paddle forks the 2 workers" in caplog.text


@pytest.mark.parametrize(
    "reader",
    [
        whole(10, 4),
        lambda: iter(whole(10, 4)),
        [[paddle.to_tensor(images), paddle.to_tensor(labels).unsqueeze(1)] for images, labels in whole(10, 4)],
        paddle.io.DataLoader(Samples(), batch_size=4),
        paddle.io.DataLoader(Stream(), batch_size=4),
        Stream(),
        [samples(10)[:2], samples(10)[2:4], samples(10)[4:]],  # A batch of two samples is not (images, labels).
    ],
    ids=["arrays", "function", "tensors", "DataLoader", "streamed", "IterableDataset", "pairs"],
)
def test_reader_shapes(reader: Any) -> None:
    one = loader(check_reader("train_reader", reader))
    for epoch in (0, 1):
        batches = list(one.epoch(epoch))
        assert all(images.dtype == np.float32 and labels.dtype == np.int64 for images, labels in batches)
        assert np.concatenate([labels for _, labels in batches]).tolist() == list(range(10))
        assert np.array_equal(np.concatenate([images for images, _ in batches]), np.stack([i for i, _ in samples(10)]))
    assert len(batches) == 3


def test_a_dataset_is_shuffled_and_split_like_a_label_file() -> None:
    ranks = [loader(Samples(), 99, seed=5, rank=rank, world_size=3) for rank in range(3)]
    assert {one.num_images for one in ranks} == {10} and {one.steps_per_epoch for one in ranks} == {1}
    for rank, one in enumerate(ranks):
        ((_, labels),) = one.epoch(2)
        assert labels.tolist() == epoch_indices(10, 5, 2, rank, 3).tolist()
    in_order = [
        np.concatenate([labels for _, labels in loader(Samples(), rank=r, world_size=3).epoch(0)]) for r in range(3)
    ]
    assert [labels.tolist() for labels in in_order] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    with pytest.raises(DataError, match="the Dataset is empty"):
        loader(Samples(0))


def test_readers_with_a_length_count_their_batches() -> None:
    assert loader(whole(10, 4), 1000).steps_per_epoch == 3
    assert loader(paddle.io.DataLoader(Samples(), batch_size=3), 1000).steps_per_epoch == 4
    assert loader(Stream(), 100, world_size=5).steps_per_epoch == 5
    assert loader(Samples(), 100).steps_per_epoch == 3


def test_uint8_is_normalised_and_unnormalised_floats_give_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("plsc.data.reader_batches.logger.warning", lambda text, *values: said.append(text % values))
    pixels = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)
    batches = [[(image, 0) for image in pixels[:4]], [(image, 0) for image in pixels[4:]]]
    got = np.concatenate([images for images, _ in loader(batches).epoch(0)])
    assert np.array_equal(got, normalize(pixels.transpose(0, 2, 3, 1))) and not said
    floats = [[(image.astype("float32"), 0) for image in pixels] for _ in range(2)]
    got = np.concatenate([images for images, _ in loader(floats).epoch(0)])
    assert np.array_equal(got[:6], pixels) and len(said) == 1 and "normalise them in the reader" in said[0]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"image": GOOD}, "got dict"),
        (7, "got int"),
        (np.zeros((4, *SHAPE), np.float32), "got float32"),
        ((np.zeros((4, *SHAPE), np.float32), np.zeros(3, np.int64)), r"labels int64 \[3\] do not fit 4 images"),
        ((np.zeros((4, *SHAPE), np.float32), np.zeros(4)), r"labels float64 \[4\] do not fit 4 images"),
        (
            (np.zeros((4, 3, 8, 9), np.float32), np.zeros(4, np.int64)),
            r"shape \[3, 8, 9\] but image_shape is \[3, 8, 8\]",
        ),
        ((np.zeros((4, *SHAPE), np.float32), np.array([1, 2, 12, 3])), "sample 2: label 12 is outside"),
        ([np.zeros((4, *SHAPE), np.float32)], "there are no labels"),
        ((np.stack([GOOD] * 4), np.zeros((2, 2), np.int64)), r"labels int64 \[2, 2\] do not fit 4 images"),
        ((np.stack([GOOD] * 2), np.eye(2, dtype=np.int64)), r"labels int64 \[2, 2\] do not fit 2 images"),
        ((np.stack([GOOD] * 2), [0, 1], [0, 1]), "there are 2 arrays after the images"),
        ((np.stack([GOOD] * 2), np.stack([GOOD] * 2)), "2 arrays of images"),
        ((GOOD, 3), "this is a single sample"),
        ([GOOD, GOOD], "sample 0: the sample is not a pair"),
        ([{"image": GOOD, "label": 1}], r"the sample is a dict \(image, label\)"),
        ([(np.zeros(SHAPE, np.uint8), 0), (GOOD, 1)], "some images are uint8"),
    ],
)
def test_reader_bad_batch(batch: Any, words: str) -> None:
    with pytest.raises(DataError, match=f"train_reader, epoch 0, batch 0.*{words}"):
        list(loader([batch]).epoch(0))


def forms_of(count: int) -> list[Any]:
    """Returns a batch of images in every form in which it may be given without labels."""
    images = np.stack([image for image, _ in samples(count)])
    flat = images.reshape(count, -1)
    return [
        list(images),
        tuple(images),
        list(flat),
        [paddle.to_tensor(image) for image in images],
        [(image,) for image in images],
        [[image, "a.jpg"] for image in images],
        [(image, k) for k, image in enumerate(images)],
        images,
        flat,
        [images],
        (images, np.arange(count)),
        [flat, [[k] for k in range(count)]],
        (paddle.to_tensor(images), ["a.jpg"] * count, np.zeros([count, 3])),
    ]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_labels_may_be_left_out_whatever_the_size_of_the_batch(count: int) -> None:
    wanted = np.stack([image for image, _ in samples(count)])
    for form in forms_of(count):
        ((images, labels),) = loader([form], classes=None).epoch(0)
        np.testing.assert_array_equal(images, wanted)
        assert labels.tolist() == [-1] * count


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_dataset_of_bare_images_gives_them_all(count: int, size: int) -> None:
    class Bare(Samples):
        def __getitem__(self, i: int) -> Any:
            return self.samples[i][0]

    wanted = np.stack([image for image, _ in samples(count)])
    for reader in (Bare(count), paddle.io.DataLoader(Bare(count), batch_size=size)):
        found = np.concatenate([images for images, _ in loader(reader, batch_size=size, classes=None).epoch(0)])
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "labels", [[3, 4], (3, 4), np.array([[3], [4]]), np.uint8([3, 4]), paddle.to_tensor([3, 4]), np.array([[3, 4]])]
)
def test_labels_of_a_batch_are_one_integer_for_each_image(labels: Any) -> None:
    ((_, found),) = loader([(np.stack([GOOD] * 2), labels)]).epoch(0)
    assert found.tolist() == [3, 4]


def test_a_bfloat16_tensor_is_read_as_its_values() -> None:
    images = paddle.to_tensor(np.stack([GOOD + 0.5] * 2)).astype("bfloat16")
    for batch in ((images, [1, 2]), [(images[0], 1), (images[1], 2)]):
        ((found, _),) = loader([batch]).epoch(0)
        np.testing.assert_array_equal(found, 0.5)


def test_images_between_0_and_1_give_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("plsc.data.reader_batches.logger.warning", lambda text, *values: said.append(text % values))
    list(loader([[(GOOD, 0)], [(GOOD - 0.5, 0)]]).epoch(0))
    assert not said
    list(loader([samples(3)]).epoch(0))
    assert len(said) == 1 and "float images are from" in said[0] and "normalise them in the reader" in said[0]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (GOOD, r"float32 \[3, 8, 8\] is a single image"),
        ((GOOD, 3), "this is a single sample"),
        ([GOOD, np.array(3)], "this is a single sample"),
        ((np.stack([GOOD] * 2), np.stack([GOOD] * 2)), "2 arrays of images"),
        ((np.stack([GOOD] * 2), np.stack([GOOD] * 3).reshape(3, -1)), "2 arrays of images"),
        ([{"image": GOOD}], "sample 0: the sample is a dict"),
        ([np.zeros(SHAPE, np.uint8), GOOD], "some images are uint8"),
        ([GOOD * 1j], "not an array of numbers"),
        ([GOOD.transpose(1, 2, 0)], "transpose it to CHW"),
        ([GOOD[0]], r"yield batches|shape \[8\]"),
    ],
)
def test_images_without_labels_in_another_form_are_refused(batch: Any, words: str) -> None:
    with pytest.raises(DataError, match=f"train_reader, epoch 0, batch 0.*{words}"):
        list(loader([batch], classes=None).epoch(0))


def test_what_can_be_read_only_once_is_refused() -> None:
    for once in (iter([]), batched(samples(2), 1)()):
        with pytest.raises(ConfigError, match="train_reader = .*: it can be read only once"):
            check_reader("train_reader", once)
    with pytest.raises(ConfigError, match="train_reader = 7: expected a function"):
        check_reader("train_reader", 7)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 9])
def test_shard_reader_gives_every_rank_equally_many_items(count: int) -> None:
    parts = [list(shard_reader(lambda: range(count), rank, 3)()) for rank in range(3)]
    assert {len(part) for part in parts} == {-(-count // 3)}
    seen = sorted(item for part in parts for item in part)
    assert set(seen) == set(range(count)) and len(seen) - count < 3
    assert list(shard_reader(lambda: range(count))()) == list(range(count))


def test_augmentation_changes_uint8_images_in_the_same_way_at_every_pass() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, *SHAPE), dtype=np.uint8)
    reader = batched([(image, k) for k, image in enumerate(pixels)], 4)
    plain = normalize(pixels.transpose(0, 2, 3, 1))
    changed = loader(reader, seed=1, augmentation=Augmentation(mirror=True))

    def images(epoch: int, start: int = 0) -> np.ndarray:
        return np.concatenate([batch[0] for batch in changed.epoch(epoch, start)])

    mirrored = [bool((one == other[..., ::-1]).all()) for one, other in zip(images(0), plain)]
    assert {True, False} == set(mirrored)
    np.testing.assert_array_equal(images(0), [o[..., ::-1] if m else o for o, m in zip(plain, mirrored)])
    np.testing.assert_array_equal(images(0, 1), images(0)[4:])  # as a resumed run sees them
    assert (images(0) != images(1)).any()
    floats = loader(batched(samples(4), 4), seed=1, augmentation=Augmentation())
    with pytest.raises(DataError, match="set_augmentation changes uint8 images, and these are float32"):
        list(floats.epoch(0))
