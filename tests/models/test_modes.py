"""The modes of layers that the user has set, in training, tests, prediction and export."""

import copy

import numpy as np
import paddle
import pytest

from plsc import BaseModel, Entry, layers
from plsc.engine.callbacks import Callback
from plsc.models.modes import TrainingModes, evaluating

RNG = np.random.default_rng(0)
BATCHES = [(RNG.normal(size=(4, 3, 16, 16)).astype("float32"), RNG.integers(0, 3, 4)) for _ in range(2)]


class Net(paddle.nn.Layer):
    """A trunk and a tail, each with a BatchNorm, and a dropout between them."""

    def __init__(self):
        super().__init__()
        self.trunk = paddle.nn.Sequential(
            paddle.nn.Conv2D(3, 4, 3, stride=4), paddle.nn.BatchNorm2D(4), paddle.nn.Flatten()
        )
        self.dropout = paddle.nn.Dropout(0.5)
        self.tail = paddle.nn.Sequential(paddle.nn.Linear(64, 4), paddle.nn.BatchNorm1D(4))

    def forward(self, x):
        return self.tail(self.dropout(self.trunk(x)))


class WithOverride(Net):
    """Its own `train` keeps the trunk in evaluation mode."""

    def train(self, mode=True):
        super().train()
        self.trunk.eval()
        return self


class FrozenNorm(paddle.nn.BatchNorm2D):
    def train(self, mode=True):
        self.training = False
        return self


class WithFrozenSublayer(Net):
    def __init__(self):
        super().__init__()
        self.trunk[1] = FrozenNorm(4)


class DefineByRun(BaseModel):
    def build_network(self, input, label, is_train):
        x = layers.batch_norm(layers.conv2d(input, 4, 3, stride=4), is_test=not is_train)
        return layers.batch_norm(layers.fc(x, 4), is_test=not is_train)


def frozen_norm():
    net = Net()
    net.trunk[1].eval()
    return net


def frozen_trunk():
    net = Net()
    net.trunk.eval()
    return net


def frozen_define_by_run():
    net = DefineByRun()
    net.build((3, 16, 16))
    net.batch_norm_0.eval()
    return net


# How a user freezes the first BatchNorm, and its name and that of the second.
FROZEN = {
    "eval of a layer": (frozen_norm, "trunk.1", "tail.1"),
    "eval of a trunk": (frozen_trunk, "trunk.1", "tail.1"),
    "train method of the model": (WithOverride, "trunk.1", "tail.1"),
    "train method of a sublayer": (WithFrozenSublayer, "trunk.1", "tail.1"),
    "define-by-run": (frozen_define_by_run, "batch_norm_0", "batch_norm_1"),
}


def entry(net, output=None):
    ins = Entry()
    ins.set_model(net)
    ins.set_class_num(3)
    ins.set_image_shape((3, 16, 16))
    ins.set_emb_size(4)
    ins.set_train_epochs(2)
    ins.set_model_save_dir(None if output is None else str(output))
    ins.train_reader = ins.test_reader = BATCHES
    ins.predict_reader = [images for images, _ in BATCHES]
    return ins


def statistics(net, name):
    layer = dict(net.named_sublayers())[name]
    return np.concatenate([layer._mean.numpy(), layer._variance.numpy()])


def modes(net):
    return {name: layer.training for name, layer in net.named_sublayers(include_self=True)}


@pytest.mark.parametrize("way", FROZEN)
def test_frozen_statistics_stay_and_others_move_over_tests_and_epochs(way, tmp_path):
    make, frozen, free = FROZEN[way]
    paddle.seed(1)
    net = make()
    before = {name: statistics(net, name) for name in (frozen, free)}
    ins = entry(net, tmp_path)
    seen = []

    class Watch(Callback):
        def on_step_end(self, run):
            seen.append(modes(run.backbone))

    ins.add_callback(Watch())
    ins.train()
    np.testing.assert_array_equal(statistics(net, frozen), before[frozen])
    assert not np.array_equal(statistics(net, free), before[free])
    assert len(seen) == 4 and all(one == seen[0] for one in seen), "the test in between has changed modes"
    assert seen[0][""] and not seen[0][frozen] and seen[0][free]
    ins.test(), ins.predict(), ins.convert_for_prediction()
    assert modes(net) == seen[0]


def test_a_frozen_network_embeds_the_same_after_training():
    net = Net()
    net.trunk.eval(), net.dropout.eval(), net.tail.eval()
    for parameter in net.parameters():
        parameter.stop_gradient = True
    ins = entry(net)
    ins.set_with_test(False)
    with evaluating(net):
        before = net(paddle.to_tensor(BATCHES[0][0])).numpy()
    ins.train()
    np.testing.assert_array_equal(ins.predict()[:4], before)


def test_a_model_in_evaluation_mode_stays_in_it_and_the_log_says_so(capsys):
    net = Net()
    net.eval()
    before = statistics(net, "tail.1")
    entry(net).train()
    assert "Net is in evaluation mode as a whole" in capsys.readouterr().err
    np.testing.assert_array_equal(statistics(net, "tail.1"), before)
    assert not any(modes(net).values())


def test_a_callback_that_forgets_the_mode_does_not_change_the_training():
    class Forgetful(Callback):
        def on_epoch_end(self, run):
            run.backbone.eval()

    results = []
    for callbacks in ([], [Forgetful()]):
        paddle.seed(1)
        net = frozen_norm()
        ins = entry(net)
        for one in callbacks:
            ins.add_callback(one)
        results.append(ins.train()["loss"])
    assert results[0] == results[1]


def test_evaluating_gives_every_layer_its_mode_back_after_an_error_too():
    net = copy.deepcopy(frozen_trunk())
    before = modes(net)
    with pytest.raises(ZeroDivisionError), evaluating(net):
        assert not any(modes(net).values())
        raise ZeroDivisionError
    assert modes(net) == before
    TrainingModes(net).restore()
    assert modes(net) == before
