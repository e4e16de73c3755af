"""Layers with parameters, compared with NumPy in float64 and the weights of the layer."""

import numpy as np
import paddle
import pytest
from function_model import FunctionModel, random_array, to_tensors

from plsc import layers as L
from plsc.errors import PlscError

pytestmark = pytest.mark.core

X = random_array(2, 4, 5, 6)
RANDOM = paddle.nn.initializer.Normal(0.0, 1.0)
ATTRS = {"param_attr": RANDOM, "bias_attr": paddle.ParamAttr(initializer=RANDOM)}


def weights(model):
    return {name.split(".")[-1]: p.numpy().astype("float64") for name, p in model.state_dict().items()}


def convolved(x, weight, bias, stride=1, padding=(0, 0, 0, 0), dilation=1, groups=1):
    """Convolves with plain loops over the filter."""
    top, bottom, left, right = padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    rows, columns = weight.shape[2:]
    high = (x.shape[2] - dilation * (rows - 1) - 1) // stride + 1
    wide = (x.shape[3] - dilation * (columns - 1) - 1) // stride + 1
    parts = []
    for own, part in zip(np.split(weight, groups), np.split(x, groups, 1)):
        total = np.zeros((len(x), len(own), high, wide))
        for i in range(rows):
            for j in range(columns):
                seen = part[:, :, i * dilation :, j * dilation :][:, :, ::stride, ::stride][:, :, :high, :wide]
                total += np.einsum("bchw,oc->bohw", seen, own[:, :, i, j])
        parts.append(total)
    return np.concatenate(parts, 1) + bias[:, None, None]


def spread(x, weight, bias, stride=1, cut=0):
    """Computes a transposed convolution: each pixel adds the filter, times its value."""
    (b, _, h, w), (_, out, rows, columns) = x.shape, weight.shape
    total = np.zeros((b, out, (h - 1) * stride + rows, (w - 1) * stride + columns))
    for i in range(h):
        for j in range(w):
            total[:, :, i * stride : i * stride + rows, j * stride : j * stride + columns] += np.einsum(
                "bc,cohw->bohw", x[:, :, i, j], weight
            )
    return total[:, :, cut : total.shape[2] - cut, cut : total.shape[3] - cut] + bias[:, None, None]


def normal(x, axes, epsilon=1e-5):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def per_channel(x, scale, bias):
    return x * scale[:, None, None] + bias[:, None, None]


