"""Custom models and custom readers."""

import contextlib
import json
import logging
import random

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from plsc import BaseModel, Callback, Entry
from plsc.checkpoint import BACKBONE
from plsc.errors import ConfigError, DataError
from plsc.inference.networks import embed_batch
from plsc.models import build
from plsc.utils import jpeg_reader


def entry(model, output=None, emb_size=8):
    ins = Entry()
    ins.set_model(model)
    ins.set_class_num(5)
    ins.set_image_shape((3, 32, 32))
    ins.set_emb_size(emb_size)
    ins.set_train_epochs(1)
    ins.set_train_image_num(16)
    ins.set_model_save_dir(str(output) if output else None)
    ins.set_with_test(False)
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(8, 3, 32, 32)).astype("float32"), rng.integers(0, 5, 8)) for _ in range(2)]
    ins.train_reader = batches
    return ins


def plain(emb_size=8):
    return paddle.nn.Sequential(
        paddle.nn.Conv2D(3, 4, 3, stride=4), paddle.nn.ReLU(), paddle.nn.Flatten(), paddle.nn.Linear(256, emb_size)
    )


@pytest.mark.core
def test_readers_on_two_ranks(ranks, tmp_path):
    process = ranks("train_readers.py", 2, tmp_path)

    said = process.stderr.split("now training on")
    assert [("same first batch" in part) for part in said[1:]] == [True, False, False]
    assert "plsc.shard_reader(reader)" in process.stderr
    found = [dict(np.load(tmp_path / f"rank_{rank}.npz")) for rank in range(2)]
    assert [one.pop("moved when the bias is frozen").tolist() for one in found] == [[False, True]] * 2
    weights = [one.pop("weight") for one in found]
    np.testing.assert_array_equal(*weights)
    assert [str(one.pop("broken")) for one in found] == ["the reader of rank 1 is broken"] * 2
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value, err_msg=name)
        if name.startswith("test"):
            # The readers group the images differently, and a product of another size may be rounded differently.
            np.testing.assert_allclose(value, found[0]["test same"], rtol=1e-7, err_msg=name)
        else:
            np.testing.assert_allclose(value, found[0]["alone"], atol=1e-5, err_msg=name)


@pytest.mark.core
def test_a_plain_layer_trains_and_keeps_its_names(tmp_path):
    model = plain()
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    entry(model, tmp_path).train()
    saved = load_file(tmp_path / "0" / BACKBONE)
    assert saved.keys() == before.keys()
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(saved[name], value.numpy())
        assert not np.array_equal(before[name], saved[name]), name
    again = entry(plain())
    again.set_checkpoint_dir(str(tmp_path / "0"))
    again.predict_reader = [np.ones((2, 3, 32, 32), "float32")]
    np.testing.assert_allclose(again.predict(), model(paddle.ones([2, 3, 32, 32])).numpy(), rtol=1e-5)


def test_a_network_of_paddle_vision_works_as_a_backbone(tmp_path):
    result = entry(paddle.vision.models.mobilenet_v3_small(scale=0.35, num_classes=8), tmp_path).train()
    assert np.isfinite(result["loss"]) and "classifier.3.weight" in load_file(tmp_path / "0" / BACKBONE)


class Detached(BaseModel):
    """A network whose first layer is cut off, unless told otherwise."""

    def __init__(self, is_cut=True):
        super().__init__()
        self.first, self.last, self.is_cut = paddle.nn.Conv2D(3, 2, 3, 4), paddle.nn.Linear(2 * 8 * 8, 8), is_cut

    def build_network(self, input, label, is_train):
        x = self.first(input).flatten(1)
        return self.last(x.detach() if self.is_cut else x)


