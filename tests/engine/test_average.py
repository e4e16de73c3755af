"""The average of weights: its arithmetic, and everything that uses it, from the checkpoint and in the process."""

import argparse
import json
import math
import shutil

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from plsc import Callback, Entry, Predictor, cli
from plsc.commands import trained
from plsc.engine.average import Average
from plsc.errors import CheckpointError, ConfigError
from plsc.models import build_model

SHAPE = (3, 16, 16)
PIXELS = np.random.default_rng(0).integers(0, 256, (24, *SHAPE), dtype=np.uint8)


def state_of(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


class Recorder(Callback):
    """Computes the averages of a run in float64 from the weights after each step, and damages a step if asked to."""

    def __init__(self, decay):
        self.decay, self.updates, self.averages, self.tested = decay, 0, None, None

    def on_train_begin(self, run):
        self.averages = {name: value.astype("float64") for name, value in state_of(run.backbone).items()}

    def on_step_end(self, run):
        if run.last.problem is None:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            self.updates += 1
            for name, value in state_of(run.backbone).items():
                self.averages[name] = decay * self.averages[name] + (1 - decay) * value

    def on_test(self, run, results):
        self.tested = state_of(run.backbone)


def entry(save_dir, *callbacks, bad=None, epochs=2, **settings):
    """An entry that trains GlyphNet, in four steps per epoch, one of which can have images that are not finite."""
    ins = Entry(
        settings={
            "num_classes": 3, "image_shape": list(SHAPE), "emb_dim": 4,
            "train_epochs": epochs, "model_save_dir": str(save_dir), "lr": 1.0, **settings,
        }
    )  # fmt: skip
    ins.set_model_name("GlyphNet")
    batches = [[(PIXELS[i].astype("float32") / 128, i % 3) for i in range(n, n + 6)] for n in range(0, 24, 6)]
    if bad is not None:
        batches[bad] = [(image + np.inf, label) for image, label in batches[bad]]
    ins.train_reader = batches
    ins.test_reader = batches[:1]
    for one in callbacks:
        ins.add_callback(one)
    return ins


def embedded_by(model, values):
    """Returns the embeddings of the images by a GlyphNet with these weights and statistics."""
    model.build(SHAPE)
    model.set_state_dict({name: value.astype("float32") for name, value in values.items()})
    model.eval()
    with paddle.no_grad():
        return model(paddle.to_tensor((PIXELS[:4].astype("float32") - 127.5) / 128)).numpy()


@pytest.mark.core
def test_the_average_is_that_of_the_steps_that_count_and_is_what_is_used(tmp_path, capsys, monkeypatch):
    recorder = Recorder(0.8)
    ins = entry(tmp_path / "run", recorder, bad=2, ema=0.8, seed=1)
    result = ins.train()
    assert result["skipped_steps"] == 2 and recorder.updates == 6
    folder = tmp_path / "run" / "1"
    plain, averages = load_file(folder / "backbone.safetensors"), load_file(folder / "average.safetensors")
    assert averages.keys() == plain.keys() and all(value.dtype == np.float32 for value in averages.values())
    for name, value in averages.items():
        np.testing.assert_allclose(value, recorder.averages[name], rtol=2e-5, atol=1e-6, err_msg=name)
    assert max(abs(averages[name] - plain[name]).max() for name in plain) > 0.01
    assert json.loads((folder / "meta.json").read_text())["average"] == {"decay": 0.8, "updates": 6}
    for name, value in recorder.tested.items():  # After the test the weights are those of training again.
        np.testing.assert_array_equal(value, plain[name], err_msg=name)

    # The test of the epoch, this process after training, and the checkpoint in its own process use the average.
    model = build_model("GlyphNet", 4, SHAPE)
    wanted, others = embedded_by(model, averages), embedded_by(model, plain)
    assert abs(wanted - others).max() > 0.01
    again = entry("", checkpoint_dir=str(folder))
    assert result["test"] == ins.test() == again.test()
    assert again.test() != entry("", checkpoint_dir=[str(folder), "plain"]).test()
    images = [np.moveaxis(image, 0, -1) for image in PIXELS[:4]]
    for weights, expected in (("average", wanted), ("plain", others)):
        np.testing.assert_allclose(Predictor(folder, weights=weights).embed(images), expected, rtol=1e-3, atol=1e-3)
    assert Predictor(folder).digest != Predictor(folder, weights="plain").digest
    ins.predict_reader = [[((image.astype("float32") - 127.5) / 128,) for image in PIXELS[:4]]]
    np.testing.assert_allclose(ins.predict(), wanted, rtol=1e-3, atol=1e-3)
    exported = tmp_path / "exported"
    assert cli.main(["export", "--checkpoint", str(folder), "--output", str(exported)]) == 0
    np.testing.assert_allclose(Predictor(exported).embed(images), wanted, rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match="weights='plain' is for checkpoints"):
        Predictor(exported, weights="plain")

    # Another number of ranks, and a new training, take it too.
    assert cli.main(["convert-checkpoint", str(folder), str(tmp_path / "two"), "--ranks", "2"]) == 0
    np.testing.assert_allclose(Predictor(tmp_path / "two").embed(images), wanted, rtol=1e-3, atol=1e-3)
    capsys.readouterr()
    started = entry("", Recorder(0.0), epochs=1, checkpoint_dir=str(folder), lr=1e-30)
    started.train()
    assert "backbone loaded (the average of its weights)" in capsys.readouterr().err
    np.testing.assert_allclose(state_of(started._backbone)["fc_0.weight"], averages["fc_0.weight"], atol=1e-6)


def test_an_average_does_not_change_what_is_trained(tmp_path):
    for name, decay in (("with", 0.9), ("without", 0)):
        entry(tmp_path / name, epochs=1, ema=decay).train()
    one, other = (load_file(tmp_path / name / "0" / "backbone.safetensors") for name in ("with", "without"))
    assert all(np.array_equal(value, other[name]) for name, value in one.items())
    assert not (tmp_path / "without" / "0" / "average.safetensors").exists()


def test_an_average_of_nothing_resumes_and_begins_once_something_is_trained(tmp_path, capsys):
    for epochs, what in ((1, "head"), (2, "head"), (3, "all")):
        linear = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(math.prod(SHAPE), 4))
        ins = entry(tmp_path, epochs=epochs, ema=0.9, trainable=what, resume=True)
        ins.set_model(linear)
        ins.train()
        folder = tmp_path / str(epochs - 1)
        assert json.loads((folder / "meta.json").read_text())["average"] == {"decay": 0.9, "updates": 4 * epochs}
    assert load_file(folder / "average.safetensors").keys() == {"1.weight", "1.bias"}
    assert "the average of weights begins now" not in capsys.readouterr().err


