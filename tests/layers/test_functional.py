"""Functions without parameters, compared with NumPy in float64 or, for interpolation, with plain loops."""

import math

import numpy as np
import paddle
import pytest
from function_model import random_array, to_tensors

from plsc import layers as L
from plsc.errors import PlscError

pytestmark = pytest.mark.core

X = random_array(2, 3, 4, 5)
Y = random_array(2, 3, 4, 5, seed=1, positive=True)
WHOLE, DIVISOR = np.array([7, -7, 9]), np.array([2, 2, -4])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.02 * x),
    "elu": lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
    "sigmoid": sigmoid,
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "tanh": np.tanh,
    "swish": lambda x: x * sigmoid(x),
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "softmax": softmax,
    "exp": np.exp,
    "square": np.square,
    "abs": np.abs,
    "softplus": lambda x: np.log1p(np.exp(x)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_as_functions_and_as_act(name):
    x = X * 4
    for result in (getattr(L, name)(to_tensors(x)), L.scale(to_tensors(x), act=name)):
        np.testing.assert_allclose(result.numpy(), ACTIVATIONS[name](x), rtol=1e-4, atol=1e-6)


def resized(x, size, source):
    """Interpolates bilinearly; `source(i, old, new)` is the place of pixel i of `new` among the pixels of `old`."""
    for axis in (2, 3):
        old, new = x.shape[axis], size[axis - 2]
        at = np.clip([source(i, old, new) for i in range(new)], 0, old - 1)
        low = np.floor(at).astype(int)
        high, part = np.minimum(low + 1, old - 1), (at - low).reshape([-1] + [1] * (3 - axis))
        x = np.take(x, low, axis) * (1 - part) + np.take(x, high, axis) * part
    return x


def windows(x, size, stride, reduce):
    """Applies `reduce` to each window of a map."""
    rows, columns = ((n - size) // stride + 1 for n in x.shape[2:])
    cut = [
        [
            reduce(x[:, :, i * stride : i * stride + size, j * stride : j * stride + size], (2, 3))
            for j in range(columns)
        ]
        for i in range(rows)
    ]
    return np.moveaxis(np.array(cut), (0, 1), (2, 3))


padded = np.pad(X, ((0, 0), (0, 0), (1, 1), (1, 1)))
counts = windows(np.pad(np.ones_like(X), ((0, 0), (0, 0), (1, 1), (1, 1))), 3, 1, np.sum)
NHWC = X.transpose(0, 2, 3, 1)

CASES = {
    "leaky_relu": (lambda: L.leaky_relu(to_tensors(X), 0.3), np.where(X > 0, X, 0.3 * X)),
    "relu6": (lambda: L.relu6(to_tensors(X), 0.5), np.clip(X, 0, 0.5)),
    "swish": (lambda: L.swish(to_tensors(X), 2.0), X * sigmoid(2 * X)),
    "hard_swish": (lambda: L.hard_swish(to_tensors(X), 2.0, 4.0, 1.0), X * np.clip(X + 1, 0, 2) / 4),
    "softmax": (lambda: L.softmax(to_tensors(X), axis=1), softmax(X, 1)),
    "sqrt": (lambda: L.sqrt(to_tensors(Y)), np.sqrt(Y)),
    "add": (lambda: L.elementwise_add(*to_tensors(X, Y), act="relu"), np.maximum(X + Y, 0)),
    "add axis": (lambda: L.elementwise_add(*to_tensors(X, Y[0, :, 0, 0]), axis=1), X + Y[0, :, 0, 0][:, None, None]),
    "mul axis": (lambda: L.elementwise_mul(*to_tensors(X, Y[:, :, 0, 0]), axis=0), X * Y[:, :, :1, :1]),
    "mul ones": (lambda: L.elementwise_mul(*to_tensors(X, Y[0, :, :1, 0]), axis=1), X * Y[0, :, :1, :1]),
    "sub last": (lambda: L.elementwise_sub(*to_tensors(X, Y[0, 0])), X - Y[0, 0]),
    "sub number": (lambda: L.elementwise_sub(to_tensors(X), 2.0), X - 2),
    "div": (lambda: L.elementwise_div(*to_tensors(X, Y)), X / Y),
    "div whole": (lambda: L.elementwise_div(paddle.to_tensor(WHOLE), paddle.to_tensor(DIVISOR)), [3, -3, -2]),
    "max": (lambda: L.elementwise_max(*to_tensors(X, Y)), np.maximum(X, Y)),
    "min": (lambda: L.elementwise_min(*to_tensors(X, Y)), np.minimum(X, Y)),
    "pow": (lambda: L.elementwise_pow(*to_tensors(Y, X)), Y**X),
    "mod": (lambda: L.elementwise_mod(paddle.to_tensor(WHOLE), paddle.to_tensor(DIVISOR)), WHOLE % DIVISOR),
    "floordiv": (lambda: L.elementwise_floordiv(paddle.to_tensor(WHOLE), paddle.to_tensor(DIVISOR)), [3, -3, -2]),
    "scale": (lambda: L.scale(to_tensors(X), 2.0, 1.0), 2 * X + 1),
    "scale before": (lambda: L.scale(to_tensors(X), 2.0, 1.0, bias_after_scale=False), 2 * (X + 1)),
    "clip": (lambda: L.clip(to_tensors(X), -0.5, 0.3), np.clip(X, -0.5, 0.3)),
    "matmul": (lambda: L.matmul(*to_tensors(X, Y), transpose_y=True, alpha=0.5), 0.5 * X @ Y.swapaxes(-1, -2)),
    "matmul x": (lambda: L.matmul(*to_tensors(X, Y), transpose_x=True), X.swapaxes(-1, -2) @ Y),
    "mul": (
        lambda: L.mul(*to_tensors(X, Y.reshape(4, 5, 6)), x_num_col_dims=2, y_num_col_dims=2),
        (X.reshape(6, 20) @ Y.reshape(20, 6)).reshape(2, 3, 6),
    ),
    "l2": (lambda: L.l2_normalize(to_tensors(X), 1), X / np.sqrt((X**2).sum(1, keepdims=True) + 1e-12)),
    "l2 epsilon": (lambda: L.l2_normalize(to_tensors(X), None, 0.5), X / np.sqrt((X**2).sum(1, keepdims=True) + 0.5)),
    "l2 flat": (lambda: L.l2_normalize(to_tensors(X.ravel()), 5), X.ravel() / np.linalg.norm(X)),
    "concat": (lambda: L.concat(to_tensors(X, Y)), np.concatenate([X, Y])),
    "concat axis": (lambda: L.concat(to_tensors(X, Y), 1), np.concatenate([X, Y], 1)),
    "stack": (lambda: L.stack(to_tensors(X, Y), 1), np.stack([X, Y], 1)),
    "split": (lambda: L.split(to_tensors(X), [1, 3, -1])[1], X[..., 1:4]),
    "split number": (lambda: L.split(to_tensors(X), 2, dim=2)[1], X[:, :, 2:]),
    "reshape": (lambda: L.reshape(to_tensors(X), [0, -1, 10], act="relu"), np.maximum(X.reshape(2, 6, 10), 0)),
    "reshape actual": (lambda: L.reshape(to_tensors(X), [1, 1], actual_shape=[6, 20]), X.reshape(6, 20)),
    "transpose": (lambda: L.transpose(to_tensors(X), [0, 3, 1, 2]), X.transpose(0, 3, 1, 2)),
    "flatten": (lambda: L.flatten(to_tensors(X)), X.reshape(2, 60)),
    "flatten 0": (lambda: L.flatten(to_tensors(X), 0), X.reshape(1, 120)),
    "flatten 2": (lambda: L.flatten(to_tensors(X), 2), X.reshape(6, 20)),
    "flatten 4": (lambda: L.flatten(to_tensors(X), 4), X.reshape(120, 1)),
    "squeeze": (lambda: L.squeeze(to_tensors(X[:1, :, :1]), [0]), X[0, :, :1]),
    "squeeze all": (lambda: L.squeeze(to_tensors(X[:1, :, :1]), []), X[0, :, 0]),
    "unsqueeze": (lambda: L.unsqueeze(to_tensors(X), [0, 3]), X[None, :, :, None]),
    "cast": (lambda: L.cast(to_tensors(X), "int32"), X.astype("int32")),
    "sum": (lambda: L.reduce_sum(to_tensors(X)), [X.sum()]),
    "sum dim": (lambda: L.reduce_sum(to_tensors(X), dim=[1, -1], keep_dim=True), X.sum((1, 3), keepdims=True)),
    "mean": (lambda: L.reduce_mean(to_tensors(X), dim=1), X.mean(1)),
    "mean all": (lambda: L.mean(to_tensors(X)), [X.mean()]),
    "max dim": (lambda: L.reduce_max(to_tensors(X), dim=-1), X.max(-1)),
    "min dim": (lambda: L.reduce_min(to_tensors(X), dim=0), X.min(0)),
    "prod": (lambda: L.reduce_prod(to_tensors(Y), dim=[2]), Y.prod(2)),
    "all": (lambda: L.reduce_all(to_tensors(X) > -1, dim=3), (X > -1).all(3)),
    "any": (lambda: L.reduce_any(to_tensors(X) > 1, dim=3), (X > 1).any(3)),
    "pool max": (lambda: L.pool2d(to_tensors(X), 2), windows(X, 2, 1, np.max)),
    "pool stride": (lambda: L.pool2d(to_tensors(X), [2, 2], "avg", 2), windows(X, 2, 2, np.mean)),
    "pool inclusive": (
        lambda: L.pool2d(to_tensors(X), 3, "avg", 1, 1, exclusive=False),
        windows(padded, 3, 1, np.mean),
    ),
    "pool exclusive": (lambda: L.pool2d(to_tensors(X), 3, "avg", 1, 1), windows(padded, 3, 1, np.sum) / counts),
    "pool same": (lambda: L.pool2d(to_tensors(X), 3, "avg", 1, "SAME"), windows(padded, 3, 1, np.sum) / counts),
    "pool ceil": (
        lambda: L.pool2d(to_tensors(X), 2, pool_stride=2, ceil_mode=True)[..., 2:],
        X.reshape(2, 3, 2, 2, 5).max(3)[..., 4:],
    ),
    "pool global": (
        lambda: L.pool2d(to_tensors(X), pool_type="avg", global_pooling=True),
        X.mean((2, 3), keepdims=True),
    ),
    "pool global max": (lambda: L.pool2d(to_tensors(X), global_pooling=True), X.max((2, 3), keepdims=True)),
    "pool NHWC": (
        lambda: L.pool2d(to_tensors(NHWC), 2, "avg", data_format="NHWC"),
        windows(X, 2, 1, np.mean).transpose(0, 2, 3, 1),
    ),
    "pool global NHWC": (
        lambda: L.pool2d(to_tensors(NHWC), global_pooling=True, data_format="NHWC"),
        NHWC.max((1, 2), keepdims=True),
    ),
    "adaptive max": (lambda: L.adaptive_pool2d(to_tensors(X), [2, 1]), X.reshape(2, 3, 2, 10).max(-1, keepdims=True)),
    "adaptive avg": (
        lambda: L.adaptive_pool2d(to_tensors(X), [2, 1], "avg"),
        X.reshape(2, 3, 2, 10).mean(-1, keepdims=True),
    ),
    "adaptive index": (
        lambda: L.adaptive_pool2d(to_tensors(X), 1, require_index=True)[1].flatten(2),
        X.reshape(2, 3, 20).argmax(2)[..., None],
    ),
    "pad": (
        lambda: L.pad2d(to_tensors(X), [1, 0, 2, 3], pad_value=7),
        np.pad(X, ((0, 0), (0, 0), (1, 0), (2, 3)), constant_values=7),
    ),
    "pad reflect": (
        lambda: L.pad2d(to_tensors(X), [1, 1, 1, 1], "reflect"),
        np.pad(X, ((0, 0), (0, 0), (1, 1), (1, 1)), "reflect"),
    ),
    "pad edge": (
        lambda: L.pad2d(to_tensors(X), [1, 1, 1, 1], "edge"),
        np.pad(X, ((0, 0), (0, 0), (1, 1), (1, 1)), "edge"),
    ),
    "resize corners": (
        lambda: L.image_resize(to_tensors(X), [7, 9]),
        resized(X, (7, 9), lambda i, n, m: i * (n - 1) / (m - 1)),
    ),
    "resize edges": (
        lambda: L.resize_bilinear(to_tensors(X), [7, 9], align_corners=False),
        resized(X, (7, 9), lambda i, n, m: i * n / m),
    ),
    "resize middles": (
        lambda: L.image_resize(to_tensors(X), scale=1.3, align_corners=False, align_mode=0),
        resized(X, (5, 6), lambda i, n, m: (i + 0.5) * n / m - 0.5),
    ),
    "resize nearest": (
        lambda: L.resize_nearest(to_tensors(X), [7, 3]),
        X[:, :, [math.floor(i * 3 / 6 + 0.5) for i in range(7)]][..., [0, 2, 4]],
    ),
    "resize nearest edges": (
        lambda: L.image_resize(to_tensors(X), resample="NEAREST", actual_shape=[2, 10], align_corners=False),
        X[:, :, [0, 2]].repeat(2, 3),
    ),
    "one hot": (lambda: L.one_hot(paddle.to_tensor([[1], [0]]), 3), [[0, 1, 0], [1, 0, 0]]),
    "one hot flat": (lambda: L.one_hot(paddle.to_tensor([1, 7]), 3, allow_out_of_range=True), [[0, 1, 0], [0, 0, 0]]),
}


@pytest.mark.parametrize("name", CASES)
def test_against_numpy(name):
    call, expected = CASES[name]
    result = call()
    assert list(result.shape) == list(np.shape(expected))
    np.testing.assert_allclose(result.numpy(), expected, rtol=2e-5, atol=1e-5)


def test_dropout():
    x = paddle.ones([4000])
    for implementation, train, test in (("downgrade_in_infer", 1.0, 0.75), ("upscale_in_train", 1 / 0.75, 1.0)):
        options = {"dropout_implementation": implementation} if implementation != "downgrade_in_infer" else {}
        np.testing.assert_allclose(L.dropout(x, 0.25, is_test=True, **options).numpy(), test)
        for seed in (None, 5):
            values, number = np.unique(L.dropout(x, 0.25, seed=seed, **options).numpy(), return_counts=True)
            np.testing.assert_allclose(values, [0, train], rtol=1e-6)
            assert 0.2 < number[0] / 4000 < 0.3
        again = [L.dropout(x, 0.25, seed=5, **options).numpy() for _ in range(2)]
        np.testing.assert_array_equal(*again)
    assert (L.dropout(x, 0.25).numpy() != L.dropout(x, 0.25).numpy()).any()


P, LABELS = softmax(random_array(4, 3)), np.array([2, 0, -100, 1])
HARD = -np.log(P[range(4), LABELS % 3])[:, None] * (LABELS >= 0)[:, None]
SOFT = softmax(random_array(4, 3, seed=2))


@pytest.mark.parametrize("label", [LABELS, LABELS[:, None]])
def test_losses_of_labels(label):
    label = paddle.to_tensor(label)
    for loss in (
        L.cross_entropy(to_tensors(P), label),
        L.softmax_with_cross_entropy(to_tensors(np.log(P)), label),
        L.cross_entropy(to_tensors(P), paddle.where(label < 0, label * 0 + 7, label), ignore_index=7),
    ):
        np.testing.assert_allclose(loss.numpy(), HARD, rtol=1e-5, atol=1e-6)
    loss, probability = L.softmax_with_cross_entropy(to_tensors(np.log(P)), label, return_softmax=True)
    np.testing.assert_allclose(probability.numpy(), P, rtol=1e-5)
    assert L.accuracy(to_tensors(P), label.clip(0)).shape == [1]


def test_losses_of_distributions_and_of_ignored_labels():
    expected = -(SOFT * np.log(P)).sum(1, keepdims=True)
    for loss in (
        L.cross_entropy(to_tensors(P), to_tensors(SOFT), soft_label=True),
        L.softmax_with_cross_entropy(to_tensors(np.log(P)), to_tensors(SOFT), soft_label=True),
        L.softmax_with_cross_entropy(to_tensors(np.log(P).T), to_tensors(SOFT.T), soft_label=True, axis=0).transpose(
            [1, 0]
        ),
    ):
        np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5)
    assert L.cross_entropy(to_tensors([[0.0, 1.0]]), paddle.to_tensor([0])).numpy()[0, 0] == pytest.approx(1e20)


def test_accuracy():
    scores, labels = to_tensors([[3, 2, 1], [1, 2, 3], [1, 3, 2], [2, 1, 3]]), paddle.to_tensor([0, 1, 0, 2])
    assert [L.accuracy(scores, labels, k=k).item() for k in (1, 2, 3)] == [0.5, 0.75, 1.0]


REFUSED = [
    (lambda x: L.scale(x, act="mish"), "act='mish'.*relu6"),
    (lambda x: L.pool2d(x), "pool_size"),
    (lambda x: L.pool2d(x, 2, "sum"), "'max' or 'avg'"),
    (lambda x: L.adaptive_pool2d(x, 2, "avg", require_index=True), "require_index"),
    (lambda x: L.pad2d(x, mode="wrap"), "'edge'"),
    (lambda x: L.image_resize(x), "out_shape or scale"),
    (lambda x: L.image_resize(x, [3, 3], resample="CUBIC"), "'NEAREST'"),
    (lambda x: L.flatten(x, 5), "0 to 4"),
    (lambda x: L.dropout(x, 0.5, dropout_implementation="scale"), "upscale_in_train"),
    (lambda x: L.accuracy(x, x, correct=x), "correct="),
]


@pytest.mark.parametrize("call, words", REFUSED)
def test_bad_arguments_are_refused(call, words):
    with pytest.raises(PlscError, match=words):
        call(to_tensors(X))
