"""Initializers, decays, optimizers and the rest of `plsc.fluid`, compared with their formulas."""

import json
import math

import numpy as np
import paddle
import pytest
from function_model import FunctionModel, random_array

import plsc.fluid.layers
from plsc import Entry, fluid, layers
from plsc.errors import PlscError

pytestmark = pytest.mark.core

DECAYS = {
    "piecewise": (
        lambda: fluid.layers.piecewise_decay([3, 6], [1, 0.1, 0.01]),
        lambda s: [1, 0.1, 0.01][(s >= 3) + (s >= 6)],
    ),
    "cosine": (lambda: fluid.layers.cosine_decay(0.5, 3, 4), lambda s: 0.25 * (math.cos(s // 3 * math.pi / 4) + 1)),
    "exponential": (lambda: fluid.layers.exponential_decay(0.5, 4, 0.3), lambda s: 0.5 * 0.3 ** (s / 4)),
    "stairs": (lambda: fluid.layers.exponential_decay(0.5, 4, 0.3, staircase=True), lambda s: 0.5 * 0.3 ** (s // 4)),
    "natural": (lambda: fluid.layers.natural_exp_decay(0.5, 4, 0.3), lambda s: 0.5 * math.exp(-0.3 * s / 4)),
    "inverse": (lambda: fluid.layers.inverse_time_decay(0.5, 4, 0.3, True), lambda s: 0.5 / (1 + 0.3 * (s // 4))),
    "polynomial": (
        lambda: fluid.layers.polynomial_decay(0.5, 4, 0.1, power=2.0),
        lambda s: 0.4 * (1 - min(s, 4) / 4) ** 2 + 0.1,
    ),
    "cycle": (
        lambda: fluid.layers.polynomial_decay(0.5, 4, 0.1, cycle=True),
        lambda s: 0.4 * (1 - s / (4 * max(1, -(-s // 4)))) + 0.1,
    ),
    "noam": (
        lambda: fluid.layers.noam_decay(64, 3, 2.0),
        lambda s: 2 / 8 * min((s + 1) ** -0.5, (s + 1) * 3**-1.5),
    ),
    "warmup": (lambda: fluid.layers.linear_lr_warmup(0.7, 4, 0.1, 0.5), lambda s: 0.1 + 0.1 * s if s < 4 else 0.7),
    "warmup, then": (
        lambda: fluid.layers.linear_lr_warmup(fluid.layers.exponential_decay(1.0, 1, 0.5), 4, 0.0, 1.0),
        lambda s: s / 4 if s < 4 else 0.5**s,
    ),
}


@pytest.mark.parametrize("name", DECAYS)
def test_learning_rates(name):
    make, expected = DECAYS[name]
    schedule = make()
    rates = []
    for _ in range(10):
        rates.append(schedule())
        schedule.step()
    assert rates == pytest.approx([expected(step) for step in range(10)])


def test_piecewise_decay_counts_its_values():
    with pytest.raises(ValueError, match="2 boundaries need 3 values"):
        fluid.layers.piecewise_decay([1, 2], [1.0, 0.1])


def filled(initializer, *shape):
    return paddle.create_parameter(list(shape), "float32", default_initializer=initializer).numpy()


I = fluid.initializer  # noqa: E741
NORMAL = {
    "normal": (I.Normal(1.0, 0.5), 1.0, 0.5),
    "xavier": (I.Xavier(uniform=False), 0.0, math.sqrt(2 / 400)),
    "fan_in of 0": (I.Xavier(uniform=False, fan_in=0.0), 0.0, math.sqrt(2 / 300)),
    "fans": (I.XavierInitializer(False, 50, 150), 0.0, 0.1),
    "msra": (I.MSRA(uniform=False), 0.0, math.sqrt(2 / 100)),
    "msra fan_in": (I.MSRAInitializer(False, 200), 0.0, 0.1),
}
UNIFORM = {
    "uniform": (I.Uniform(-2.0, 1.0), -2.0, 1.0),
    "xavier": (I.Xavier(), -math.sqrt(6 / 400), math.sqrt(6 / 400)),
    "msra": (I.MSRA(), -math.sqrt(6 / 100), math.sqrt(6 / 100)),
}


@pytest.mark.parametrize("name", NORMAL)
def test_normal_initializers(name):
    initializer, mean, deviation = NORMAL[name]
    values = filled(initializer, 100, 300)
    assert values.mean() == pytest.approx(mean, abs=5 * deviation / math.sqrt(30000))
    assert values.std() == pytest.approx(deviation, rel=0.02)


@pytest.mark.parametrize("name", UNIFORM)
def test_uniform_initializers(name):
    initializer, low, high = UNIFORM[name]
    values = filled(initializer, 100, 300)
    assert low <= values.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < values.max() <= high


def test_other_initializers():
    assert (filled(I.ConstantInitializer(), 3) == 0).all() and (filled(I.Constant(0.25), 3) == 0.25).all()
    np.testing.assert_allclose(filled(I.NumpyArrayInitializer(random_array(2, 3)), 2, 3), random_array(2, 3), rtol=1e-6)
    cut = filled(I.TruncatedNormal(3.0, 0.5), 5000)
    assert 2.0 <= cut.min() < 2.1 and 3.9 < cut.max() <= 4.0 and cut.mean() == pytest.approx(3.0, abs=0.05)
    assert filled(I.Bilinear(), 1, 1, 4, 4)[0, 0, 0, 1] == pytest.approx(0.75 * 0.375)
    for seeded in (I.Xavier(seed=7), I.Xavier(False, seed=7), I.Normal(seed=7)):
        np.testing.assert_array_equal(filled(seeded, 20), filled(seeded, 20))
    for short in ("Constant", "Uniform", "Normal", "TruncatedNormal", "Xavier", "Bilinear", "MSRA"):
        assert getattr(I, short) is getattr(I, f"{short}Initializer")
    with pytest.raises(ValueError, match="fan_in=0"):
        filled(I.Xavier(fan_in=0, fan_out=0), 3, 3)


def test_the_last_layer_of_the_documented_model_is_not_all_zeros():
    attr = fluid.param_attr.ParamAttr(initializer=I.Xavier(uniform=False, fan_in=0.0))
    model = FunctionModel(lambda x, is_train: fluid.layers.fc(x, 64, param_attr=attr))
    model.build((100,))
    assert model.fc_0.weight.numpy().std() == pytest.approx(math.sqrt(2 / 64), rel=0.05)


L2 = fluid.regularizer.L2Decay(regularization_coeff=0.1)
OPTIMIZERS = {
    "SGD": (lambda **k: fluid.optimizer.SGD(0.1, **k), lambda p: paddle.optimizer.SGD(0.1, p, 0.1)),
    "Momentum": (
        lambda **k: fluid.optimizer.MomentumOptimizer(0.1, 0.8, use_nesterov=True, **k),
        lambda p: paddle.optimizer.Momentum(0.1, 0.8, p, True, 0.1),
    ),
    "Adagrad": (
        lambda **k: fluid.optimizer.Adagrad(0.1, 0.01, initial_accumulator_value=0.2, **k),
        lambda p: paddle.optimizer.Adagrad(0.1, 0.01, p, 0.1, initial_accumulator_value=0.2),
    ),
    "Adam": (
        lambda **k: fluid.optimizer.Adam(0.1, 0.8, **k),
        lambda p: paddle.optimizer.Adam(0.1, 0.8, parameters=p, weight_decay=0.1),
    ),
    "Adamax": (
        lambda **k: fluid.optimizer.AdamaxOptimizer(**k),
        lambda p: paddle.optimizer.Adamax(parameters=p, weight_decay=0.1),
    ),
    "Adadelta": (
        lambda **k: fluid.optimizer.Adadelta(0.1, **k),
        lambda p: paddle.optimizer.Adadelta(0.1, parameters=p, weight_decay=0.1),
    ),
    "RMSProp": (
        lambda **k: fluid.optimizer.RMSPropOptimizer(0.1, momentum=0.5, centered=True, **k),
        lambda p: paddle.optimizer.RMSProp(0.1, momentum=0.5, centered=True, parameters=p, weight_decay=0.1),
    ),
}


def moved(make):
    """Returns a parameter after three steps that minimise its square."""
    parameter = paddle.create_parameter(
        [2, 2], "float32", default_initializer=I.NumpyArrayInitializer(random_array(2, 2))
    )
    optimizer = make([parameter])
    for _ in range(3):
        (parameter**2).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
    return parameter.numpy()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_move_like_those_of_paddle(name):
    old, new = OPTIMIZERS[name]
    result = moved(lambda p: old(parameter_list=p, regularization=L2))
    np.testing.assert_allclose(result, moved(new), rtol=1e-6)
    without = moved(lambda p: old(parameter_list=p))
    assert (without != result).any() and (without != random_array(2, 2).astype("float32")).all()


def test_lamb_refuses_regularization():
    result = moved(lambda p: fluid.optimizer.Lamb(0.1, parameter_list=p))
    np.testing.assert_allclose(result, moved(lambda p: paddle.optimizer.Lamb(0.1, parameters=p)), rtol=1e-6)
    with pytest.raises(ValueError, match="lamb_weight_decay"):
        fluid.optimizer.Lamb(regularization=L2)


def test_clips_and_decays_equal_those_of_paddle():
    assert fluid.clip.GradientClipByGlobalNorm(2.0).clip_norm == 2.0
    assert isinstance(fluid.clip.GradientClipByNorm(2.0), paddle.nn.ClipGradByNorm)
    by_value = fluid.clip.GradientClipByValue(2.0)
    assert (by_value.max, by_value.min) == (2.0, -2.0)
    assert isinstance(fluid.regularizer.L1DecayRegularizer(0.1), paddle.regularizer.L1Decay)
    assert fluid.ParamAttr is fluid.param_attr.ParamAttr is paddle.ParamAttr


def test_an_old_optimizer_trains_through_entry(tmp_path):
    ins = Entry()
    ins.set_image_shape((3, 16, 16))
    ins.set_class_num(3)
    ins.set_emb_size(4)
    ins.set_model(FunctionModel(lambda x, is_train: fluid.layers.fc(x, 4)))
    ins.set_train_epochs(6)
    ins.set_log_period(1)
    ins.set_with_test(False)
    ins.set_model_save_dir(str(tmp_path))
    ins.set_loss_type("dist_softmax")
    rate = fluid.layers.linear_lr_warmup(fluid.layers.piecewise_decay([4], [0.1, 0.01]), 2, 0.0, 0.1)
    ins.set_optimizer(fluid.optimizer.Momentum(rate, momentum=0.9, regularization=fluid.regularizer.L2Decay(5e-4)))
    images = random_array(6, 3, 16, 16).astype("float32")
    ins.train_reader = lambda: iter([[(image, number % 3) for number, image in enumerate(images)]])
    result = ins.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines] == pytest.approx([0, 0.05, 0.1, 0.1, 0.01, 0.01])
    assert result["loss"] < 0.9 * lines[0]["loss"]


def test_embedding_and_one_hot_keep_every_dimension():
    numbers = paddle.to_tensor([[[1], [2]]])
    assert FunctionModel(lambda x, is_train: fluid.embedding(x, [5, 3]))(numbers).shape == [1, 2, 1, 3]
    assert fluid.one_hot(numbers, 4).shape == [1, 2, 1, 4]
    assert fluid.layers.one_hot(numbers, 4).shape == [1, 2, 4]


def test_layers_are_the_same_functions():
    assert all(getattr(fluid.layers, name) is getattr(layers, name) for name in layers.__all__)
    assert all(hasattr(plsc.fluid.layers, name) for name in plsc.fluid.layers.__all__)


MISSING = [
    (lambda: layers.dynamic_lstm, r"layers.dynamic_lstm is not in plsc; make a paddle.nn.LSTM"),
    (lambda: fluid.layers.gelu, "use paddle.nn.functional.gelu"),
    (lambda: fluid.layers.gather, "use paddle.gather"),
    (lambda: fluid.layers.nonsense, "docs/fluid.md"),
    (lambda: fluid.Executor, "plsc.Entry trains"),
    (lambda: fluid.CUDAPlace(0), "paddle.set_device"),
    (lambda: fluid.optimizer.DGCMomentum, "Momentum or Adam"),
    (lambda: fluid.initializer.force_init_on_cpu, "paddle.nn.initializer"),
    (lambda: fluid.regularizer.append_regularization_ops, "paddle.regularizer"),
    (lambda: fluid.param_attr.WeightNormParamAttr, "weight_norm"),
    (lambda: fluid.clip.set_gradient_clip, "set_gradient_clip of Entry"),
]


@pytest.mark.parametrize("use, words", MISSING)
def test_a_missing_name_says_what_to_use(use, words):
    with pytest.raises(PlscError, match=words) as caught:
        use()
    assert "\n" not in str(caught.value)


def test_a_missing_name_can_be_tested_for_and_imported():
    assert not hasattr(fluid, "core") and not hasattr(fluid.layers, "While")
    with pytest.raises(ImportError, match="paddle.nn.GRU"):
        from plsc.fluid.layers import dynamic_gru  # noqa: F401
    with pytest.raises(ImportError, match="plsc.Entry"):
        from plsc.fluid import Program  # noqa: F401