def test_a_part_that_gets_no_gradient_is_named(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plsc"), "propagate", True)
    with caplog.at_level(logging.WARNING, "plsc"):
        entry(Detached(is_cut=False)).train()
        assert "no gradient" not in caplog.text
        entry(Detached()).train()
    assert "Detached: first.weight, first.bias got no gradient in the first step" in caplog.text


class AsksForGradients(BaseModel):
    """A network that uses a gradient of its own, inside `enable_grad` or not."""

    def __init__(self, context=contextlib.nullcontext):
        super().__init__()
        self.layer, self.context = paddle.nn.Linear(3 * 32 * 32, 8), context

    def build_network(self, input, label, is_train):
        with self.context():
            x = input.flatten(1)
            x.stop_gradient = False
            y = self.layer(x)
            return y + paddle.grad(y.sum(), x, retain_graph=True)[0].mean()


def test_gradients_inside_a_forward_need_enable_grad():
    assert build(AsksForGradients(paddle.enable_grad), (3, 32, 32)) == 8
    with pytest.raises(ConfigError, match="AsksForGradients: its forward asks for gradients.*enable_grad"):
        build(AsksForGradients(), (3, 32, 32))


def test_frozen_parts_stay_and_parameter_groups_move_at_their_own_rate():
    model = plain()
    for parameter in model[0].parameters():
        parameter.stop_gradient = True
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    ins = entry(model)
    kinds = {}

    def optimizer(parameters):
        own = [one for one in parameters if any(one is other for other in model.parameters())]
        head = [one for one in parameters if not any(one is other for other in model.parameters())]
        kinds.update(own=len(own), head=len(head))
        groups = [{"params": own, "learning_rate": 0.0}, {"params": head}]
        return paddle.optimizer.Momentum(0.1, parameters=groups)

    ins.set_optimizer(optimizer)
    assert np.isfinite(ins.train()["loss"])
    assert kinds == {"own": 2, "head": 1}, "the frozen convolution is not for the optimizer"
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (paddle.nn.Conv2D(3, 4, 3), r"Conv2D.forward: expected embeddings \[2, D\] for 2 images, got \[2, 4, 30, 30\]"),
        (plain(16), r"set_emb_size\(8\), but Sequential returns embeddings of size 16"),
    ],
)
def test_an_embedding_of_the_wrong_shape_is_refused_before_the_first_step(model, words):
    with pytest.raises(ConfigError, match=words):
        entry(model).train()


def test_what_is_not_a_model_is_refused():
    for value, words in ((paddle.nn.Linear, "the class Linear"), (print, "builtin_function")):
        with pytest.raises(ConfigError, match=words):
            Entry().set_model(value)


class Seen(Callback):
    """A callback that keeps what it sees: the learning rates, and the steps of an epoch as they are known at each."""

    def __init__(self):
        self.rates, self.steps_per_epoch = [], []

    def on_step_end(self, run):
        self.rates.append(run.last.lr)
        self.steps_per_epoch.append(run.steps_per_epoch)


def unknown_length(**settings):
    """Returns an entry whose reader has 2 batches of 8 images and cannot tell it, and what a callback sees of it."""
    ins, seen = entry(plain()), Seen()
    batches = ins.train_reader
    ins._config.train_image_num = None
    ins.train_reader = lambda: iter(batches)
    ins.set_train_batch_size(8)
    ins.set_train_epochs(3)
    ins.add_callback(seen)
    for name, value in settings.items():
        getattr(ins, f"set_{name}")(value)
    return ins, seen


def test_warm_up_in_epochs_needs_a_known_number_of_steps():
    ins, _ = unknown_length(warmup_epochs=1)
    with pytest.raises(ConfigError, match=r"set_warmup_epochs\(1\): train_reader cannot tell.*set_train_image_num"):
        ins.train()
    ins, seen = unknown_length(warmup_epochs=2, train_image_num=16)
    ins.train()
    np.testing.assert_allclose(np.array(seen.rates) * 1024 / 0.8, [0.25, 0.5, 0.75, 1, 1, 1])
    ins, _ = unknown_length(warmup_epochs=1, optimizer=lambda parameters: paddle.optimizer.SGD(parameters=parameters))
    ins.train()


