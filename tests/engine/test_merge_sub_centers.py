"""`set_sub_centers` from training to use: what is saved, resumed, merged and refused."""

import json
import re

import numpy as np
import pytest
from glyph_sets import write_set
from safetensors.numpy import load_file

from plsc import Entry, cli
from plsc.checkpoint import HeadFiles, head_file, open_checkpoint
from plsc.checkpoint.convert import convert
from plsc.errors import CheckpointError, ConfigError
from plsc.inference.classes import CheckpointCentres, ExportedCentres, classify, write_centres
from plsc.machine.bfloat16 import BFLOAT16, bfloat16_of, floats_of_bfloat16
from plsc.metrics.vectors import unit_rows

CLASSES = 5


def entry(data, save_dir, **settings):
    settings = {"train_epochs": 1, "train_batch_size": 8, "with_test": False, "lr": 1.0, "seed": 1, **settings}
    network = {"model_name": "GlyphNet", "image_shape": [3, 32, 32], "emb_dim": 16, "num_classes": "auto"}
    data = data if isinstance(data, dict) else str(data)
    return Entry(settings={"dataset_dir": data, "model_save_dir": str(save_dir or ""), **network, **settings})


@pytest.fixture(scope="module")
def places(glyphs, tmp_path_factory):
    """A set of named classes, and runs on it with one and with three rows for each class."""
    base = tmp_path_factory.mktemp("sub_centers")
    write_set(base / "data", glyphs, range(CLASSES))
    entry(base / "data", base / "three", sub_centers=3).train()
    entry(base / "data", base / "one").train()
    convert(base / "three" / "0", base / "split", 2)
    return base


def head_of(folder):
    return np.concatenate([load_file(path)["weight"] for path in sorted(folder.glob("dist@head*"))])


def embeddings_of(checkpoint, data):
    found = entry("", None, checkpoint_dir=str(checkpoint), dataset_dir=".").predict(data / "label.txt")
    return unit_rows(found)


def labels_of(data):
    return np.array([int(line.split()[-1]) for line in (data / "label.txt").read_text().splitlines()])


def test_files_hold_all_rows_of_a_class_and_load_from_any_number_of_them(places, tmp_path):
    found = open_checkpoint(places / "split")
    assert found.meta["sub_centers"] == 3 and found.head_rows == [3, 2]
    rows = head_of(places / "split")
    assert rows.shape == (CLASSES, 3, 16)
    np.testing.assert_array_equal(rows, head_of(places / "three" / "0"))
    assert "sub_centers" not in open_checkpoint(places / "one" / "0").meta
    entry(places / "data", tmp_path, sub_centers=3, checkpoint_dir=str(places / "split"), lr=1e-30).train()
    np.testing.assert_array_equal(head_of(tmp_path / "0"), rows)


@pytest.mark.parametrize("head_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head_init", ["checkpoint", "keep-common", "by-name", "from-embeddings"])
def test_the_first_of_several_rows_begins_at_the_only_row_of_a_checkpoint(places, tmp_path, head_init, head_dtype):
    settings = {"sub_centers": 3, "checkpoint_dir": str(places / "one" / "0"), "head_init": head_init}
    entry(places / "data", tmp_path / "wide", **settings, head_dtype=head_dtype, lr=1e-30).train()
    rows, before = stored(tmp_path / "wide" / "0")[0], head_of(places / "one" / "0")
    before = before if head_dtype == "float32" else floats_of_bfloat16(bfloat16_of(before))
    np.testing.assert_array_equal(rows[:, 0], before)
    assert 0 < np.abs(rows[:, 1:]).max() < 0.1, "the others are fresh"


