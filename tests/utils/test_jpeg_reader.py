from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from made_images import encode
from PIL import Image

from plsc.data.transforms import decode, normalize
from plsc.data.verification import save_verification
from plsc.errors import DataError
from plsc.utils import jpeg_reader

SHAPE = (3, 8, 8)


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("PADDLE_TRAINER_ID", raising=False)
    monkeypatch.delenv("PADDLE_TRAINERS_NUM", raising=False)
    for i in range(11):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    (tmp_path / "label.txt").write_text("".join(f"{i}.jpg {i}\n" for i in range(11)))
    return str(tmp_path)


def test_samples_are_the_images(dataset: str) -> None:
    reader = jpeg_reader.arc_train(dataset, 11, image_shape=SHAPE, num_workers=2)
    seen = []
    for image, label in reader():
        assert image.dtype == np.float32
        assert type(label) is int
        plain = normalize(decode(jpeg(label), SHAPE, "")[None])[0]
        assert np.array_equal(image, plain) or np.array_equal(image, plain[:, :, ::-1])
        seen.append(label)
    assert sorted(seen) == list(range(11))
    assert [label for _, label in reader()] != seen  # It is the next epoch.
    again = jpeg_reader.arc_train(dataset, 11, image_shape=SHAPE, num_workers=0)
    assert [label for _, label in again()] == seen
    other = jpeg_reader.arc_train(dataset, 11, image_shape=SHAPE, num_workers=0, seed=1)
    assert [label for _, label in other()] != seen


def test_the_pixel_rule_can_be_that_of_earlier_versions(tmp_path: Path) -> None:
    clear = np.dstack([np.full((16, 16, 3), 50, np.uint8), np.zeros((16, 16), np.uint8)])
    (tmp_path / "0.png").write_bytes(encode(clear))
    (tmp_path / "label.txt").write_text("0.png 0\n")
    for number, level in ((1, 50), (2, 255)):
        reader = jpeg_reader.arc_train(str(tmp_path), 1, image_shape=(3, 16, 16), pixel_rule=number)
        assert np.unique(next(reader())[0]) == (level - 127.5) / 128


def test_ranks_share_the_samples(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("PADDLE_TRAINER_ID", rank)
        part = [label for _, label in jpeg_reader.arc_train(dataset, 11, image_shape=SHAPE)()]
        assert len(part) == 6
        seen += part
    assert set(seen) == set(range(11))
    monkeypatch.setenv("PADDLE_TRAINER_ID", "2")
    with pytest.raises(DataError, match="PADDLE_TRAINER_ID"):
        jpeg_reader.arc_train(dataset, 11)


def test_abandoned_reader_leaves_no_threads(dataset: str) -> None:
    samples = jpeg_reader.arc_train(dataset, 11, image_shape=SHAPE, num_workers=2)()
    next(samples)
    del samples
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("plsc-")]


def test_verification_sets(tmp_path: Path) -> None:
    for name in ("lfw", "cfp"):
        save_verification(str(tmp_path / f"{name}.bin"), [jpeg(0), jpeg(1)], [False])
    sets, names = jpeg_reader.test(str(tmp_path), "lfw,cfp")
    assert names == ["lfw", "cfp"]
    assert sets[1].images.shape == (2, 112, 112, 3)
    with pytest.raises(DataError, match="agedb"):
        jpeg_reader.test(str(tmp_path), "agedb")
