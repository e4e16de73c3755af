import base64
import io

import numpy as np
import pytest
from PIL import Image

from plsc.data.transforms import decode, normalize
from plsc.data.verification import save_verification
from plsc.errors import ConfigError, DataError
from plsc.shuffle.local import shuffle_base64
from plsc.shuffle.plan import Options
from plsc.utils import base64_reader

SHAPE = (3, 8, 8)


def jpeg(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.delenv("PADDLE_TRAINER_ID", raising=False)
    monkeypatch.delenv("PADDLE_TRAINERS_NUM", raising=False)
    lines = (b"%s\t%d\n" % (base64.b64encode(jpeg(i)), i) for i in range(11))
    (tmp_path / "part").write_bytes(b"".join(lines))
    (tmp_path / "file_list.txt").write_text("part\n")
    shuffle_base64(Options(str(tmp_path), "file_list.txt", 2, workers=1))
    return str(tmp_path)


def labels_of(reader):
    return [label for _, label in reader()]


def test_samples_are_the_images_of_this_ranks_file(dataset, monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    seen = []
    for rank in range(2):
        monkeypatch.setenv("PADDLE_TRAINER_ID", str(rank))
        reader = base64_reader.arc_train(dataset, 11, image_shape=SHAPE, num_workers=2)
        first = []
        for image, label in reader():
            plain = normalize(decode(jpeg(label), SHAPE, "")[None])[0]
            assert np.array_equal(image, plain) or np.array_equal(image, plain[:, :, ::-1])
            first.append(label)
        with open(f"{dataset}/base64_rank_{rank}") as file:
            assert sorted(first) == sorted(int(line.split("\t")[1]) for line in file)
        assert len(first) == 6
        assert labels_of(reader) != first  # the next epoch
        assert labels_of(base64_reader.arc_train(dataset, 11, image_shape=SHAPE, num_workers=0)) == first
        others = ({"seed": 1}, {"shuffle": "full"})
        assert all(labels_of(base64_reader.arc_train(dataset, 11, image_shape=SHAPE, **one)) != first for one in others)
        seen += first
    assert set(seen) == set(range(11))


def test_what_does_not_fit_is_refused(dataset, monkeypatch, tmp_path):
    with pytest.raises(DataError, match="the largest label is 10"):
        base64_reader.arc_train(dataset, 10)
    with pytest.raises(ConfigError, match="shuffle='none'"):
        base64_reader.arc_train(dataset, 11, shuffle="none")
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "3")
    with pytest.raises(DataError, match="split for 2 ranks .* --nranks=3"):
        base64_reader.arc_train(dataset, 11)
    (tmp_path / "base64_manifest.json").unlink()
    with pytest.raises(DataError, match="no split base64 data"):
        base64_reader.arc_train(dataset, 11)


def test_verification_sets_are_read_as_with_image_files(dataset):
    save_verification(f"{dataset}/lfw.bin", [jpeg(0), jpeg(1)], [False])
    sets, names = base64_reader.test(dataset, "lfw", image_shape=SHAPE)
    assert names == ["lfw"] and sets[0].images.shape == (2, 8, 8, 3)
