import json
import shutil

import numpy as np
import paddle
import pytest

from plsc import checkpoint
from plsc.errors import CheckpointError
from plsc.heads import build_head

pytestmark = pytest.mark.core


@pytest.fixture
def saved(tmp_path):
    backbone, head = paddle.nn.Linear(3, 2), build_head("dist_softmax", 5, 2)
    folder = tmp_path / "output" / "0"
    state = {"weight": {"velocity": paddle.ones([3, 2])}, "head.weight": {"velocity": paddle.ones([5, 2])}}
    checkpoint.save(folder, backbone, head, state, {"epoch": 0})
    return folder, backbone, head


def test_what_is_saved_comes_back(saved):
    folder, backbone, head = saved
    other, other_head = paddle.nn.Linear(3, 2), build_head("dist_softmax", 5, 2, seed=9)
    checkpoint.load_backbone(folder, other)
    checkpoint.load_head(folder, other_head)
    np.testing.assert_array_equal(other.weight.numpy(), backbone.weight.numpy())
    np.testing.assert_array_equal(other_head.weight.numpy(), head.weight.numpy())
    np.testing.assert_array_equal(other_head.bias.numpy(), head.bias.numpy())
    meta = json.loads((folder / "meta.json").read_text())
    assert set(meta["sha256"]) == {path.name for path in folder.iterdir()} - {"meta.json"}


def test_saving_again_replaces_the_checkpoint_and_leaves_nothing_else(saved):
    folder, backbone, head = saved
    checkpoint.save(folder, backbone, head, {}, {"epoch": 7})
    assert json.loads((folder / "meta.json").read_text())["epoch"] == 7
    assert [path.name for path in folder.parent.iterdir()] == ["0"]


def test_a_folder_that_is_no_checkpoint_is_left_alone(tmp_path):
    folder = tmp_path / "0"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.save(folder, paddle.nn.Linear(1, 1), build_head("dist_arcface", 2, 1), {}, {})
    assert (folder / "mine.txt").read_text() == "keep"
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_other_sizes_are_refused_with_both_values(saved):
    folder, _, _ = saved
    with pytest.raises(CheckpointError, match="5.*set_class_num says 6"):
        checkpoint.load_head(folder, build_head("dist_softmax", 6, 2))
    with pytest.raises(CheckpointError, match="shape"):
        checkpoint.load_backbone(folder, paddle.nn.Linear(3, 4))
    with pytest.raises(CheckpointError, match="only in"):
        checkpoint.load_backbone(folder, paddle.nn.Sequential(paddle.nn.Linear(3, 2)))


def test_a_head_without_the_bias_asked_for_is_refused(tmp_path):
    checkpoint.save(tmp_path / "0", paddle.nn.Linear(1, 1), build_head("dist_arcface", 4, 2), {}, {})
    with pytest.raises(CheckpointError, match="set_loss_type"):
        checkpoint.load_head(tmp_path / "0", build_head("dist_softmax", 4, 2))


@pytest.mark.parametrize("name", [checkpoint.BACKBONE, checkpoint.head_file(0), "meta.json"])
@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_damage_is_named(saved, name, damage, tmp_path):
    folder, backbone, head = saved
    broken = shutil.copytree(folder, tmp_path / "broken")
    content = (broken / name).read_bytes()
    (broken / name).unlink()
    if damage != "missing":
        (broken / name).write_bytes(content[: len(content) // 2] if damage == "short" else b"")
    with pytest.raises(CheckpointError, match=name.split(".")[0]):
        checkpoint.load_backbone(broken, backbone)
        checkpoint.load_head(broken, head)


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="meta.json"):
        checkpoint.read_meta(tmp_path)