@pytest.mark.parametrize("head_init, sub_centers", [("checkpoint", 1), ("keep-common", 2), ("by-name", 1)])
def test_a_warm_start_with_fewer_rows_names_both_numbers_and_the_command(places, tmp_path, head_init, sub_centers):
    settings = {"sub_centers": sub_centers, "checkpoint_dir": str(places / "three" / "0"), "head_init": head_init}
    words = f"has 3 sub-centres for each class, and set_sub_centers says {sub_centers}.*merge-sub-centers"
    with pytest.raises(CheckpointError, match=words):
        entry(places / "data", tmp_path, **settings).train()


def test_a_resumed_run_keeps_its_number_of_rows(places):
    with pytest.raises(CheckpointError, match="had 3 rows for each class, and set_sub_centers says 2"):
        entry(places / "data", places / "three", sub_centers=2, resume=True).train()
    with pytest.raises(CheckpointError, match="had 1 row for each class, and set_sub_centers says 3"):
        entry(places / "data", places / "one", sub_centers=3, resume=True).train()


@pytest.mark.parametrize("settings", [{"loss_type": "softmax"}, {"loss_type": "dist_softmax"}])
def test_softmax_has_no_sub_centers(places, settings):
    with pytest.raises(ConfigError, match=r"set_sub_centers\(3\): the loss of set_loss_type.*compares no cosines"):
        ins = Entry()
        ins.set_sub_centers(3)
        ins.set_loss_type(settings["loss_type"])
        ins.train()


def test_classify_takes_the_nearest_row_of_a_class_also_in_an_export(places, tmp_path):
    checkpoint = places / "three" / "0"
    rows = unit_rows(head_of(checkpoint).reshape(-1, 16)).reshape(CLASSES, 3, 16)
    embeddings = embeddings_of(checkpoint, places / "data")
    cosines = np.einsum("nd,ckd->nck", embeddings, rows).max(axis=2)
    centres = CheckpointCentres(checkpoint)
    _, record = write_centres(centres, 16, tmp_path)
    for one in (centres, ExportedCentres(tmp_path, record, centres.names)):
        answers = classify(embeddings, one, top=2)
        assert [[a.number for a in answer] for answer in answers] == np.argsort(-cosines)[:, :2].tolist()
        np.testing.assert_allclose([a.cosine for answer in answers for a in answer[:1]], cosines.max(axis=1), atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"sample_ratio": 0.5, "loss_type": "dist_curricularface"}])
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_stopped(places, tmp_path, settings):
    settings = {**settings, "sub_centers": 2, "gradient_accumulation": 2, "head_chunk": 3}
    entry(places / "data", tmp_path / "whole", **settings, train_epochs=2, lr_steps=[100]).train()
    entry(places / "data", tmp_path / "parts", **settings, lr_steps=[100]).train()
    entry(places / "data", tmp_path / "parts", **settings, train_epochs=2, lr_steps=[100], resume=True).train()
    for file in sorted((tmp_path / "whole" / "1").glob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "parts" / "1" / file.name).read_bytes(), file.name


