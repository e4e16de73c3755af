"""Centres of classes that a trained head has under other numbers, or does not have at all."""

import logging

import numpy as np
import paddle
import pytest
from glyph_sets import write_set
from safetensors.numpy import load_file
from train_glyphs import TinyNet

from plsc import Entry
from plsc.checkpoint import head_file
from plsc.checkpoint.convert import convert
from plsc.engine.new_centres import choose_images
from plsc.errors import CheckpointError, ConfigError, DataError
from plsc.metrics.vectors import unit_rows

OLD, NEW = [5, 2, 9, 0, 11, 3, 7], [3, 1, 11, 8, 0, 5]  # characters in the order of their numbers
KEPT = {0: 5, 2: 4, 4: 3, 5: 0}  # numbers of the characters that both have


def small(data, save_dir=None, epochs=1, **settings):
    settings = {"val_targets": "glyphs", "log_period": 1, "num_classes": "auto", "lr": 1e-30, **settings}
    settings = {"augmentation": {"mirror": False}, "train_epochs": epochs, **settings}
    settings = {"image_shape": [3, 32, 32], "emb_dim": 16, "train_batch_size": 16, "with_test": False, **settings}
    ins = Entry(settings={"dataset_dir": data if isinstance(data, dict) else str(data), **settings})
    paddle.seed(0)
    ins.set_model(TinyNet(norm=False))
    ins.set_model_save_dir(None if save_dir is None else str(save_dir))
    return ins


def head_of(folder, ranks=1, name="weight"):
    return np.concatenate([load_file(folder / head_file(rank))[name] for rank in range(ranks)])


@pytest.fixture(scope="module")
def places(glyphs, tmp_path_factory):
    """The data sets, and checkpoints of the first of them, by loss; `dist_arcface` also without names."""
    base = tmp_path_factory.mktemp("named")
    write_set(base / "old", glyphs, OLD)
    write_set(base / "new", glyphs, NEW)
    write_set(base / "numbers", glyphs, OLD, named=False)
    for loss in ("dist_arcface", "dist_softmax"):
        small(base / "old", base / loss, lr=0.5, loss_type=loss).train()
    small(base / "numbers", base / "nameless", lr=0.5).train()
    return base


@pytest.fixture(scope="module")
def directions(places, glyphs):
    """The directions of the mean embeddings of the new classes, by the loss of the network."""
    found = {}
    for loss in ("dist_arcface", "dist_softmax"):
        ins = small(places / "new", checkpoint_dir=str(places / loss / "0"))
        images = unit_rows(ins.predict(str(glyphs / "label.txt"))).reshape(12, 8, 16)
        found[loss] = unit_rows(images.sum(axis=1))[NEW]
    return found


