"""Training on several data sets together."""

import json
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file
from train_glyphs import TinyNet

from plsc import Entry
from plsc.errors import ConfigError, DataError

FIRST = 7  # classes of the first set; the second has the other 5


@pytest.fixture(scope="module")
def halves(glyphs, tmp_path_factory):
    """The glyphs as two data sets; only the second has the test set."""
    folders = [tmp_path_factory.mktemp("halves") / name for name in ("first", "second")]
    lines = [line.rpartition(" ") for line in (glyphs / "label.txt").read_text().splitlines()]
    for folder, lower, upper in zip(folders, (0, FIRST), (FIRST, 12)):
        folder.mkdir()
        (folder / "images").symlink_to(glyphs / "images")
        own = [f"{path} {int(label) - lower}\n" for path, _, label in lines if lower <= int(label) < upper]
        (folder / "label.txt").write_text("".join(own))
    shutil.copy(glyphs / "glyphs.bin", folders[1])
    return [str(folder) for folder in folders]


def small(save_dir, **settings):
    """An entry that trains a small network for two epochs, in this process."""
    settings = {"num_classes": "auto", "train_epochs": 2, "log_period": 1, "val_targets": "glyphs", **settings}
    settings = {"image_shape": [3, 32, 32], "emb_dim": 16, "train_batch_size": 16, "with_test": False, **settings}
    ins = Entry(settings=settings)
    paddle.seed(0)
    ins.set_model(TinyNet())
    ins.set_model_save_dir(None if save_dir is None else str(save_dir))
    return ins


def records_of(folder):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in record.items() if k not in ("images_per_second", "time")} for record in records]


def assert_same(folder, other):
    """Asserts that two runs have the same losses and the same last checkpoint, to the bit."""
    assert records_of(folder) == records_of(other)
    files = sorted((folder / "1").glob("*.safetensors"))
    assert [path.name for path in files] == sorted(path.name for path in (other / "1").glob("*.safetensors"))
    for path in files:
        for name, tensor in load_file(path).items():
            np.testing.assert_array_equal(load_file(other / "1" / path.name)[name], tensor, err_msg=name)


def test_merged_sets_train_as_one_set_of_all_their_images(glyphs, halves, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "images").symlink_to(glyphs / "images")
    parts = [[line.rsplit(" ", 1) for line in Path(folder, "label.txt").open()] for folder in halves]
    lines = [f"{path} {int(label) + shift}\n" for part, shift in zip(parts, (0, FIRST)) for path, label in part]
    (whole / "label.txt").write_text("".join(lines))
    shutil.copy(glyphs / "glyphs.bin", whole)
    small(tmp_path / "one", dataset_dir=str(whole), with_test=True).train()
    result = small(tmp_path / "two", dataset_dir=halves, with_test=True).train()
    assert "glyphs" in result["test"] and result["steps"] == 12
    assert_same(tmp_path / "one", tmp_path / "two")


def resumed(tmp_path, **settings):
    """Trains two epochs at once, and again from the checkpoint of the fourth step; returns both folders."""
    small(tmp_path / "whole", save_period=1, **settings).train()
    (tmp_path / "rest").mkdir()
    shutil.copytree(tmp_path / "whole" / "step_4", tmp_path / "rest" / "step_4")
    shutil.copy(tmp_path / "whole" / "metrics.jsonl", tmp_path / "rest")
    small(tmp_path / "rest", save_period=1, resume=True, **settings).train()
    return tmp_path / "whole", tmp_path / "rest"


def test_weights_draw_the_images_of_a_set_more_often_and_resume_to_the_bit(halves, base64_glyphs, tmp_path):
    sets = {"directory": [*halves, str(base64_glyphs)], "weights": [0.5, 1.5, 0.25]}
    whole, rest = resumed(tmp_path, dataset_dir=sets, calc_acc=True)
    assert records_of(whole)[-1]["step"] == 2 * -(-(28 + 60 + 24) // 16)
    assert_same(whole, rest)
    assert json.loads((whole / "1" / "meta.json").read_text())["num_classes"] == 24


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_classes": 11}, r"set_class_num\(11\).* 12 classes together \(7 in first, 5 in second\); call set_class"),
        ({"dataset_dir": ["missing"]}, "missing: holds no training data .no such file or folder."),
        ({"data_format": "base64"}, "first/base64_manifest.json: missing"),
        ({"with_test": True, "val_targets": "lfw"}, "first/lfw.bin.*/first holds images .*/second holds glyphs"),
    ],
)
def test_what_does_not_fit_several_sets_is_one_line(halves, tmp_path, change, words):
    more = change.pop("dataset_dir", [])
    with pytest.raises((ConfigError, DataError), match=words):
        small(None, **{"dataset_dir": [*halves, *more], **change}).train()


def test_a_reader_replaces_sets_but_not_their_weights(halves, tmp_path):
    ins = small(None, num_classes=3, dataset_dir=halves, train_epochs=1)
    pixels = np.zeros([4, 3, 32, 32], "uint8")
    ins.train_reader = [[(image, number % 3) for number, image in enumerate(pixels)]]
    ins.train()
    ins = small(None, num_classes=3, dataset_dir={"directory": halves, "weights": [1, 2]})
    ins.train_reader = [[(image, number % 3) for number, image in enumerate(pixels)]]
    with pytest.raises(ConfigError, match="weights=.*train_reader"):
        ins.train()
