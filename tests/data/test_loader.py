from __future__ import annotations

import errno
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from thread_checks import no_threads_left, plsc_threads  # noqa: F401 - the first is a fixture

from plsc.data.augmentation import Augmentation
from plsc.data.damaged import Skipping
from plsc.data.loader import ImageLoader
from plsc.data.packed import TextsOfFile
from plsc.data.records import check_label
from plsc.data.sampler import epoch_indices
from plsc.data.transforms import decode, normalize
from plsc.errors import DataError

SHAPE = (3, 8, 8)


class Source:
    """Images in memory, image i of class i."""

    def __init__(self, count: int, bad: int = -1):
        rng = np.random.default_rng(0)
        self.num_images = self.epoch_images = count
        self.data = []
        self.opened = 0
        for _ in range(count):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
            self.data.append(file.getvalue())
        if bad >= 0:
            self.data[bad] = b"damaged"

    def epoch_order(self, seed: int, epoch: int, rank: int, world_size: int) -> np.ndarray:
        return epoch_indices(self.num_images, seed, epoch, rank, world_size)

    def name(self, i: int) -> str:
        return str(i)

    def will_read(self, images: np.ndarray) -> None:
        self.will = images.tolist()

    def where(self, i: int) -> str:
        return f"memory:{i}"

    def read(self, i: int) -> tuple[bytes, int]:
        self.opened += 1
        return self.data[i], i


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
    assert np.array_equal(images, normalize(expected)) and source.will == order.tolist()
    list(loader(source, 2, augmentation=Augmentation(False)).epoch(3, start_step=1))
    assert source.will == order[4:].tolist()


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


def test_steps_per_epoch_cover_all_images() -> None:
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
    assert plsc_threads() == []


@pytest.mark.parametrize("close", [True, False])
def test_abandoned_iterator_stops_the_workers(close: bool) -> None:
    source = Source(400)
    batches = loader(source, 3).epoch(0)
    next(batches)
    time.sleep(0.2)
    assert source.opened <= 4 * (3 + 2)  # The loader reads ahead no further.
    assert plsc_threads()
    if close:
        batches.close()  # type: ignore[attr-defined]
    else:
        del batches
    assert plsc_threads() == []


def skipping(bad: list[int], most: int, workers: int, **kwargs: Any) -> tuple[ImageLoader, dict[str, str]]:
    source, met = Source(30), dict[str, str]()
    for i in bad:
        source.data[i] = b"damaged"
    return loader(source, workers, skipping=Skipping(most, met.__setitem__), **kwargs), met


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("start", [0, 2])
def test_the_next_good_image_takes_the_place_of_a_damaged_one(workers: int, start: int) -> None:
    order = epoch_indices(30, 5, 0, 0, 1).tolist()
    bad = [order[k] for k in (9, 10, 29)]  # two in a row, and the last one
    made, met = skipping(bad, 3, workers)
    found = [label for _, labels in made.epoch(0, start) for label in labels.tolist()]
    expected = [*order[:9], order[11], order[11], *order[11:29], order[0]]
    assert found == expected[4 * start :] and set(met) == {str(i) for i in bad}
    assert all("cannot decode" in reason for reason in met.values())


@pytest.mark.parametrize("bad, most", [(3, 2), (15, 14), (15, 100)])
def test_more_damaged_images_than_allowed_or_no_good_one_end_the_epoch(bad: int, most: int) -> None:
    order = epoch_indices(30, 5, 0, 0, 2).tolist()
    made, _ = skipping(order[:bad], most, 0, world_size=2)
    with pytest.raises(DataError, match=rf"set_skip_damaged\({most}\): at least {min(bad, most + 1)} images"):
        list(made.epoch(0))


@pytest.mark.parametrize("cause", [OSError(errno.EMFILE, "too many"), MemoryError()])
def test_what_is_the_fault_of_the_machine_is_no_damage(cause: Exception) -> None:
    made, met = skipping([], 5, 0)

    def read(i: int) -> tuple[bytes, int]:
        raise DataError("memory:0: no") from cause

    made._source.read = read  # type: ignore[method-assign]
    with pytest.raises(DataError, match="memory:0: no"):
        list(made.epoch(0))
    assert not met


def changed_list(tmp_path: Path) -> None:
    path = tmp_path / "label.txt"
    path.write_bytes(b"1.jpg 0")
    TextsOfFile(path, path.open("rb"), np.array([0]), np.array([5]), (7, 0))


@pytest.mark.parametrize(
    "fail, words",
    [(lambda _: check_label(49, "a", 40, 49), r"call set_class_num\(50\)"), (changed_list, "label.txt: has changed")],
)
def test_what_concerns_all_of_the_data_is_no_damage(tmp_path: Path, fail: Callable[[Path], None], words: str) -> None:
    made, met = skipping([], 5, 0)
    made._source.read = lambda i: fail(tmp_path)  # type: ignore[method-assign]
    with pytest.raises(DataError, match=words) as caught:
        list(made.epoch(0))
    assert not met and "set_skip_damaged" not in str(caught.value)
