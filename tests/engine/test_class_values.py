"""Weights and margins of classes: where they come from, and what is refused before the first step."""

import json

import numpy as np
import pytest

from plsc import Entry
from plsc.engine.build import build_classifier, open_source
from plsc.errors import ConfigError
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


def test_weights_and_margins_follow_the_images_of_each_class(uneven):
    ins = entry_for(uneven)
    ins.set_margin(0.3)
    ins.set_class_weights("balanced", beta=0.9)
    ins.set_class_margins("ldam")
    config = ins._prepare()
    open_source(config).close()
    terms = build_classifier(config).terms
    np.testing.assert_array_equal(terms.class_weights, class_balanced_weights(COUNTS, 0.9))
    np.testing.assert_array_equal(terms.class_margins, ldam_margins(COUNTS, 0.3))
    assert terms.class_margins[[0, 1, 3]].tolist() == pytest.approx([0.3 / 4**0.25, 0.3 / 2**0.25, 0.3])


def test_each_of_several_heads_has_the_weights_of_its_classes(glyphs, uneven):
    ins = entry_for(uneven)
    ins.set_dataset_dir([str(glyphs), str(uneven)], heads="separate")
    ins.set_class_num("auto")
    ins.set_class_weights("balanced")
    config = ins._prepare()
    open_source(config).close()
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
        open_source(ins._prepare())


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
