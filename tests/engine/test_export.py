import json
import os
import sys

import numpy as np
import paddle
import pytest
from PIL import Image
from ranks import environment

from plsc import Entry, Predictor
from plsc.data.transforms import normalize
from plsc.engine.exporter import export
from plsc.errors import ConfigError, DataError
from plsc.models import build_model
from plsc.models.base_model import BaseModel, build

SHAPE = (3, 32, 32)


class Own(BaseModel):
    """Made as it is run, with other layers in training than in a test."""

    def build_network(self, input, label, is_train):
        from plsc import layers

        x = layers.batch_norm(layers.conv2d(input, 4, 3, stride=2), act="prelu", is_test=not is_train)
        x = layers.dropout(x, 0.5, is_test=not is_train)
        return layers.batch_norm(layers.fc(x, 8), is_test=not is_train)


def trained(model):
    """With statistics that are not those of a fresh network."""
    build(model, SHAPE)
    model.train()
    with paddle.no_grad():
        for _ in range(3):
            model(paddle.randn([8, *SHAPE]) * 0.5 + 0.1)
    return model


def expected(model, images):
    model.eval()
    with paddle.no_grad():
        return model(paddle.to_tensor(images)).numpy()


@pytest.mark.parametrize("name", ["ResNet18", "MobileFaceNet", "own"])
def test_an_export_gives_the_embeddings_of_the_network(tmp_path, name):
    paddle.seed(0)
    model = trained(Own() if name == "own" else build_model(name, 16, SHAPE))
    rng = np.random.default_rng(0)
    for format in ("paddle", "onnx"):
        export(model, tmp_path / format, SHAPE, format)
        predictor = Predictor(tmp_path / format)
        assert predictor.image_shape == SHAPE and predictor.emb_dim == (8 if name == "own" else 16)
        for batch in (1, 3, 64):
            images = rng.normal(size=(batch, *SHAPE)).astype("float32")
            found, wanted = predictor.embed_batch(images), expected(model, images)
            scale = np.abs(wanted).max()
            np.testing.assert_allclose(found, wanted, atol=1e-4 * scale, err_msg=f"{format}, batch {batch}")
    assert not [path for path in (tmp_path / "paddle").iterdir() if path.name.startswith(".")]


@pytest.mark.core
def test_convert_for_prediction_touches_nothing_else(tmp_path):
    ins = Entry()
    ins.set_model(trained(Own()))
    ins.set_emb_size(8)
    ins.set_image_shape(SHAPE)
    ins.set_class_num(5)
    ins.set_train_epochs(1)
    ins.set_with_test(False)
    ins.set_model_save_dir(str(tmp_path))
    rng = np.random.default_rng(0)
    ins.train_reader = [(rng.normal(size=(4, *SHAPE)).astype("float32"), rng.integers(0, 5, 4))]
    with pytest.raises(ConfigError, match=r"convert_for_prediction\(\): there is no trained model"):
        ins.convert_for_prediction()
    ins.train()
    (tmp_path / "mine.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for _ in range(2):  # a second export replaces the first
        assert ins.convert_for_prediction() == tmp_path
    assert all(path.read_bytes() == content for path, content in before.items())
    made = {path.name for path in tmp_path.iterdir()} - {"0", "mine.txt", "metrics.jsonl"}
    assert {name for name in made if not name.startswith(".")} >= {"inference.pdiparams", "inference_meta.json"}
    images = rng.normal(size=(3, *SHAPE)).astype("float32")
    ins.predict_reader = [images]
    np.testing.assert_allclose(Predictor(tmp_path).embed_batch(images), ins.predict(), rtol=1e-4, atol=1e-4)


def test_predictor_takes_images_of_every_kind(tmp_path):
    model = trained(build_model("MobileFaceNet", 16, SHAPE))
    export(model, tmp_path / "net", SHAPE)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    encoded = (tmp_path / "a.png").read_bytes()
    predictor = Predictor(tmp_path / "net", batch_size=2)
    kinds = [tmp_path / "a.png", str(tmp_path / "a.png"), encoded, Image.open(tmp_path / "a.png"), pixels]
    embeddings = predictor.embed(kinds)
    wanted = expected(model, normalize(pixels[None]))
    np.testing.assert_allclose(embeddings, np.repeat(wanted, 5, axis=0), rtol=1e-3, atol=1e-4)
    assert predictor.embed([]).shape == (0, 16)
    cosines = predictor.compare(embeddings[:1], np.stack([embeddings[0], -embeddings[0], np.zeros(16, "float32")]))
    np.testing.assert_allclose(cosines, [[1, -1, 0]], atol=1e-6)
    flipped = Predictor(tmp_path / "net", flip=True).embed([pixels])
    both = wanted + expected(model, normalize(np.ascontiguousarray(pixels[None, :, ::-1])))
    np.testing.assert_allclose(flipped, both / 2, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_predicted_with_is_said(tmp_path):
    with pytest.raises(ConfigError, match="no exported network there"):
        Predictor(tmp_path)
    model = trained(build_model("MobileFaceNet", 16, SHAPE))
    export(model, tmp_path, SHAPE)
    with pytest.raises(DataError, match="nowhere.jpg: cannot be read"):
        Predictor(tmp_path).embed(["nowhere.jpg"])
    with pytest.raises(DataError, match="image 1: cannot decode"):
        Predictor(tmp_path).embed([np.zeros((5, 5, 3), np.uint8), b"no image"])
    os.remove(tmp_path / "inference.pdiparams")
    with pytest.raises(ConfigError, match="inference.pdiparams: cannot be read"):
        Predictor(tmp_path)
    with pytest.raises(ConfigError, match="format 'tflite'"):
        export(model, tmp_path, SHAPE, "tflite")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write there"):
        export(model, tmp_path / "file", SHAPE)


def test_the_commands(ranks, glyphs, tmp_path):
    import subprocess

    script = tmp_path / "train.py"
    script.write_text("from plsc import Entry\nEntry().train()\n")
    small = ["model_name=MobileFaceNet", "num_classes=12", "image_shape=[3, 32, 32]", "emb_dim=16", "train_epochs=1"]
    small += [f"dataset_dir={glyphs}", f"model_save_dir={tmp_path / 'output'}", "val_targets=glyphs"]

    def run(*arguments):
        command = [sys.executable, "-m", "plsc", *map(str, arguments)]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)

    process = run("run", *[part for text in small for part in ("--set", text)], script)
    assert process.returncode == 0, process.stderr[-3000:]
    checkpoint = tmp_path / "output" / "0"
    process = run("test", "--checkpoint", checkpoint, "--dataset", glyphs, "--targets", "glyphs", "--json")
    assert process.returncode == 0, process.stderr[-3000:]
    assert json.loads(process.stdout) == json.loads((checkpoint / "meta.json").read_text())["test"]
    process = run("export", "--checkpoint", checkpoint, "--output", tmp_path / "net", "--format", "onnx")
    assert process.returncode == 0, process.stderr[-3000:]
    assert Predictor(tmp_path / "net").embed([np.zeros((32, 32, 3), np.uint8)]).shape == (1, 16)
    process = run("export", "--checkpoint", tmp_path, "--output", tmp_path / "other")
    assert process.returncode == 1 and "Traceback" not in process.stderr
