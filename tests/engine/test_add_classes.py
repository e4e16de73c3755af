"""`plsc add-classes`: a head that knows new classes without training."""

import json

import numpy as np
import pytest
from glyph_sets import write_set
from safetensors.numpy import load_file

from plsc import Entry, cli
from plsc.checkpoint import head_file, open_checkpoint
from plsc.checkpoint.convert import convert
from plsc.errors import CheckpointError
from plsc.metrics.vectors import unit_rows

OLD = [5, 2, 9, 0, 11, 3, 7]  # characters in the order of their numbers


def entry(data, save_dir, **settings):
    settings = {"train_epochs": 1, "train_batch_size": 8, "with_test": False, "lr": 1.0, "seed": 1, **settings}
    network = {"model_name": "GlyphNet", "image_shape": [3, 32, 32], "emb_dim": 16, "num_classes": "auto"}
    return Entry(settings={"dataset_dir": str(data), "model_save_dir": str(save_dir or ""), **network, **settings})


@pytest.fixture(scope="module")
def places(glyphs, tmp_path_factory):
    """A softmax head without names and an arcface head with names in three files, of the same characters."""
    base = tmp_path_factory.mktemp("products")
    write_set(base / "old", glyphs, OLD)
    write_set(base / "numbers", glyphs, OLD, named=False)
    entry(base / "old", base / "run").train()
    entry(base / "numbers", base / "plain", loss_type="softmax").train()
    convert(base / "run" / "0", base / "named", 3)
    (base / "nameless").symlink_to(base / "plain" / "0")
    return base


def head_of(folder, name="weight"):
    return np.concatenate([load_file(path)[name] for path in sorted(folder.glob("dist@head*"))])


def test_new_classes_of_several_sets_follow_the_old_ones_and_every_command_knows_them(places, glyphs, tmp_path, capsys):
    sets = [write_set(tmp_path / "one", glyphs, [1, 9]), write_set(tmp_path / "two", glyphs, [8, 1, 2])]
    output = tmp_path / "more"
    words = ["add-classes", str(places / "named"), *map(str, sets), str(output), "--json"]
    assert cli.main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {"path": str(output), "num_classes": 9, "known": 7, "added": 2, "left_out": []}
    found, old = open_checkpoint(output), open_checkpoint(places / "named")
    assert found.meta["class_names"] == [*(f"glyph {k}" for k in OLD), "glyph 1", "glyph 8"]
    assert found.head_rows == [3, 3, 3] and found.files["backbone.safetensors"] == old.files["backbone.safetensors"]
    rows, before = head_of(output), head_of(places / "named")
    np.testing.assert_array_equal(rows[:7], before)
    embeddings = unit_rows(entry("", None, checkpoint_dir=str(output), dataset_dir=".").predict(glyphs / "label.txt"))
    means = unit_rows(embeddings.reshape(12, 8, 16).sum(axis=1))[[1, 8]]
    length = np.median(np.linalg.norm(before, axis=1))
    np.testing.assert_allclose(rows[7:], means * length, rtol=1e-4, atol=1e-5)
    images = [str(glyphs / "images" / "8" / f"{k}.jpg") for k in range(8)]
    assert cli.main(["classify", "--checkpoint", str(output), *images, "--top", "1", "--json"]) == 0
    answers = [one["classes"][0]["name"] for one in json.loads(capsys.readouterr().out)]
    assert answers.count("glyph 8") >= 4

    every = write_set(tmp_path / "every", glyphs, range(12))
    again = {"checkpoint_dir": str(output), "head_init": "by-name", "lr": 1e-30}
    entry(every, tmp_path / "tuned", **again).train()
    np.testing.assert_array_equal(head_of(tmp_path / "tuned" / "0")[[1, 8, *OLD]], rows[[7, 8, *range(7)]])
    (tmp_path / "run").mkdir()
    output.rename(tmp_path / "run" / "5")
    with pytest.raises(CheckpointError, match="no training has saved this checkpoint.*set_checkpoint_dir"):
        entry(every, tmp_path / "run", resume=True).train()