def test_a_resumed_run_may_begin_end_or_change_its_average(tmp_path, capsys):
    entry(tmp_path / "run", epochs=1, with_test=False).train()
    for folder in ("off", "on"):
        shutil.copytree(tmp_path / "run", tmp_path / folder)

    def resumed(folder, **settings):
        capsys.readouterr()
        entry(folder, resume=True, with_test=False, **settings).train()
        return capsys.readouterr().err

    recorder = Recorder(0.7)
    capsys.readouterr()
    entry(tmp_path / "on", recorder, resume=True, with_test=False, ema=0.7).train()
    text = capsys.readouterr().err
    assert "set_ema: the average of weights begins now; the checkpoint has none" in text and "last bit" not in text
    for name, value in load_file(tmp_path / "on" / "1" / "average.safetensors").items():
        np.testing.assert_allclose(value, recorder.averages[name], rtol=2e-5, atol=1e-6, err_msg=name)
    text = resumed(tmp_path / "on", epochs=3, ema=0.6)
    assert "set_ema: the decay was 0.7 and is 0.6 from here on" in text
    assert json.loads((tmp_path / "on" / "2" / "meta.json").read_text())["average"] == {"decay": 0.6, "updates": 8}
    text = resumed(tmp_path / "on", epochs=4)
    assert "the average of weights in the checkpoint is dropped, because set_ema is not called any more" in text
    assert not (tmp_path / "on" / "3" / "average.safetensors").exists()
    assert "average" not in resumed(tmp_path / "off")


def test_a_damaged_average_is_refused(tmp_path):
    entry(tmp_path, epochs=1, with_test=False, ema=0.9).train()
    folder = tmp_path / "0"
    file, meta = folder / "average.safetensors", folder / "meta.json"
    content, text = file.read_bytes(), meta.read_text()
    for change, message in (
        (lambda: file.write_bytes(content[:-4] + b"\0\0\0\1"), "damaged|changed|checksum"),
        (lambda: file.unlink(), "average.safetensors: "),
        (lambda: meta.write_text(text.replace('"average"', '"averages"')), "it names the file 'average.safetensors'"),
        (lambda: meta.write_text(text.replace('"updates": 4', '"updates": "4"')), "meta.json: damaged"),
    ):
        change()
        with pytest.raises(CheckpointError, match=message):
            Predictor(folder)
        file.write_bytes(content), meta.write_text(text)


def test_parameters_that_are_frozen_are_followed_once_they_are_trained():
    model = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4), paddle.nn.Linear(300, 300))
    model.register_buffer("count", paddle.to_tensor([1.0]))
    model[0].weight.stop_gradient = True
    average = Average(model, 0.5)
    assert average.values().keys() == state_of(model).keys() - {"0.weight"}
    begin = state_of(model)
    for tensor in model.state_dict().values():
        tensor.set_value(tensor + 1.0)
    average.update()
    model[0].weight.stop_gradient = False
    average.follow()
    for tensor in model.state_dict().values():
        tensor.set_value(tensor + 2.0)
    average.update()
    second = 2 / 11
    for name, value in average.values().items():
        first = 1.0 if name == "0.weight" else 0.9
        expected = begin[name] + second * first + (1 - second) * 3.0
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-6, atol=1e-6, err_msg=name)
    kept = state_of(model)
    with average.in_use():
        np.testing.assert_array_equal(model[2].weight.numpy(), average.values()["2.weight"].numpy())
    assert all(np.array_equal(value, kept[name]) for name, value in state_of(model).items())


def test_commands_take_the_average_or_the_plain_weights(tmp_path):
    entry(tmp_path, epochs=1, with_test=False, ema=0.9).train()
    parser = argparse.ArgumentParser()
    trained.add_options(parser, exports=True)
    for words, expected in (([], "average"), (["--weights", "plain"], "plain")):
        options = parser.parse_args(["--model", str(tmp_path / "0"), *words])
        config = trained.prepared_config(options)
        assert (config.checkpoint_dir, config.checkpoint_weights) == (str(tmp_path / "0"), expected)
    with pytest.raises(ConfigError, match="--weights plain is for a checkpoint, and --model is an export"):
        trained.prepared_config(parser.parse_args(["--model", str(tmp_path), "--weights", "plain"]))


@pytest.mark.parametrize("decay", [1, 1.5, -0.1, float("nan"), "0.9", True])
def test_a_decay_that_cannot_work_is_refused(decay):
    with pytest.raises(ConfigError, match=r"set_ema\(.*expected"):
        Entry().set_ema(decay)
