"""What a network takes images for is remembered by its checkpoint and by its export."""

import json
import shutil

import numpy as np
import paddle
import pytest
from made_images import encode

from plsc import Entry, Predictor
from plsc.data.augmentation import Augmentation
from plsc.errors import CheckpointError
from plsc.evaluation.trained import open_network

RULES = ("pixel_rule", "image_ground", "mirror")


SHAPE = (3, 16, 16)


class Flat(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.product = paddle.nn.Linear(3 * 16 * 16, 8)

    def forward(self, images):
        return self.product(images.flatten(1))


def train(glyphs, folder, epochs=1, rule=None):
    ins = Entry()
    ins.set_dataset_dir(str(glyphs))
    ins.set_class_num(12)
    ins.set_image_shape(SHAPE)
    ins.set_model(Flat())
    ins.set_emb_size(8)
    ins.set_train_batch_size(48)
    ins.set_val_targets("glyphs")
    ins.set_model_save_dir(str(folder))
    ins.set_train_epochs(epochs)
    ins.set_resume(epochs > 1)
    if rule is not None:
        ins.set_pixel_rule(rule)
    ins.train()
    return ins


def entry_of(checkpoint):
    """Returns an entry that knows nothing about the images."""
    ins = Entry()
    ins.set_checkpoint_dir(str(checkpoint))
    ins.set_model(Flat())
    ins.set_emb_size(8)
    return ins


@pytest.fixture(scope="module")
def run(glyphs, tmp_path_factory):
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("run")
    train(glyphs, folder)
    return folder


@pytest.fixture
def changed(run, tmp_path):
    """`changed(**entries)` returns a copy of a checkpoint whose meta.json says that; None removes an entry."""

    def copy(**entries):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(run / "0", folder)
        rewrite(folder / "meta.json", entries)
        return folder

    return copy


def rewrite(path, entries):
    record = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))


def test_checkpoints_and_run_records_say_how_images_are_read(run):
    wanted = {"pixel_rule": 2, "image_ground": [255, 255, 255], "mirror": True, "image_shape": [3, 16, 16]}
    record = json.loads((run / "0" / "meta.json").read_text())
    assert {name: record[name] for name in wanted} == wanted
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert (settings["pixel_rule"], settings["image_ground"]) == (2, [255, 255, 255])


def test_a_checkpoint_brings_its_images_along_unless_the_user_says_otherwise(changed):
    folder = changed(mirror=False, image_ground=[9, 8, 7])
    found = open_network("test", entry_of(folder)._config)[1]
    assert found.image_shape == SHAPE and found.augmentation == Augmentation(mirror=False)
    assert (found.pixels.number, found.pixels.ground) == (2, (9, 8, 7))
    ins = entry_of(folder)
    ins.set_augmentation(mirror=True)
    ins.set_image_ground((1, 2, 3))
    ins.set_pixel_rule(1)
    found = open_network("test", ins._config)[1]
    assert found.augmentation.mirror and (found.pixels.number, found.pixels.ground) == (1, (1, 2, 3))


def test_an_old_checkpoint_keeps_the_rule_of_its_time(changed, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "clear.png").write_bytes(encode(pixels))
    (tmp_path / "images" / "opaque.png").write_bytes(encode(np.ascontiguousarray(pixels[..., :3])))
    old = entry_of(changed(**dict.fromkeys(RULES)))
    embeddings = old.predict(tmp_path / "images", tmp_path / "embeddings")
    assert np.array_equal(*embeddings)  # The first rule ignores alpha.
    assert "pixel_rule" not in json.loads((tmp_path / "embeddings" / "manifest.json").read_text())
    old.set_model_save_dir(str(tmp_path / "net"))
    old.convert_for_prediction()
    manifest = tmp_path / "net" / "inference_meta.json"
    assert json.loads(manifest.read_text())["pixel_rule"] == 1
    for entries in ({}, dict.fromkeys(RULES)):
        rewrite(manifest, entries)
        found = Predictor(tmp_path / "net").embed([tmp_path / "images" / "clear.png"])
        assert np.allclose(found, embeddings[:1], atol=1e-4)
    new = entry_of(changed()).predict(tmp_path / "images")
    assert np.allclose(new[1], embeddings[1], atol=1e-4) and not np.allclose(new[0], new[1], atol=1e-2)


@pytest.mark.parametrize("entries", [{"pixel_rule": 3}, {"image_ground": [0, 0, 256]}, {"mirror": "no"}])
def test_a_record_that_cannot_be_is_refused(changed, entries):
    with pytest.raises(CheckpointError, match="meta.json"):
        open_network("test", entry_of(changed(**entries))._config)


def test_a_resumed_run_keeps_its_rule(glyphs, tmp_path, monkeypatch, caplog):
    from plsc.data import loader

    decode, used = loader.decode, set()
    monkeypatch.setattr(loader, "decode", lambda *given: used.add(given[3].number) or decode(*given))

    def rule_of(epochs, rule=None):
        used.clear(), caplog.clear()
        ins = train(glyphs, tmp_path, epochs, rule)
        recorded = json.loads((tmp_path / str(epochs - 1) / "meta.json").read_text())["pixel_rule"]
        assert json.loads((tmp_path / "run.json").read_text())["settings"]["pixel_rule"] == recorded
        assert ins._config.pixel_rule == recorded and used == {recorded}
        return recorded

    assert rule_of(1) == 2
    rewrite(tmp_path / "0" / "meta.json", dict.fromkeys(RULES))
    assert rule_of(2) == 1 and "images are read by pixel rule 1" in caplog.text
    assert rule_of(3, 2) == 2 and "the pixel rule was 1 and is 2 now" in caplog.text