def test_merging_leaves_the_row_of_most_images_and_lists_those_far_from_it(places, tmp_path, capsys):
    data, output, listed = places / "data", tmp_path / "merged", tmp_path / "far.txt"
    words = ["merge-sub-centers", str(places / "split"), str(data), str(output)]
    assert cli.main([*words, "--drop-beyond", "80", "--list", str(listed), "--json", "--set", "test_batch_size=7"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = head_of(places / "split")
    units = unit_rows(rows.reshape(-1, 16)).reshape(rows.shape)
    labels = labels_of(data)
    cosines = np.einsum("nd,nkd->nk", embeddings_of(places / "split", data), units[labels])
    votes = np.stack([np.bincount(cosines[labels == k].argmax(axis=1), minlength=3) for k in range(CLASSES)])
    dominant = votes.argmax(axis=1)
    np.testing.assert_array_equal(head_of(output), rows[np.arange(CLASSES), dominant])
    angles = np.degrees(np.arccos(cosines[np.arange(len(labels)), dominant[labels]]))
    names = [line.rsplit(None, 1)[0] for line in (data / "label.txt").read_text().splitlines()]
    far = [names[i] for i in np.flatnonzero(angles > 80)]
    assert 0 < len(far) < len(names)
    assert [line.partition("\t")[0] for line in listed.read_text().splitlines()] == far
    assert report == {
        "path": str(output),
        "num_classes": CLASSES,
        "sub_centers": 3,
        "images": len(labels),
        "damaged": 0,
        "dominant": int(votes.max(axis=1).sum()),
        "unseen": 0,
        "left_out": len(far),
        "unnamed": 0,
    }
    found = open_checkpoint(output)
    assert found.meta["merged_sub_centers"] == 3 and found.sub_centers == 1 and found.head_rows == [3, 2]
    assert not list(tmp_path.glob(".plsc*"))
    without = {"directory": str(data), "exclude": str(listed)}
    entry(without, tmp_path / "tuned", checkpoint_dir=str(output), lr=1e-30).train()
    assert json.loads((tmp_path / "tuned" / "run.json").read_text())["settings"]["exclude"] == str(listed)
    np.testing.assert_array_equal(head_of(tmp_path / "tuned" / "0"), head_of(output))


def stored(folder):
    """Returns the rows of a head in float32, and whether they are stored in bfloat16."""
    with HeadFiles(open_checkpoint(folder)) as files:
        return np.concatenate([part.copy() for part in files.rows("weight", 0, CLASSES)]), (
            files.dtype("weight") == BFLOAT16
        )


def test_rows_in_bfloat16_are_resumed_divided_converted_and_merged(places, tmp_path):
    settings = {"sub_centers": 3, "head_dtype": "bfloat16", "label_smoothing": 0.1, "sample_ratio": 0.5}
    settings = {**settings, "lr_steps": [100]}
    entry(places / "data", tmp_path / "whole", **settings, train_epochs=2).train()
    entry(places / "data", tmp_path / "parts", **settings).train()
    entry(places / "data", tmp_path / "parts", **settings, train_epochs=2, resume=True).train()
    low, file = tmp_path / "whole" / "1", head_file(0)
    assert (tmp_path / "parts" / "1" / file).read_bytes() == (low / file).read_bytes()
    convert(low, tmp_path / "wide", 2, "float32")
    convert(tmp_path / "wide", tmp_path / "back", 1, "bfloat16")
    assert (tmp_path / "back" / file).read_bytes() == (low / file).read_bytes()
    (rows, is_low), (same, is_wide_low) = stored(low), stored(tmp_path / "wide")
    np.testing.assert_array_equal(rows, same)
    assert rows.shape == (CLASSES, 3, 16) and (is_low, is_wide_low) == (True, False)
    assert cli.main(["merge-sub-centers", str(low), str(places / "data"), str(tmp_path / "merged")]) == 0
    kept, is_low = stored(tmp_path / "merged")
    assert is_low and (kept[:, None] == rows).all(axis=2).any(axis=1).all()


def test_what_cannot_be_merged_is_refused_in_one_line(places, glyphs, tmp_path, capsys):
    three, one, data = (str(places / name) for name in ("split", "one/0", "data"))
    other = str(write_set(tmp_path / "other", glyphs, [1, 9]))
    more = str(write_set(tmp_path / "more", glyphs, range(7), named=False))
    new = str(tmp_path / "new")
    for words, problem in (
        (["merge-sub-centers", one, data, new], "one centre for each class already"),
        (["merge-sub-centers", three, other, new], "knows no class"),
        (["merge-sub-centers", three, more, new], "has label 6"),
        (["merge-sub-centers", three, data, str(tmp_path)], "already exists"),
        (["merge-sub-centers", three, data, new, "--drop-beyond", "80"], "give both, the angle and the file"),
        (["add-classes", three, other, new], "has 3 sub-centres for each class.*merge-sub-centers"),
    ):
        assert cli.main(words) != 0
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert re.search(problem, error), error
    assert not (tmp_path / "new").exists()