@pytest.mark.parametrize("loss", ["dist_arcface", "dist_softmax"])
def test_centres_of_names_that_both_have_are_taken_and_the_others_are_new(loss, places, directions, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    convert(places / loss / "0", tmp_path / "three", 3)
    for init in ("fresh", "by-name", "from-embeddings"):
        again = {"checkpoint_dir": str(tmp_path / "three"), "head_init": init, "loss_type": loss}
        small(places / "new", tmp_path / init, **again).train()
    assert "4 classes loaded by name, 4 of which have another number now; 2 are fresh; 3 of the che" in caplog.text
    fresh, by_name, embedded = (head_of(tmp_path / one / "0") for one in ("fresh", "by-name", "from-embeddings"))
    old, others = head_of(places / loss / "0"), [1, 3]
    for found in (by_name, embedded):
        np.testing.assert_array_equal(found[list(KEPT)], old[list(KEPT.values())])
    np.testing.assert_array_equal(by_name[others], fresh[others])
    length = np.median(np.linalg.norm(old, axis=1))
    np.testing.assert_allclose(embedded[others], directions[loss][others] * length, rtol=1e-4, atol=1e-5)
    if loss == "dist_softmax":
        fresh, by_name, embedded = (
            head_of(tmp_path / one / "0", name="bias") for one in ("fresh", "by-name", "from-embeddings")
        )
        old = head_of(places / loss / "0", name="bias")
        assert np.any(old)
        np.testing.assert_array_equal(by_name[list(KEPT)], old[list(KEPT.values())])
        np.testing.assert_allclose(by_name[others], fresh[others], atol=1e-30)  # a rate of 1e-30 moves zeros
        np.testing.assert_allclose(embedded[others], old.mean(), rtol=1e-5)


def test_ranks_share_the_images_and_each_sets_its_own_centres(places, directions, ranks, tmp_path):
    given = (f"checkpoint_dir={places}/dist_arcface/0", "head_init=from-embeddings", "lr=1e-30", "with_test=false")
    ranks("train_glyphs.py", 3, places / "new", tmp_path, *given, "class_num=6", "train_epochs=1", "--no-norm")
    found, old = head_of(tmp_path / "0", 3), head_of(places / "dist_arcface" / "0")
    np.testing.assert_array_equal(found[list(KEPT)], old[list(KEPT.values())])
    np.testing.assert_allclose(unit_rows(found)[[1, 3]], directions["dist_arcface"][[1, 3]], atol=1e-4)


def test_a_rank_that_has_only_its_own_images_embeds_those(places, directions, base64_glyphs, ranks, tmp_path):
    given = (f"checkpoint_dir={places}/dist_arcface/0", "head_init=from-embeddings", "lr=1e-30", "with_test=false")
    ranks("train_glyphs.py", 2, base64_glyphs, tmp_path, *given, "train_epochs=1", "--no-norm")
    np.testing.assert_allclose(unit_rows(head_of(tmp_path / "0", 2))[NEW], directions["dist_arcface"], atol=1e-4)


def test_a_resumed_run_keeps_its_centres_and_repeats_the_one_that_was_not_stopped(places, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    again = {"checkpoint_dir": str(places / "dist_arcface" / "0"), "head_init": "from-embeddings", "lr": 0.1}
    small(places / "new", tmp_path / "whole", epochs=2, **again).train()
    small(places / "new", tmp_path / "parts", **again).train()
    assert caplog.text.count("begin at the mean embeddings of up to") == 2
    small(places / "new", tmp_path / "parts", epochs=2, resume=True, **again).train()
    assert caplog.text.count("begin at the mean embeddings of up to") == 2
    for name in (head_file(0), "backbone.safetensors"):
        assert (tmp_path / "whole/1" / name).read_bytes() == (tmp_path / "parts/1" / name).read_bytes()


def test_separate_heads_take_the_centres_of_their_data_set_in_any_order(glyphs, tmp_path):
    sets = {"first": [5, 2, 9], "second": [0, 2, 3], "third": [7, 1]}
    folders = {name: str(write_set(tmp_path / name, glyphs, classes)) for name, classes in sets.items()}
    two = {"directory": [folders["first"], folders["second"]], "heads": "separate"}
    small(two, tmp_path / "old", lr=0.5).train()
    three = {"directory": [folders["third"], folders["second"], folders["first"]], "heads": "separate"}
    again = {"checkpoint_dir": str(tmp_path / "old" / "0"), "head_init": "from-embeddings"}
    small(three, tmp_path / "new", **again).train()
    found = [load_file(tmp_path / "new" / "0" / head_file(number))["weight"] for number in range(3)]
    old = [load_file(tmp_path / "old" / "0" / head_file(number))["weight"] for number in range(2)]
    np.testing.assert_array_equal(found[2], old[0])
    np.testing.assert_array_equal(found[1], old[1])
    length = np.median(np.linalg.norm(np.concatenate(old), axis=1))
    np.testing.assert_allclose(np.linalg.norm(found[0], axis=1), length, rtol=1e-5)


def test_centres_that_nothing_says_anything_about_have_the_length_of_fresh_ones(places, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    paddle.save(TinyNet(False).state_dict(), str(tmp_path / "net.pdparams"))
    ins = small(places / "new", tmp_path / "run", head_init="from-embeddings")
    ins.set_pretrained(tmp_path / "net.pdparams")
    ins.train()
    np.testing.assert_allclose(np.linalg.norm(head_of(tmp_path / "run" / "0"), axis=1), 0.04, rtol=1e-5)
    again = {"checkpoint_dir": str(places / "nameless" / "0"), "head_init": "from-embeddings"}
    small(places / "new", **again).train()
    assert "records no class names, by which centres could be taken over; head: 0 classes loaded" in caplog.text


def test_what_names_cannot_tell_ends_the_run_with_one_line(places, glyphs, tmp_path):
    write_set(tmp_path / "other", glyphs, [1, 8])
    named, nameless = ({"checkpoint_dir": str(places / one / "0")} for one in ("dist_arcface", "nameless"))
    by_name, embeddings = {"head_init": "by-name"}, {"head_init": "from-embeddings"}
    twice = {"class_names": ["a", "b", "c", "a", "d", "e"]}
    for data, settings, kind, words in (
        ("new", by_name, ConfigError, "from a checkpoint, and set_checkpoint_dir names none"),
        ("new", {**nameless, **by_name}, CheckpointError, r"records no class names.*'keep-common'\) takes them by num"),
        ("numbers", {**named, **by_name}, ConfigError, "the data does not name its classes.*set_class_names or a cla"),
        ("new", {**named, **by_name, **twice}, DataError, "the data: the classes 0 and 3 are both called 'a'"),
        (tmp_path / "other", {**named, **by_name}, CheckpointError, "none of the classes that the data names, such as"),
    ):
        with pytest.raises(kind, match=words):
            small(places / data, **settings).train()
    ins = small(places / "new", **named, **embeddings)
    ins.train_reader = lambda: iter([])
    with pytest.raises(ConfigError, match="reads a few images of each class of set_dataset_dir, but train_reader"):
        ins.train()
    ins = Entry(
        settings={"dataset_dir": str(places / "new"), "num_classes": "auto", "model_save_dir": "", **embeddings}
    )
    with pytest.raises(ConfigError, match="needs a trained network, and the network begins at random weights"):
        ins.train()


def test_a_damaged_image_is_left_out_of_its_centre_where_that_is_allowed(places, glyphs, tmp_path, caplog):
    write_set(tmp_path / "set", glyphs, NEW)
    lines = (tmp_path / "set" / "label.txt").read_text().splitlines()
    (tmp_path / "set" / "bad.jpg").write_bytes(b"no image")
    bad = next(k for k, line in enumerate(lines) if line.endswith(" 1"))
    lines[bad] = "bad.jpg 1"
    (tmp_path / "set" / "label.txt").write_text("\n".join(lines) + "\n")
    again = {"checkpoint_dir": str(places / "dist_arcface" / "0"), "head_init": "from-embeddings"}
    with pytest.raises(DataError, match="cannot decode the image"):
        small(tmp_path / "set", **again).train()
    small(tmp_path / "set", skip_damaged=1, **again).train()
    assert "the centre of its class is that of its other images" in caplog.text


def test_at_most_some_images_of_a_class_are_chosen_and_they_are_spread_over_all():
    rng = np.random.default_rng(0)
    for _ in range(50):
        labels = rng.integers(0, 9, rng.integers(0, 60))
        classes = np.sort(rng.choice(12, rng.integers(1, 12), replace=False))
        most = int(rng.integers(1, 6))
        images, places = choose_images(labels, classes, most)
        assert (np.diff(places) >= 0).all() and len(set(images.tolist())) == len(images)
        for place, number in enumerate(classes):
            all_of_class = np.flatnonzero(labels == number)
            chosen = images[places == place]
            assert len(chosen) == min(most, len(all_of_class)) and set(chosen) <= set(all_of_class)
            gaps = np.diff(np.searchsorted(all_of_class, chosen))
            assert not len(gaps) or gaps.max() - gaps.min() <= 1
