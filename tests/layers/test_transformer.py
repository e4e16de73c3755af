"""The linear layer, GELU and layer normalisation for a CPU, compared with Paddle's and with NumPy in float64."""

import functools
import math

import numpy as np
import paddle
import pytest
from function_model import random_array
from paddle import nn

from plsc import amp
from plsc.layers import transformer
from plsc.layers.gradients import HAS_GRADIENTS
from plsc.layers.transformer import GELU, LayerNorm, Linear
from plsc.machine import onednn, onednn_layers

pytestmark = pytest.mark.core
trains = pytest.mark.skipif(not HAS_GRADIENTS, reason="with Paddle 2.6, training keeps Paddle's own")
needs_onednn = pytest.mark.skipif(onednn.library() is None, reason="Paddle carries no oneDNN for this processor")
EPSILON = 1e-3
LAYERS = {
    "linear": (lambda: Linear(7, 4), lambda: nn.Linear(7, 4), {"matmul", "linear"}),
    "gelu": (GELU, nn.GELU, {"gelu"}),
    "layer norm": (lambda: LayerNorm(7, EPSILON), lambda: nn.LayerNorm(7, EPSILON), {"layer_norm"}),
    "layer norm of two axes": (lambda: LayerNorm([3, 7]), lambda: nn.LayerNorm([3, 7]), {"layer_norm"}),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def pair(name, by_one_operator=False):
    """A layer of plsc and Paddle's with the same random weights."""
    ours, theirs = (make() for make in LAYERS[name][:2])
    state = {
        key: paddle.to_tensor(random_array(*value.shape, seed=3).astype("float32"))
        for key, value in theirs.state_dict().items()
    }
    assert list(ours.state_dict()) == list(state)
    for layer in (ours, theirs):
        layer.set_state_dict(state)
    if "norm" in name and not by_one_operator:
        theirs.__class__ = PlainLayerNorm
    return ours, theirs


class PlainLayerNorm(nn.LayerNorm):
    """Paddle's own ignores the weight in the gradient of the input where nobody wants the weight's gradient."""

    def forward(self, input):
        normalised = nn.functional.layer_norm(input, self._normalized_shape, None, None, self._epsilon)
        return normalised * self.weight.reshape(self._normalized_shape) + self.bias.reshape(self._normalized_shape)


def inputs(*shape):
    return random_array(*shape, seed=1).astype("float32"), random_array(*shape, seed=2).astype("float32")


def numbers_of(layer, x, x_is_trained=True):
    """The output, and the gradients of a sum of cubes of the output."""
    x = paddle.to_tensor(x, stop_gradient=not x_is_trained)
    layer.clear_gradients()
    y = layer(x)
    (y**3).sum().backward()
    trained = [one for one in (x, *layer.parameters()) if not one.stop_gradient]
    return [y.numpy(), *(one.grad.numpy() for one in trained)]


def assert_near(found, expected, tolerance=2e-6):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.fixture(autouse=True)
def large_enough(monkeypatch):
    """Lets oneDNN compute small linear layers too."""
    monkeypatch.setattr(transformer, "_FEWEST_OUTPUTS", 1)


@pytest.fixture
def counted(monkeypatch):
    """The names of the kernels that run."""
    calls = []

    def count(kind, name):
        original = getattr(kind, name)

        @functools.wraps(original)
        def run(*arguments):
            calls.append((kind.__name__, name))
            return original(*arguments)

        monkeypatch.setattr(kind, name, run)

    for kind, name in (
        ("Affine", "output"),
        ("Gelu", "output"),
        ("Gelu", "gradient"),
        ("LayerNorm", "output"),
        ("LayerNorm", "gradients"),
    ):
        count(getattr(onednn_layers, kind), name)
    return calls


@trains
@each_layer
@pytest.mark.parametrize("shape", [(2, 3, 7), (5, 3, 7), (1, 1, 3, 7)])
@pytest.mark.parametrize("frozen", ["nothing", "input", "weight", "bias", "input and weight"])
def test_outputs_and_gradients_are_those_of_paddle(name, shape, frozen):
    if name == "gelu" and frozen != "nothing":
        pytest.skip("it has one input")
    layers = pair(name)
    for layer in layers:
        for part in ("weight", "bias"):
            if part in frozen:
                getattr(layer, part).stop_gradient = True
    found, expected = (numbers_of(layer, inputs(*shape)[0], "input" not in frozen) for layer in layers)
    assert_near(found, expected)


@pytest.mark.parametrize("frozen", ["nothing", "input", "weight", "bias"])
def test_with_paddle_2_the_gradient_of_a_bias_is_a_product(monkeypatch, counted, frozen):
    layers = pair("linear")
    for layer in layers:
        for part in ("weight", "bias"):
            getattr(layer, part).stop_gradient = part == frozen
    x = inputs(5, 3, 7)[0]
    expected = numbers_of(layers[1], x, frozen != "input")
    monkeypatch.setattr(transformer, "HAS_GRADIENTS", False)
    monkeypatch.delattr(nn.functional, "linear")
    assert_near(numbers_of(layers[0], x, frozen != "input"), expected)
    assert not counted


@pytest.mark.parametrize("case", ["no oneDNN", "rounded"])
def test_a_frozen_weight_of_layer_norm_counts_in_the_gradient_of_the_input(monkeypatch, case):
    layers = pair("layer norm")
    for layer in layers:
        layer.weight.stop_gradient = True
    if case == "no oneDNN":
        monkeypatch.setenv("PLSC_ONEDNN", "0")
    with amp._simulated("bfloat16", {"layer_norm"}) if case == "rounded" else paddle.enable_grad():
        found, expected = (numbers_of(layer, inputs(4, 3, 7)[0]) for layer in layers)
    assert_near(found, expected, 2e-2 if case == "rounded" else 2e-6)


@each_layer
def test_without_gradients_the_numbers_are_the_same(name):
    ours, theirs = pair(name)
    with paddle.no_grad():
        x = paddle.to_tensor(inputs(4, 3, 7)[0])
        assert_near([ours(x).numpy()], [theirs(x).numpy()])


@trains
@needs_onednn
def test_onednn_computes_forwards_and_backwards(counted):
    for name in ("linear", "gelu", "layer norm"):
        numbers_of(pair(name)[0], inputs(4, 3, 7)[0])
    gelu, layer_norm = [("Gelu", "output"), ("Gelu", "gradient")], [("LayerNorm", "output"), ("LayerNorm", "gradients")]
    assert counted == [("Affine", "output"), *gelu, *layer_norm]


def test_the_bias_of_a_small_linear_layer_is_added_by_paddle(monkeypatch, counted):
    monkeypatch.setattr(transformer, "_FEWEST_OUTPUTS", 4 * 3 * 4 + 1)
    found, expected = (numbers_of(layer, inputs(4, 3, 7)[0]) for layer in pair("linear"))
    assert_near(found, expected)
    assert np.array_equal(found[0], expected[0]) and not counted


@pytest.mark.parametrize("value", ["0", "off"])
def test_the_switch_leaves_them_to_paddle(monkeypatch, counted, value):
    monkeypatch.setenv("PLSC_ONEDNN", value)
    for name in ("linear", "gelu", "layer norm"):
        found, expected = (numbers_of(layer, inputs(4, 3, 7)[0]) for layer in pair(name, True))
        assert_near(found, expected)
        assert np.array_equal(found[0], expected[0])
    assert not counted


@each_layer
def test_paddle_computes_other_precisions(counted, name):
    ours, theirs = pair(name, by_one_operator=True)
    x = inputs(4, 3, 7)[0]
    with amp._simulated("bfloat16", LAYERS[name][2]):
        found, expected = (numbers_of(layer, x) for layer in (ours, theirs))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected))
    doubles = [layer.to(dtype="float64")(paddle.to_tensor(x.astype("float64"))).numpy() for layer in (ours, theirs)]
    assert np.array_equal(*doubles) and not counted


