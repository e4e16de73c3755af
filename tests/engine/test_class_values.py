"""Weights and margins of classes: where they come from, and what is refused before the first step."""

import contextlib
import json
import re

import numpy as np
import pytest

from plsc import Entry
from plsc.engine.build import build_classifier, open_source
from plsc.engine.class_values import find_class_values
from plsc.errors import ConfigError
from plsc.heads.margins import AngularMargin
from plsc.heads.terms import class_balanced_weights, ldam_margins


@pytest.fixture
def uneven(glyphs, tmp_path):
    """A set of 12 classes, of which class 0 has 8 images, class 1 has 4, class 2 none, and all others 2."""
    wanted, lines = {0: 8, 1: 4, 2: 0}, []
    for line in (glyphs / "label.txt").read_text().splitlines():
        label = int(line.rsplit(" ", 1)[1])
        wanted[label] = wanted.get(label, 2) - 1
        if wanted[label] >= 0:
            lines.append(f"{line}\n")
    folder = tmp_path / "uneven"
    folder.mkdir()
    (folder / "images").symlink_to(glyphs / "images")
    (folder / "label.txt").write_text("".join(lines))
    return folder


COUNTS = np.array([8, 4, 0, *[2] * 9])


def entry_for(folder, classes=12):
    ins = Entry()
    ins.set_dataset_dir(str(folder))
    ins.set_class_num(classes)
    ins.set_loss_type("dist_cosface")
    ins.set_emb_size(8)
    return ins


def prepared(ins):
    """Returns the settings with the numbers of all classes."""
    config = ins._prepare()
    with contextlib.closing(open_source(config)) as source:
        find_class_values(config, source)
    return config


def test_weights_and_margins_follow_the_images_of_each_class(uneven):
    ins = entry_for(uneven)
    ins.set_margin(0.3)
    ins.set_class_weights("balanced", beta=0.9)
    ins.set_class_margins("ldam")
    config = prepared(ins)
    terms = build_classifier(config).terms
    np.testing.assert_array_equal(terms.class_weights, class_balanced_weights(COUNTS, 0.9))
    np.testing.assert_array_equal(terms.class_margins, ldam_margins(COUNTS, 0.3))
    assert terms.class_margins[[0, 1, 3]].tolist() == pytest.approx([0.3 / 4**0.25, 0.3 / 2**0.25, 0.3])


def test_each_of_several_heads_has_the_weights_of_its_classes(glyphs, uneven):
    ins = entry_for(uneven)
    ins.set_dataset_dir([str(glyphs), str(uneven)], heads="separate")
    ins.set_class_num("auto")
    ins.set_class_weights("balanced")
    config = prepared(ins)
    of_heads = [part.head.terms.class_weights for part in build_classifier(config).parts]
    wanted = [class_balanced_weights(counts, 0.9999) for counts in (np.full(12, 8), COUNTS)]
    for found, expected in zip(of_heads, wanted):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("setter", ["set_class_weights", "set_class_margins"])
def test_numbers_that_are_not_as_many_as_the_classes_are_refused(uneven, tmp_path, setter):
    numbers = tmp_path / "numbers.txt"
    numbers.write_text("0.5\n0.25\n1\n")
    ins = entry_for(uneven)
    getattr(ins, setter)(str(numbers))
    with pytest.raises(ConfigError, match=f"{setter} gives 3 numbers, and there are 12 classes"):
        prepared(ins)


def test_a_run_records_what_changes_its_loss(uneven, tmp_path):
    ins = entry_for(uneven)
    ins.set_model_save_dir(str(tmp_path / "run"))
    ins.set_model_name("GlyphNet")
    ins.set_image_shape((3, 32, 32))
    ins.set_train_epochs(1)
    ins.set_with_test(False)
    ins.set_class_weights("balanced")
    ins.set_class_margins([0.1] * 12)
    ins.set_label_smoothing(0.1)
    ins.set_interclass_filter(0.4)
    assert np.isfinite(ins.train()["loss"])
    words = json.loads((tmp_path / "run" / "0" / "meta.json").read_text())["loss_terms"]
    assert words.startswith("class margins given ") and words.endswith(
        "; class weights balanced, beta 0.9999; label smoothing 0.1; inter-class filter 0.4"
    )
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["class_weights"] == {"rule": "balanced", "beta": 0.9999, "digest": ""}


def test_a_resumed_run_warns_of_another_loss(uneven, tmp_path, capsys):
    def warning(epochs, resume=True, loss=None, **settings):
        shared = {"emb_dim": 8, "with_test": False, "model_name": "GlyphNet", "image_shape": [3, 32, 32]}
        shared |= {"train_epochs": epochs, "resume": resume, "num_classes": 12, "dataset_dir": str(uneven)}
        capsys.readouterr()
        ins = Entry(settings={**shared, "model_save_dir": str(tmp_path / "run"), **settings})
        if loss is not None:
            ins.set_loss_type(loss)
        ins.train()
        return re.findall("to the last bit: (.*)", "".join(capsys.readouterr()))

    assert warning(1, resume=False, margin=0.3) == warning(2, margin=0.3) == []
    assert warning(3, margin=0.2) == ["the margin was 0.3 with scale 64 and is 0.2 with scale 64 now"]
    said = warning(4, margin=0.2, scale=32.0, sample_ratio=0.5, gradient_clip=1.0)[0]
    assert "is 0.2 with scale 32 now; the share of the classes in a step was 1.0 and is 0.5 now; the norm to" in said
    said = warning(5, loss=AngularMargin(m2=0.2))[0]
    assert "the margin was 0.2 with scale 32 and is AngularMargin(m1=1.0, m2=0.2, m3=0.0) with scale 64 now" in said