def test_without_names_the_numbers_tell_and_a_bias_is_the_mean_of_the_others(places, glyphs, tmp_path, capsys):
    data = write_set(tmp_path / "data", glyphs, [*OLD, 1, 4], named=False)
    output = tmp_path / "more"
    assert cli.main(["add-classes", str(places / "nameless"), str(data), str(output)]) == 0
    assert "9 classes; 2 are new, with the numbers from 7 on" in capsys.readouterr().out
    assert "class_names" not in open_checkpoint(output).meta
    bias, before = head_of(output, "bias"), head_of(places / "nameless", "bias")
    np.testing.assert_array_equal(bias[:7], before)
    np.testing.assert_allclose(bias[7:], before.mean(), rtol=1e-5)
    assert sorted(load_file(output / head_file(0))) == ["bias", "weight"]
    entry(data, None, checkpoint_dir=str(output), loss_type="softmax").train()


def test_names_of_the_checkpoint_may_come_from_a_file_and_new_products_need_no_old_ones(places, glyphs, tmp_path):
    new = write_set(tmp_path / "new", glyphs, [8, 5, 1])
    words = ["add-classes", str(places / "nameless"), str(new), str(tmp_path / "more")]
    of_training = ["--set", "class_weights=[1, 2, 3, 4, 5, 6, 7]"]  # as in a settings file of the training
    assert cli.main([*words, "--names", str(places / "old" / "classes.txt"), *of_training]) == 0
    names = [*(f"glyph {k}" for k in OLD), "glyph 8", "glyph 1"]
    assert open_checkpoint(tmp_path / "more").meta["class_names"] == names


def test_a_network_without_a_head_gets_one_of_the_new_classes_alone(places, glyphs, tmp_path):
    weights = places / "run" / "0" / "backbone.safetensors"
    words = ["import-weights", str(weights), str(tmp_path / "net"), "--model", "GlyphNet", "--emb", "16"]
    assert cli.main([*words, "--image-shape", "3,32,32"]) == 0
    assert cli.main(["add-classes", str(tmp_path / "net"), str(places / "old"), str(tmp_path / "more")]) == 0
    np.testing.assert_allclose(np.linalg.norm(head_of(tmp_path / "more"), axis=1), 0.04, rtol=1e-5)
    assert open_checkpoint(tmp_path / "more").meta["class_names"] == [f"glyph {k}" for k in OLD]


def test_what_cannot_be_added_is_one_line_and_leaves_nothing(places, glyphs, tmp_path, capsys):
    gap = write_set(tmp_path / "gap", glyphs, [1, 4], named=False, first=8)
    low = write_set(tmp_path / "low", glyphs, [1, 4], named=False)
    named = write_set(tmp_path / "named", glyphs, [1, 4])
    bad = write_set(tmp_path / "bad", glyphs, [1])
    (bad / "bad.jpg").write_bytes(b"no image")
    (bad / "label.txt").write_text("bad.jpg 0\n")
    output = tmp_path / "output"
    for checkpoint, data, words in (
        ("named", places / "old", "names no class that"),
        ("named", low, "does not name its classes, and the checkpoint has names"),
        ("nameless", named, "name those of the checkpoint with --names FILE"),
        ("nameless", low, "no label is above those 7 classes"),
        ("nameless", gap, "has no image of class 7; number the new classes from 7 on, without gaps"),
        ("named", bad, "cannot decode"),
        ("named", tmp_path / "nowhere", "no such file or folder"),
    ):
        assert cli.main(["add-classes", str(places / checkpoint), str(data), str(output)]) == 1
        assert words in capsys.readouterr().err.splitlines()[-1]
        assert not list(tmp_path.glob("*output*"))
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    few = ["--names", str(tmp_path / "few.txt")]
    assert cli.main(["add-classes", str(places / "nameless"), str(named), str(output), *few]) == 1
    assert "--names gives 2 names for 7 classes" in capsys.readouterr().err.splitlines()[-1]
    skipping = ["--set", "skip_damaged=1"]
    assert cli.main(["add-classes", str(places / "named"), str(bad), str(output), *skipping]) == 1
    assert "class 0 ('glyph 1'): none of its images can be used" in capsys.readouterr().err.splitlines()[-1]
    assert cli.main(["add-classes", str(places / "named"), str(named), str(places / "old")]) == 1
    assert "already exists; name a new folder" in capsys.readouterr().err