def test_the_first_epoch_counts_the_steps_and_a_resumed_run_knows_them(tmp_path):
    ins, seen = unknown_length(model_save_dir=str(tmp_path))
    ins.train()
    assert seen.steps_per_epoch == [None, None, 2, 2, 2, 2]
    assert [json.loads((tmp_path / name / "meta.json").read_text())["steps_per_epoch"] for name in "012"] == [2, 2, 2]
    ins, seen = unknown_length(model_save_dir=str(tmp_path), train_epochs=4, resume=True)
    ins.train()
    assert seen.steps_per_epoch == [2, 2]


@pytest.mark.parametrize(
    ("known", "settings", "words"),
    [
        (False, {}, None),
        (False, {"train_image_num": 16}, None),
        (False, {"train_image_num": 17}, "set_train_image_num(17), but train_reader gave 16 images in an epoch"),
        (False, {"train_image_num": 16, "train_batch_size": 4}, "make 4 steps in an epoch, but train_reader gave 2"),
        (True, {"train_image_num": 16, "train_batch_size": 4}, None),
        (True, {"train_image_num": 1000}, "set_train_image_num(1000), but train_reader gave 16 images in an epoch"),
    ],
)
def test_a_number_of_images_that_is_not_the_one_of_an_epoch_gives_one_warning(known, settings, words, capsys):
    ins, _ = unknown_length(**settings)
    if known:
        ins.train_reader = list(ins.train_reader())
    ins.train()
    said = [line for line in capsys.readouterr().err.splitlines() if "set_train_image_num" in line]
    assert len(said) == (words is not None) and all(words in line for line in said)


def test_a_number_of_images_that_the_data_itself_knows_is_ignored_with_a_warning(capsys):
    class Samples(paddle.io.Dataset):
        def __getitem__(self, i):
            return np.full([3, 32, 32], i, np.float32), i

        def __len__(self):
            return 5

    for number, warns in ((5, False), (6, True)):
        ins, _ = unknown_length(train_image_num=number)
        ins.train_reader = Samples()
        ins.train()
        said = capsys.readouterr().err
        assert ("set_train_image_num(6) is ignored, because the training data has 5 images" in said) == warns


class FailsOnce:
    """A test reader that fails at its second test; the call before the first one is the check before training."""

    def __init__(self, batches, error):
        self.batches, self.error, self.calls = batches, error, 0

    def __call__(self):
        self.calls += 1
        if self.calls == 3 and self.error is not None:
            raise self.error
        return iter(self.batches)


class CountsTests(Callback):
    """A callback with a state, which fails at its second test if it is asked to."""

    def __init__(self, fails=False):
        self.tests, self.fails = 0, fails

    def on_test(self, run, results):
        self.tests += 1
        if self.fails and self.tests == 2:
            raise ZeroDivisionError

    def state(self):
        return {"tests": self.tests}

    def load_state(self, state):
        self.tests = state["tests"]