def test_variants_that_onednn_does_not_compute_are_paddles(counted):
    x = paddle.to_tensor(inputs(4, 3, 7)[0])
    assert np.array_equal(GELU(approximate=True)(x).numpy(), nn.functional.gelu(x, True).numpy())
    plain = Linear(7, 4, bias_attr=False)
    assert np.array_equal(plain(x).numpy(), paddle.matmul(x, plain.weight).numpy())
    with pytest.raises(ValueError, match="mul"):
        Linear(6, 4)(x)
    plain = {"weight_attr": False, "bias_attr": False}
    assert np.array_equal(LayerNorm(7, **plain)(x).numpy(), nn.LayerNorm(7, **plain)(x).numpy())
    with pytest.raises(ValueError, match="normalized_shape"):
        LayerNorm(6)(x)
    assert not counted


@each_layer
def test_an_empty_batch_passes(name):
    if name == "linear" and not HAS_GRADIENTS:
        pytest.skip("Paddle 2.6 refuses it")
    assert pair(name)[0](paddle.zeros([0, 3, 7])).shape[:2] == [0, 3]


@needs_onednn
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_layer_norm_is_as_near_to_numpy_in_float64_as_paddles(offset):
    ours, theirs = pair("layer norm")
    x, gradient = inputs(50, 3, 7)
    x += np.float32(offset)
    weight, bias = ours.weight.numpy().astype("float64"), ours.bias.numpy().astype("float64")
    rows = x.astype("float64")
    scale = 1 / np.sqrt(rows.var(-1, keepdims=True) + EPSILON)
    normal, weighted = (rows - rows.mean(-1, keepdims=True)) * scale, gradient * weight
    means = weighted.mean(-1, keepdims=True) + normal * (weighted * normal).mean(-1, keepdims=True)
    exact = [normal * weight + bias, scale * (weighted - means), (gradient * normal).sum((0, 1)), gradient.sum((0, 1))]
    errors = []
    for layer in (ours, theirs):
        source = paddle.to_tensor(x, stop_gradient=False)
        y = layer(source)
        y.backward(paddle.to_tensor(gradient))
        found = [y, source.grad, layer.weight.grad, layer.bias.grad]
        errors.append([np.abs(one.numpy() - other).max() / np.abs(other).max() for one, other in zip(found, exact)])
    for our, their in zip(*errors):
        assert our < max(2 * their, 2e-6)


