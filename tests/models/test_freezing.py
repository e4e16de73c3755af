"""Which parameters `set_trainable` trains, what is frozen with them, and from which epoch on."""

import contextlib
import json

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from plsc import BaseModel, Callback, Entry, layers
from plsc.checkpoint import BACKBONE, OPTIMIZER
from plsc.config import Trainable
from plsc.errors import CheckpointError, ConfigError
from plsc.models import build_model
from plsc.models.freezing import TrainedParts, rate_factors_of, statistics_of
from plsc.models.modes import TrainingModes
from plsc.settings.checks import trainable

RNG = np.random.default_rng(0)
BATCHES = [(RNG.normal(size=(4, 3, 16, 16)).astype("float32"), RNG.integers(0, 3, 4)) for _ in range(2)]


class Net(paddle.nn.Layer):
    """A trunk and a tail, each with a BatchNorm, and a dropout between them. The model itself freezes `fixed`."""

    def __init__(self):
        super().__init__()
        self.trunk = paddle.nn.Sequential(
            paddle.nn.Conv2D(3, 4, 3, stride=4), paddle.nn.BatchNorm2D(4), paddle.nn.Flatten()
        )
        self.dropout = paddle.nn.Dropout(0.5)
        self.tail = paddle.nn.Sequential(paddle.nn.Linear(64, 4), paddle.nn.BatchNorm1D(4))
        self.fixed = self.create_parameter([4])
        self.fixed.stop_gradient = True

    def forward(self, x):
        return self.tail(self.dropout(self.trunk(x))) + self.fixed


class DefineByRun(BaseModel):
    """Its normalisations never ask whether it is tested, as in scripts of Paddle 1.x."""

    def build_network(self, input, label, is_train):
        x = layers.batch_norm(layers.conv2d(input, 4, 3, stride=4))
        return layers.batch_norm(layers.fc(x, 4))


def entry(net, what, output=None, **more):
    ins = Entry()
    ins.set_model(net)
    ins.set_class_num(3)
    ins.set_image_shape((3, 16, 16))
    ins.set_emb_size(4)
    ins.set_train_epochs(3)
    ins.set_with_test(False)
    ins.set_model_save_dir(None if output is None else str(output))
    ins.set_trainable(what)
    for name, value in more.items():
        getattr(ins, f"set_{name}")(value)
    ins.train_reader = BATCHES
    return ins