NHWC = X.transpose(0, 2, 3, 1)
CASES = {
    "conv2d": (lambda x: L.conv2d(x, 3, 3, **ATTRS), X, lambda weight, bias: convolved(X, weight, bias)),
    "conv2d all": (
        lambda x: L.conv2d(x, 6, [3, 2], 2, [1, 0, 2, 1], 2, 2, act="relu", **ATTRS),
        X,
        lambda weight, bias: np.maximum(convolved(X, weight, bias, 2, (1, 0, 2, 1), 2, 2), 0),
    ),
    "conv2d depthwise": (
        lambda x: L.conv2d(x, 4, 3, padding="SAME", groups=4, use_cudnn=False, **ATTRS),
        X,
        lambda weight, bias: convolved(X, weight, bias, padding=(1, 1, 1, 1), groups=4),
    ),
    "conv2d NHWC": (
        lambda x: L.conv2d(x, 3, 3, padding=[[0, 0], [1, 1], [0, 0], [0, 0]], data_format="NHWC", **ATTRS),
        NHWC,
        lambda weight, bias: convolved(X, weight, bias, padding=(1, 1, 0, 0)).transpose(0, 2, 3, 1),
    ),
    "conv2d_transpose": (
        lambda x: L.conv2d_transpose(x, 3, filter_size=3, stride=2, padding=1, **ATTRS),
        X,
        lambda weight, bias: spread(X, weight, bias, 2, 1),
    ),
    "conv2d_transpose by output": (
        lambda x: L.conv2d_transpose(x, 3, output_size=[11, 13], stride=2, act="tanh", **ATTRS),
        X,
        lambda weight, bias: np.tanh(spread(X, weight, bias, 2)),
    ),
    "fc": (lambda x: L.fc(x, 3, **ATTRS), X, lambda weight, bias: X.reshape(2, 120) @ weight + bias),
    "fc dimensions": (
        lambda x: L.fc(x, 3, num_flatten_dims=2, act="sigmoid", **ATTRS),
        X,
        lambda weight, bias: 1 / (1 + np.exp(-(X.reshape(2, 4, 30) @ weight + bias))),
    ),
    "fc last": (lambda x: L.fc(x, 3, num_flatten_dims=-1, **ATTRS), X, lambda weight, bias: X @ weight + bias),
    "fc of two": (
        lambda x: L.fc([x, x[:, :1]], 3, param_attr=[RANDOM, RANDOM], bias_attr=RANDOM),
        X,
        lambda weight_0, weight_1, bias: X.reshape(2, 120) @ weight_0 + X[:, :1].reshape(2, 30) @ weight_1 + bias,
    ),
    "fc of two without bias": (
        lambda x: L.fc([x, x], 3, bias_attr=False),
        X,
        lambda weight_0, weight_1: X.reshape(2, 120) @ (weight_0 + weight_1),
    ),
    "batch_norm": (
        lambda x: L.batch_norm(x, act="relu", epsilon=0.5, **ATTRS),
        X,
        lambda weight, bias, _mean, _variance: np.maximum(per_channel(normal(X, (0, 2, 3), 0.5), weight, bias), 0),
    ),
    "batch_norm NHWC": (
        lambda x: L.batch_norm(x, data_layout="NHWC", in_place=True, **ATTRS),
        NHWC,
        lambda weight, bias, _mean, _variance: normal(NHWC, (0, 1, 2)) * weight + bias,
    ),
    "batch_norm global": (
        lambda x: L.batch_norm(x, use_global_stats=True, **ATTRS),
        X,
        lambda weight, bias, _mean, _variance: per_channel(X / np.sqrt(1 + 1e-5), weight, bias),
    ),
    "batch_norm flat": (
        lambda x: L.batch_norm(x.flatten(1), **ATTRS),
        X,
        lambda weight, bias, _mean, _variance: normal(X.reshape(2, 120), 0) * weight + bias,
    ),
    "layer_norm": (
        lambda x: L.layer_norm(x, begin_norm_axis=2, epsilon=0.001, **ATTRS),
        X,
        lambda weight, bias: normal(X, (2, 3), 0.001) * weight.reshape(5, 6) + bias.reshape(5, 6),
    ),
    "layer_norm plain": (lambda x: L.layer_norm(x, scale=False, shift=False), X, lambda: normal(X, (1, 2, 3))),
    "instance_norm": (
        lambda x: L.instance_norm(x, **ATTRS),
        X,
        lambda scale, bias: per_channel(normal(X, (2, 3)), scale, bias),
    ),
    "group_norm": (
        lambda x: L.group_norm(x, 2, **ATTRS),
        X,
        lambda weight, bias: per_channel(normal(X.reshape(2, 2, 60), 2).reshape(X.shape), weight, bias),
    ),
    "group_norm NHWC": (
        lambda x: L.group_norm(x, 2, data_layout="NHWC", param_attr=False, bias_attr=False),
        NHWC,
        lambda **frozen: normal(X.reshape(2, 2, 60), 2).reshape(X.shape).transpose(0, 2, 3, 1),
    ),
    "prelu all": (lambda x: L.prelu(x, "all"), X, lambda _weight: np.where(X > 0, X, 0.25 * X)),
    "prelu channel": (
        lambda x: L.prelu(x, "channel", RANDOM),
        X,
        lambda _weight: np.where(X > 0, X, _weight[:, None, None] * X),
    ),
    "prelu element": (
        lambda x: L.prelu(x, mode="element", param_attr=RANDOM),
        X,
        lambda _weight: np.where(X > 0, X, _weight * X),
    ),
    "prelu as act": (lambda x: L.scale(x, act="prelu"), X, lambda _weight: np.where(X > 0, X, 0.25 * X)),
    "create_parameter": (
        lambda x: x * L.create_parameter([5, 1], "float32", default_initializer=RANDOM),
        X,
        lambda weight: X * weight,
    ),
    "create_parameter bias": (
        lambda x: x + L.create_parameter([1], "float32", is_bias=True),
        X,
        lambda weight: X + 0 * weight,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_against_numpy(name):
    call, x, expected = CASES[name]
    model = FunctionModel(lambda input, is_train: call(input))
    x = to_tensors(x)
    x.stop_gradient = False
    result = model(x)
    reference = expected(**weights(model))
    assert list(result.shape) == list(reference.shape)
    np.testing.assert_allclose(result.numpy(), reference, rtol=1e-4, atol=1e-4)
    result.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if not p.stop_gradient)


@pytest.mark.parametrize("padding", [None, -1])
def test_embedding(padding):
    model = FunctionModel(lambda x, is_train: L.embedding(x, [5, 3], padding_idx=padding))
    for numbers in ([[1], [4]], [1, 4]):
        rows = model(paddle.to_tensor(numbers)).numpy()
        table = weights(model)["weight"]
        np.testing.assert_allclose(rows, [table[1], table[4]], rtol=1e-6)
        assert (rows[1] == 0).all() == (padding is not None)


def test_initial_values_are_those_of_paddle_1():
    def bound(call, shape):
        model = FunctionModel(lambda x, is_train: call(x))
        model(paddle.zeros([1, *shape]))
        return {name.split(".")[-1]: p.numpy() for name, p in model.state_dict().items()}

    def uniform(values, limit):
        assert 0.99 * limit < np.abs(values).max() <= limit
        assert np.std(values) == pytest.approx(limit / np.sqrt(3), rel=0.05)

    fc = bound(lambda x: L.fc(x, 60), [100])
    uniform(fc["weight"], np.sqrt(6 / 160))
    assert (fc["bias"] == 0).all()
    assert np.std(bound(lambda x: L.conv2d(x, 100, 3), [8, 5, 5])["weight"]) == pytest.approx(np.sqrt(2 / 72), rel=0.05)
    uniform(bound(lambda x: L.conv2d_transpose(x, 40, filter_size=3), [8, 5, 5])["weight"], np.sqrt(6 / (48 * 9)))
    table = FunctionModel(lambda x, is_train: L.embedding(x, [90, 60]))
    table(paddle.to_tensor([1]))
    uniform(weights(table)["weight"], np.sqrt(6 / 150))


@pytest.mark.parametrize("rank", [2, 4])
def test_batch_norm_follows_is_test_and_its_own_momentum(rank):
    is_test, shape = True, [16, 3] if rank == 2 else [16, 3, 2, 2]
    x = to_tensors(random_array(*shape) * 3 + 5)
    model = FunctionModel(lambda x, is_train: L.batch_norm(x, is_test=is_test, momentum=0.5))
    np.testing.assert_allclose(model(x).numpy(), x.numpy(), rtol=1e-4)
    is_test = False
    model.eval()
    axes = (0,) if rank == 2 else (0, 2, 3)
    np.testing.assert_allclose(model(x).numpy().mean(axes), 0, atol=1e-5)
    np.testing.assert_allclose(model.batch_norm_0._mean.numpy(), x.numpy().mean(axes) / 2, rtol=1e-4)


REFUSED = [
    (lambda x: L.conv2d(x, 4, 3, act="mish"), "act"),
    (lambda x: L.conv2d(x, 4, 3, data_format="CHWN"), "'NHWC'"),
    (lambda x: L.conv2d_transpose(x, 4), "filter_size or output_size"),
    (lambda x: L.fc([x, x], 4, param_attr=[None]), "2 inputs"),
    (lambda x: L.prelu(x, "row"), "'element'"),
    (lambda x: L.batch_norm(x[0, 0, 0]), "at least 2"),
    (lambda x: L.instance_norm(x.flatten(1)), "3 to 5"),
]


@pytest.mark.parametrize("call, words", REFUSED)
def test_bad_arguments_are_refused(call, words):
    with pytest.raises(PlscError, match=words):
        FunctionModel(lambda x, is_train: call(x))(to_tensors(X))