@needs_onednn
def test_gelu_is_that_of_numpy_in_float64_over_the_whole_range():
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -0.0, 1e-30, -1e-30, 100.0, -100.0]]).astype("float32")
    double = x.astype("float64")
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in double])
    source = paddle.to_tensor(x, stop_gradient=False)
    y = GELU()(source)
    y.sum().backward()
    np.testing.assert_allclose(y.numpy(), double * below, atol=1e-6, rtol=1e-6)
    slope = below + double * np.exp(-(double**2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(source.grad.numpy(), slope, atol=1e-6)


@needs_onednn
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["linear", "gelu", "layer norm"])
def test_what_is_not_finite_stays_visible(name, bad):
    layer = pair(name)[0]
    x, gradient = inputs(4, 3, 7)
    x[1, 2, 3] = bad
    assert not np.isfinite(layer(paddle.to_tensor(x)).numpy()[1, 2]).all()
    source = paddle.to_tensor(inputs(4, 3, 7)[0], stop_gradient=False)
    y = layer(source)
    gradient = np.ones(y.shape, "float32")
    gradient[1, 2, 3] = bad
    y.backward(paddle.to_tensor(gradient))
    assert not np.isfinite(source.grad.numpy()[1, 2]).all() and np.isfinite(source.grad.numpy()[0]).all()


@trains
@each_layer
def test_paddle_grad_gives_the_gradients_it_is_asked_for_more_than_once(name):
    ours, theirs = pair(name)
    results = []
    for layer in (ours, theirs):
        x = paddle.to_tensor(inputs(4, 3, 7)[0], stop_gradient=False)
        loss = (layer(x) ** 2).sum()
        asked = [x, *layer.parameters()]
        alone = [paddle.grad(loss, one, retain_graph=True)[0].numpy() for one in asked]
        results.append([*alone, *(one.numpy() for one in paddle.grad(loss, asked, retain_graph=True))])
    assert_near(*results)


@trains
@each_layer
def test_second_derivatives_are_those_of_finite_differences(name):
    layer = pair(name)[0]
    x, direction = inputs(2, 3, 7)

    def first(values, **options):
        source = paddle.to_tensor(values, stop_gradient=False)
        asked = [source, *layer.parameters()]
        return source, paddle.grad((layer(source) ** 3).sum(), asked, **options)

    source, slopes = first(x, create_graph=True)
    weights = [paddle.to_tensor(random_array(*one.shape, seed=5).astype("float32")) for one in slopes]
    found = paddle.grad(sum((one * weight).sum() for one, weight in zip(slopes, weights)), source)[0].numpy()
    step, ends = 1e-2, []
    for sign in (1, -1):
        moved = first(x + np.float32(sign * step) * direction)[1]
        ends.append(sum(float((one * weight).sum()) for one, weight in zip(moved, weights)))
    expected = (ends[0] - ends[1]) / (2 * step)
    assert float((found * direction).sum()) == pytest.approx(expected, rel=2e-2)


@trains
@each_layer
def test_values_that_are_gone_give_no_gradients(name):
    layer = pair(name)[0]
    x = paddle.to_tensor(inputs(4, 3, 7)[0], stop_gradient=False)
    hidden = x * 2
    y = layer(hidden)
    hidden.add_(paddle.ones([1]))
    with pytest.raises(Exception, match="in place"):
        y.sum().backward()


@trains
@each_layer
def test_the_same_arguments_give_the_same_bits(name):
    layer = pair(name)[0]
    first, second = (numbers_of(layer, inputs(40, 3, 7)[0]) for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, second))


@each_layer
def test_a_program_holds_paddles_operators(tmp_path, name):
    ours, theirs = pair(name)
    x = paddle.to_tensor(inputs(4, 3, 7)[0])
    for layer in (ours, theirs):
        layer.eval()
    program = paddle.jit.to_static(ours, input_spec=[paddle.static.InputSpec([None, 3, 7], "float32")], full_graph=True)
    assert_near([program(x).numpy()], [theirs(x).numpy()])
