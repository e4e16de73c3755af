"""PReLU on a CPU, compared with Paddle's own operator and with NumPy in float64."""

import numpy as np
import paddle
import pytest
from function_model import random_array

from plsc import amp
from plsc.layers import slopes as slopes_module
from plsc.layers.gradients import HAS_GRADIENTS, apply
from plsc.layers.kernels import VARIABLE
from plsc.layers.slopes import PReLU, prelu

pytestmark = pytest.mark.core


def numbers_of(function, x, slopes, gradient):
    """The output of `function` and the gradients of x and of the slopes."""
    x, slopes = (paddle.to_tensor(array, stop_gradient=False) for array in (x, slopes))
    y = function(x, slopes)
    y.backward(paddle.to_tensor(gradient))
    return y.numpy(), x.grad.numpy(), slopes.grad.numpy()


@pytest.mark.parametrize("shape, count", [((3, 5, 4, 6), 5), ((3, 5, 4, 6), 1), ((4, 7), 7), ((1, 1, 3, 3), 1)])
@pytest.mark.parametrize("switch", ["1", "0"])
def test_outputs_and_gradients_are_those_of_paddle(monkeypatch, shape, count, switch):
    monkeypatch.setenv(VARIABLE, switch)
    calls = []
    monkeypatch.setattr(slopes_module, "apply", lambda *given: calls.append(given) or apply(*given))
    x, gradient = (random_array(*shape, seed=seed).astype("float32") for seed in (0, 1))
    x.flat[:3] = 0.0, -0.0, 1e-40  # at 0 the gradient is the slope's
    slopes = np.array([0.25, -0.5, 0.0, 1.5, 1.0, 0.1, 2.0][:count], "float32")
    y, of_x, of_slopes = numbers_of(prelu, x, slopes, gradient)
    assert len(calls) == (switch == "1" and HAS_GRADIENTS)
    expected = numbers_of(paddle.nn.functional.prelu, x, slopes, gradient)
    assert np.array_equal(y, expected[0]) and np.array_equal(of_x, expected[1])
    parts = np.where(x > 0, 0.0, x.astype("float64") * gradient).sum(axis=tuple(n for n in range(x.ndim) if n != 1))
    assert of_slopes.shape == expected[2].shape
    np.testing.assert_allclose(of_slopes, parts if count > 1 else [parts.sum()], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible(bad):
    x = np.ones((2, 3, 2, 2), "float32")
    x[1, 2, 0, 1] = bad
    y = prelu(paddle.to_tensor(x), paddle.full([3], 0.25)).numpy()
    assert not np.isfinite(y[1, 2, 0, 1]) and np.isfinite(y).sum() == y.size - 1
    gradient = np.ones_like(x)
    gradient[0, 1, 1, 0] = bad
    _, of_x, _ = numbers_of(prelu, np.ones_like(x), np.full(3, 0.25, "float32"), gradient)
    assert not np.isfinite(of_x[0, 1, 1, 0])


def test_the_layer_has_the_parameter_of_paddles_and_an_empty_batch_passes():
    layer = PReLU(4)
    assert isinstance(layer, paddle.nn.PReLU) and list(layer.state_dict()) == ["_weight"]
    assert layer(paddle.zeros([0, 4, 3, 3])).shape == [0, 4, 3, 3]


@pytest.mark.parametrize("shape", [(2,), (3, 1), (1, 3, 1, 1)])
def test_paddle_refuses_slopes_of_another_shape(shape):
    with pytest.raises((AssertionError, ValueError)):
        prelu(paddle.zeros([2, 3, 2, 2]), paddle.zeros(shape))


def test_a_slope_without_axes_is_one_for_all_as_in_paddle():
    x = paddle.to_tensor([[-2.0, 4.0]], stop_gradient=False)
    y = prelu(x, paddle.full([], 0.25))
    y.sum().backward()
    assert y.tolist() == [[-0.5, 4.0]] and x.grad.tolist() == [[0.25, 1.0]]


def test_a_rounded_prelu_is_paddles(monkeypatch):
    """`plsc.amp` simulates the rounding of operators in Paddle's table, which must then be the one that runs."""
    monkeypatch.setattr("plsc.layers.slopes.apply", lambda function, x, slopes: "ours")
    x, slopes = paddle.zeros([1, 2, 2, 2]), paddle.zeros([2])
    assert prelu(x, slopes) == "ours"
    with amp._simulated("float16", {"prelu"}):
        assert prelu(x, slopes).shape == x.shape
    assert prelu(x.astype("float64"), slopes.astype("float64")).shape == x.shape


def formula(x, slopes):
    """PReLU by other operations: with Paddle's own, the gradient of the slopes alone crashes."""
    return paddle.where(x > 0, x, x * slopes.reshape([1, -1, 1, 1]))


@pytest.mark.skipif(not HAS_GRADIENTS, reason="Paddle's operator computes what needs gradients")
@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("count", [1, 3])
def test_a_view_and_what_is_frozen_change_nothing_for_the_others(frozen, count):
    arrays = [random_array(*shape, seed=3).astype("float32") for shape in ((2, 4, 5, 3), (count,))]
    results = []
    for f in (prelu, formula):
        inputs = [paddle.to_tensor(array, stop_gradient=False) for array in arrays]
        inputs[frozen].stop_gradient = True
        y = f(inputs[0].transpose([0, 3, 1, 2]), inputs[1])
        (y**2).sum().backward()
        assert inputs[frozen].grad is None
        results.append((y.numpy(), inputs[1 - frozen].grad.numpy()))
    for one, other in zip(*results):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.skipif(not HAS_GRADIENTS, reason="Paddle's operator computes what needs gradients")
@pytest.mark.parametrize("wanted", [[0], [1], [0, 1]])
def test_paddle_grad_gives_the_gradients_it_is_asked_for(wanted):
    inputs = [paddle.to_tensor(random_array(*shape, seed=1).astype("float32")) for shape in ((2, 3, 2, 2), (3,))]
    for one in inputs:
        one.stop_gradient = False
    asked = [inputs[number] for number in wanted]
    found, expected = (paddle.grad((f(*inputs) ** 2).sum(), asked) for f in (prelu, formula))
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5)


@pytest.mark.skipif(not HAS_GRADIENTS, reason="Paddle's operator has no second derivatives")
@pytest.mark.parametrize("count", [1, 3])
def test_second_derivatives_are_those_of_the_formula(count):
    arrays = [random_array(*shape, seed=2).astype("float32") for shape in ((2, 3, 2, 2), (count,))]
    results = []
    for f in (prelu, formula):
        inputs = [paddle.to_tensor(array, stop_gradient=False) for array in arrays]
        first = paddle.grad((f(*inputs) ** 3).sum(), inputs, create_graph=True)
        second = paddle.grad(sum((one**2).sum() for one in first), inputs)
        results.append([one.numpy() for one in second])
    for one, other in zip(*results):
        np.testing.assert_allclose(one, other, rtol=1e-4)