def state_of(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


class Watch(Callback):
    """Notes which tensors of the backbone each epoch moves, and the modes of its layers."""

    def __init__(self):
        self.moved, self.modes, self.momenta, self.statistics = [], [], [], []

    def on_epoch_begin(self, run):
        self.before = state_of(run.backbone)

    def on_step_end(self, run):
        run.backbone.train()  # as a callback may leave it that has tested the network

    def on_epoch_end(self, run):
        now = state_of(run.backbone)
        self.moved.append({name for name, value in now.items() if not np.array_equal(value, self.before[name])})
        self.momenta.append(sum(len(of_kind) for of_kind in run.optimizer._accumulators.values()))
        self.statistics.append(len(run.statistics))


TAIL = {"tail.0.weight", "tail.0.bias", "tail.1.weight", "tail.1.bias", "tail.1._mean", "tail.1._variance"}
TRUNK = {"trunk.0.weight", "trunk.0.bias", "trunk.1.weight", "trunk.1.bias", "trunk.1._mean", "trunk.1._variance"}
CASES = {  # what each of three epochs moves
    "all": [TAIL | TRUNK] * 3,
    "head": [set()] * 3,
    "tail.*": [TAIL] * 3,
    ("trunk.*", "head"): [TRUNK] * 3,
    "tail.0.*": [{"tail.0.weight", "tail.0.bias"}] * 3,
    (0, "head", 2, "all"): [set(), set(), TAIL | TRUNK],
    (0, "tail.*", 1, "all"): [TAIL, TAIL | TRUNK, TAIL | TRUNK],
}


@pytest.mark.core
@pytest.mark.parametrize("what", CASES)
def test_what_is_named_moves_and_the_rest_keeps_its_weights_and_statistics(what):
    given = what
    if isinstance(what, tuple):
        given = dict(zip(what[::2], what[1::2])) if what[0] == 0 else list(what)
    paddle.seed(1)
    net, watch = Net(), Watch()
    ins = entry(net, given)
    ins.add_callback(watch)
    assert np.isfinite(ins.train()["loss"])
    assert watch.moved == CASES[what]
    trained = [sum(not name.endswith(("_mean", "_variance")) for name in moved) for moved in CASES[what]]
    assert watch.momenta == trained, "only what has been trained has momentum"
    # The running statistics of layers that train, and `fixed`, which a forward pass of the model might change.
    assert watch.statistics == [sum(name.endswith(("_mean", "_variance")) for name in m) + bool(m) for m in CASES[what]]
    assert all(layer.training for layer in net.sublayers(include_self=True)), "the model is the user's again"
    assert {name for name, p in net.named_parameters() if p.stop_gradient} == {
        "fixed", "trunk.1._mean", "trunk.1._variance", "tail.1._mean", "tail.1._variance"
    }  # fmt: skip


@pytest.mark.core
@pytest.mark.parametrize(
    ("what", "free"), [("head", ()), (["fc_0.*"], ("fc_0.",)), (["conv*", "b*_0.*"], ("conv", "batch_norm_0."))]
)
def test_a_define_by_run_model_keeps_frozen_statistics(what, free):
    watch = Watch()
    ins = entry(DefineByRun(), what)
    ins.add_callback(watch)
    ins.train()
    everything = watch.before
    for moved in watch.moved:
        assert moved == {name for name in everything if free and name.startswith(free)}


def test_layers_in_a_frozen_part_are_in_evaluation_mode_and_others_in_their_own():
    net = Net()
    net.tail[1].eval()  # by the user
    modes = TrainingModes(net)
    parts = TrainedParts(net, trainable("set_trainable", {0: "head", 1: "tail.*", 2: "all"}).stages, modes)
    expected = [(False, False, False, False, False), (True, False, True, True, False), (True, True, True, True, False)]
    for epoch, wanted in enumerate(expected):
        parts.begin(epoch)
        found = (net, net.trunk[1], net.dropout, net.tail[0], net.tail[1])
        assert tuple(layer.training for layer in found) == wanted
    assert not parts.begin(7)
    parts.begin(0)
    parts.give_back()
    assert net.training and net.trunk[1].training and not net.tail[1].training


def test_only_statistics_are_kept_for_a_skipped_step_and_sent_to_other_ranks():
    """What the user froze by hand counts too: it was copied in each step, 45 MB for a ResNet18."""
    net = build_model("ResNet18", 8, (3, 16, 16))
    for parameter in net.parameters():
        parameter.stop_gradient = True
    assert {name.rsplit(".", 1)[1] for name in statistics_of(net)} == {"_mean", "_variance"}
    norm = paddle.nn.SpectralNorm([3, 2])
    assert set(statistics_of(norm)) == {"weight_u", "weight_v"}


REFUSED = {
    "fc.*": r"'fc.\*' matches no parameter of Net; names near it: .*tail\.\*",
    "head ": "'head ' matches no parameter of Net; names near it: head",
    "tail.1._mean": "'tail.1._mean' names only statistics in Net, or what it freezes itself",
    "fixed": "'fixed' names only statistics in Net, or what it freezes itself",
    "*.bias": r"(trunk|tail).1.bias is named without (trunk|tail).1.weight, and Paddle has no gradient of one .*; name",
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_a_pattern_that_cannot_be_trained_is_refused(pattern):
    with pytest.raises(ConfigError, match=f"^set_trainable: {REFUSED[pattern]}"):
        entry(Net(), pattern).train()


@pytest.mark.parametrize("is_named", [False, True])
def test_a_random_network_that_is_never_trained_and_a_schedule_that_is_not_used_are_reported(is_named, capsys):
    ins = entry(Net(), "head", train_epochs=1)
    if not is_named:
        ins._config.model = None
        ins.set_model_name("GlyphNet")
        ins.set_schedule("cosine")
        ins.set_optimizer(lambda parameters: paddle.optimizer.Momentum(0.01, parameters=parameters))
    ins.train()
    log = capsys.readouterr().err
    assert ("set_trainable('head') leaves the network at its random weights; name" in log) is not is_named
    assert ("set_schedule('cosine') changes nothing, because the optimizer" in log) is not is_named


def test_stages_that_cannot_be_are_refused_and_one_that_never_comes_is_reported(capsys):
    with pytest.raises(ConfigError, match="epoch 1 freezes tail.0.bias, tail.0.weight, .* may only unfreeze"):
        entry(Net(), {0: "tail.*", 1: "trunk.*"}).train()
    entry(Net(), {0: "head", 3: "all"}).train()
    assert "set_trainable: epoch 3, which unfreezes something, never comes" in capsys.readouterr().err
    ins = entry(Net(), "head")
    ins.set_distfc_attr(paddle.ParamAttr(trainable=False))
    with pytest.raises(ConfigError, match="trains the head alone, whose class centres set_distfc_attr freezes"):
        ins.train()
    for stages in ("head", {0: "head", 1: "all"}):
        ins = entry(Net(), stages)
        ins.set_teacher("zoo:glyphs", head=False)
        with pytest.raises(
            ConfigError,
            match="the head alone, which set_teacher with head=False leaves as it is, so nothing would be trained",
        ):
            ins.train()


@pytest.mark.parametrize(
    "what, head, factors, message",
    [
        (
            "head",
            False,
            {},
            "set_trainable: .* set_teacher with head=False leaves as it is, so nothing would be trained",
        ),
        ({0: "head", 1: "all"}, False, {}, "set_trainable: .* so nothing would be trained"),
        ("head", True, {}, "set_trainable: trains the head alone, and set_teacher teaches the network"),
        ("all", False, {"head": 2.0}, "set_rate_factors: .*'head', whose class centres set_teacher with head=False"),
        ("all", None, {"head": 2.0}, "set_rate_factors: .*'head', whose class centres set_distfc_attr keeps"),
        ({0: "head", 1: "all"}, True, {"head": 2.0}, None),
    ],
)
def test_settings_that_would_change_nothing_are_refused(what, head, factors, message):
    ins = entry(Net(), what, rate_factors=factors)
    if head is None:
        ins.set_distfc_attr(paddle.ParamAttr(trainable=False))
        ins.set_loss_type("dist_arcface")
    else:
        ins.set_teacher(Net(), head=head)
    with pytest.raises(ConfigError, match=message) if message else contextlib.nullcontext():
        ins.train()


def momentum(parameters):
    return paddle.optimizer.Momentum(0.1, parameters=parameters)


def fused(parameters):
    return paddle.optimizer.Adam(0.1, parameters=parameters, use_multi_tensor=True)


def averaged(parameters):
    return paddle.incubate.LookAhead(momentum(parameters))


@pytest.mark.parametrize(("make", "refused"), [(momentum, False), (fused, True), (averaged, True)])
def test_an_optimizer_that_cannot_take_parameters_later_is_refused(make, refused):
    ins = entry(Net(), {0: "head", 1: "all"}, optimizer=make)
    if not refused:
        ins.train()
        return
    with pytest.raises(ConfigError, match="set_trainable: .* takes all its parameters at the first step"):
        ins.train()


class Stop(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, run):
        if run.progress.step == self.step:
            run.stop("enough")


@pytest.mark.parametrize(
    ("step", "optimizer"), [(1, None), (2, None), (3, lambda ps: paddle.optimizer.AdamW(0.01, parameters=ps))]
)
def test_a_run_resumes_before_at_and_after_unfreezing(tmp_path, step, optimizer):
    def train(output, *callbacks):
        paddle.seed(1)
        ins = entry(
            Net(), {0: "tail.*", 1: "all"}, output, rate_factors={"trunk.*": 0.5}, gradient_clip=1.0, resume=True
        )
        if optimizer is not None:
            ins.set_optimizer(optimizer)
        for callback in callbacks:
            ins.add_callback(callback)
        ins.train()

    train(tmp_path / "straight")
    train(tmp_path / "stopped", Stop(step))
    train(tmp_path / "stopped")
    metas = [json.loads((tmp_path / name / "2" / "meta.json").read_text()) for name in ("straight", "stopped")]
    assert metas[0]["sha256"] == metas[1]["sha256"]
    assert metas[0]["trainable"] == "tail.*; from epoch 1 all" and metas[0]["rate_factors"] == "trunk.* 0.5"


def test_a_resumed_run_may_unfreeze_but_not_freeze(tmp_path, capsys):
    entry(Net(), "tail.*", tmp_path, train_epochs=1).train()
    saved = {name.partition("/")[0] for name in load_file(tmp_path / "0" / OPTIMIZER)}
    assert saved == {name for name in TAIL if "._" not in name}
    assert set(load_file(tmp_path / "0" / BACKBONE)) == TAIL | TRUNK | {"fixed"}, "a checkpoint is complete"
    with pytest.raises(CheckpointError, match="the run trained tail.0.weight, which is frozen now"):
        entry(Net(), "head", tmp_path, resume=True).train()
    entry(Net(), "all", tmp_path, resume=True, train_epochs=2).train()
    assert "what is trained was tail.* and is all now" in capsys.readouterr().err


class Alike(paddle.optimizer.Optimizer):
    """An optimizer that knows one rate."""

    def _append_optimize_op(self, block, param_and_grad):
        paddle.assign(param_and_grad[0] - self.get_lr() * param_and_grad[1], param_and_grad[0])


def groups(parameters):
    halves = [{"params": parameters[:2], "learning_rate": 0.5}, {"params": parameters[2:]}]
    return paddle.optimizer.Momentum(0.1, 0.0, parameters=halves)


def rates_seen(net, factors, make):
    """Returns how far the first step moves each parameter, and the class centres, as multiples of their gradients."""
    paddle.seed(1)
    found = {}

    class See(Callback):
        def on_train_begin(self, run):
            named = {**dict(run.backbone.named_parameters()), "head": run.head.weight}
            self.before = {name: p.numpy() for name, p in named.items()}

        def on_step_end(self, run):
            if run.progress.step == 1:
                named = {**dict(run.backbone.named_parameters()), "head": run.head.weight}
                found.update({name: np.abs(p.numpy() - self.before[name]).sum() for name, p in named.items()})

    ins = entry(net, "all", train_epochs=1, optimizer=make, rate_factors=factors)
    ins.add_callback(See())
    ins.train()
    return found


def test_rate_factors_multiply_those_of_groups_and_the_last_pattern_counts():
    paddle.seed(1)
    state = state_of(Net())
    for make in (lambda ps: paddle.optimizer.Momentum(0.1, 0.0, parameters=ps), groups):
        moved = []
        for factors in (None, {"tail.*": 3.0, "tail.0.*": 0.5, "head": 2.0}):
            net = Net()
            net.set_state_dict(state)
            rates_seen(net, factors, make)  # a second training has the same factors, not their squares
            net.set_state_dict(state)
            moved.append(rates_seen(net, factors, make))
        ratios = {name: moved[1][name] / one for name, one in moved[0].items() if one and "._" not in name}
        expected = {"tail.0": 0.5, "tail.1": 3.0, "head": 2.0, "trunk.": 1.0}
        assert len(ratios) >= 8
        for name, ratio in ratios.items():
            assert ratio == pytest.approx(expected[name[:6]], rel=1e-3), name


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda ps: Alike(0.1, parameters=ps), "Alike moves all its parameters with the same learning rate"),
        (fused, "Adam with use_multi_tensor moves all its parameters"),
        (lambda ps: paddle.optimizer.AdamW(0.1, parameters=ps), None),
        (lambda ps: paddle.optimizer.RMSProp(0.1, parameters=ps), None),
        (averaged, None),
    ],
)
def test_an_optimizer_heeds_rate_factors_or_is_refused(make, words):
    if words is None:
        entry(Net(), "all", train_epochs=1, optimizer=make, rate_factors={"*": 0.1}).train()
        return
    with pytest.raises(ConfigError, match=f"set_rate_factors: {words}"):
        entry(Net(), "all", optimizer=make, rate_factors={"*": 0.1}).train()


def test_a_rate_factor_for_what_is_frozen_or_unknown_is_refused():
    with pytest.raises(
        ConfigError, match=r"set_rate_factors: 'trunk.\*' names .* in Net, or what set_trainable or the model"
    ):
        entry(Net(), "tail.*", rate_factors={"trunk.*": 0.1}).train()
    with pytest.raises(ConfigError, match=r"set_rate_factors: 'tial.\*' matches no .* near it: tail\.\*"):
        rate_factors_of((("tial.*", 0.1),), Net(), {})


def test_the_text_of_what_is_trained_has_all_of_it():
    assert trainable("s", ["head", "all"]) == Trainable() and trainable("s", ["head"]).text == "head"
    assert trainable("s", {0: ["a", "b", "a"], "3": "all"}).text == "a, b; from epoch 3 all"