@pytest.mark.parametrize(
    "error, callback", [(DataError("no images today"), False), (OSError("lost"), False), (None, True)]
)
def test_a_test_that_fails_costs_no_epoch_and_is_repeated_by_the_resumed_run(error, callback, tmp_path, capsys):
    def run(folder, error, fails, **options):
        paddle.seed(1)
        ins = entry(paddle.nn.Sequential(plain(), paddle.nn.BatchNorm1D(8)), tmp_path / folder)
        ins.set_train_epochs(3)
        ins.set_with_test(True)
        ins.set_log_period(3)  # a period that ends in the middle of an epoch
        ins.test_reader = FailsOnce(list(ins.train_reader), error)
        ins.add_callback(CountsTests(fails))
        ins.set_resume(options.pop("resume", False))
        return ins.train()

    whole = run("whole", None, False)
    with pytest.raises(type(error) if error else ZeroDivisionError):
        run("failed", error, callback)
    assert f"the test of epoch 1 failed, and the epoch was saved to {tmp_path}/failed/1" in capsys.readouterr().err
    resumed = run("failed", None, False, resume=True)
    assert resumed["test"] == whole["test"] and resumed["steps"] == whole["steps"] == 6
    for epoch in ("0", "1", "2"):
        found, wanted = (load_file(tmp_path / name / epoch / BACKBONE) for name in ("failed", "whole"))
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value)
        found, wanted = (
            json.loads((tmp_path / name / epoch / "meta.json").read_text()) for name in ("failed", "whole")
        )
        for key in ("epoch", "step", "callbacks", "test", "schedule"):
            assert found[key] == wanted[key], key
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("failed", "whole")
    ]
    for record in (one for every in lines for one in every):
        for name in list(record):
            if "time" in name or "second" in name or "bytes" in name:
                record.pop(name)
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        ([], "gave no batch"),
        (lambda: iter([]), "gave no batch"),
        ([(np.zeros((4, 3, 16, 16), np.float32), [0, 0, 1, 1])], "image has shape"),
        (lambda: iter([(np.zeros((4, 3, 16, 16), np.float32), [0, 0, 1, 1])]), "image has shape"),
        ([(np.zeros((4, 3, 32, 32), np.float32), np.zeros(4))], "labels float64"),
        ([(np.zeros((4, 3, 32, 32), np.float32), [0, 1, 2, 3])], "test_reader: .* do not give pairs of both kinds"),
        ([(np.zeros((4, 3, 32, 32), np.float32), [0, 0, 0, 0])], "test_reader: .* do not give pairs of both kinds"),
        ([(np.zeros((2, 3, 32, 32), np.float32), [0, 0])] * 2 + [([1], [2])], "batch 2"),
    ],
)
def test_a_test_reader_that_cannot_work_is_refused_before_the_first_step(reader, words):
    ins = entry(plain())
    ins.set_with_test(True)
    ins.test_reader = reader

    class NoStep(Callback):
        def on_step_end(self, run):
            raise AssertionError("a step was trained")

    ins.add_callback(NoStep())
    with pytest.raises(DataError, match=words):
        ins.train()


def test_the_check_of_a_test_reader_leaves_the_random_numbers_of_training_alone():
    def drawn():
        yield np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype("float32"), [0, 0, 1, 1]
        np.random.random(7), random.random()

    losses = []
    for reader in (drawn, lambda: iter(list(drawn()))):
        ins, train = entry(plain()), drawn
        ins.set_with_test(True)
        ins.test_reader = reader
        ins.train_reader = lambda train=train: (
            (images + np.float32(np.random.random()), labels) for images, labels in train()
        )
        paddle.seed(1)
        ins.set_model(plain())
        losses.append(ins.train()["loss"])
    assert losses[0] == losses[1]


def test_test_reader_takes_what_the_jpeg_reader_gives(glyphs):
    ins = entry(plain())
    ins.set_dataset_dir(str(glyphs))
    ins.set_val_targets("glyphs")
    ins.train()
    expected = ins.test()
    ins.test_reader = jpeg_reader.test(str(glyphs), "glyphs", image_shape=(3, 32, 32))
    assert ins.test() == expected and set(expected) == {"glyphs"}


def test_nothing_to_predict_and_a_label_out_of_range_are_reported():
    ins = entry(plain())
    with pytest.raises(ConfigError, match=r"predict\(\): there is no trained model"):
        ins.predict()
    ins.train()
    with pytest.raises(ConfigError, match="assign predict_reader"):
        ins.predict()
    ins.set_class_num(2)
    with pytest.raises(DataError, match=r"train_reader, epoch 0, batch 0, sample \d: label \d is outside \[0, 2\)"):
        ins.train()


class Halves(paddle.nn.Layer):
    """Returns one embedding for two images if there are more than two, which the dry run has."""

    def __init__(self):
        super().__init__()
        self.inner = plain()

    def forward(self, images):
        found = self.inner(images)
        return found if len(found) == 2 else found[::2]


def test_a_model_that_returns_too_few_embeddings_is_refused():
    ins = entry(Halves())
    words = "Halves: gave 4 embeddings for 8 images; the model must return one for each image"
    with pytest.raises(ConfigError, match=words):
        ins.train()
    with pytest.raises(ConfigError, match=words):
        embed_batch(Halves(), np.zeros((8, 3, 32, 32), "float32"))
