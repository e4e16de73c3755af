import contextlib
import itertools
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paddle.nn.functional import conv2d

from plsc.inference.networks import embed_batch
from plsc.layers import convolution
from plsc.layers.convolution import fast_convolutions
from plsc.layers.gradients import HAS_GRADIENTS
from plsc.layers.kernels import VARIABLE
from plsc.layers.slopes import PReLU
from plsc.machine import onednn
from plsc.models import build_model
from plsc.models.base_model import build

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(onednn.library() is None, reason="Paddle carries no oneDNN for this processor"),
]
trains = pytest.mark.skipif(not HAS_GRADIENTS, reason="with Paddle 2.6, training keeps Paddle's own")


@pytest.fixture(scope="module", autouse=True)
def small_shapes():
    """Lets oneDNN take convolutions as small as those of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_FEWEST_PRODUCTS", "_FEWEST_PRODUCTS_DEPTHWISE", "_FEWEST_PLACES"):
            patch.setattr(convolution, name, 1)
        convolution._convolution.cache_clear()
        yield
    convolution._convolution.cache_clear()


@contextlib.contextmanager
def counted():
    """Yields a list that grows with each convolution of the block that oneDNN computes."""
    original, calls = convolution.apply, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "apply", lambda *arguments: calls.append(arguments) or original(*arguments))
        yield calls


def tensors(shapes, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    return [paddle.to_tensor(rng.standard_normal(shape).astype(dtype), stop_gradient=False) for shape in shapes]


def results(inputs, dtype="float32", **options):
    """Returns the convolution of `inputs` (image, weight, bias), and the gradients of the sum of its cubes."""
    inputs = [paddle.to_tensor(value.numpy().astype(dtype), stop_gradient=False) for value in inputs]
    output = conv2d(*inputs, **options)
    return [value.numpy() for value in (output, *paddle.grad((output**3).sum(), inputs))]


def naive(x, weight, stride, padding, dilation, groups):
    """The definition of a convolution, in float64."""
    x, weight = np.pad(x.astype("float64"), [(0, 0), (0, 0), *padding]), weight.astype("float64")
    n, _, height, width = x.shape
    outputs, channels, *window = weight.shape
    rows, columns = (
        (side - d * (size - 1) - 1) // step + 1
        for side, d, size, step in zip((height, width), dilation, window, stride)
    )
    result = np.zeros((n, outputs, rows, columns))
    for o, i, j in itertools.product(range(outputs), range(rows), range(columns)):
        first = o // (outputs // groups) * channels
        top, left = i * stride[0], j * stride[1]
        place = x[:, first : first + channels, top:, left:][:, :, :: dilation[0], :: dilation[1]]
        result[:, o, i, j] = (place[:, :, : window[0], : window[1]] * weight[o]).sum((1, 2, 3))
    return result


def assert_close(values, expected):
    for value, other in zip(values, expected):
        assert value.shape == other.shape
        np.testing.assert_allclose(value, other, rtol=0, atol=2e-5 * np.abs(other).max())


CASES = {
    "3x3": ([2, 16, 9, 8], [8, 16, 3, 3], {"padding": 1}),
    "stride": ([2, 8, 9, 8], [16, 8, 3, 3], {"padding": 1, "stride": 2}),
    "strides that differ": ([1, 8, 9, 8], [16, 8, 3, 2], {"stride": [1, 3]}),
    "dilation": ([2, 8, 11, 9], [8, 8, 3, 3], {"dilation": [2, 1], "padding": [2, 0]}),
    "padding on four sides": ([2, 8, 6, 7], [8, 8, 3, 3], {"padding": [0, 2, 1, 0]}),
    "SAME": ([2, 8, 7, 8], [8, 8, 3, 4], {"padding": "SAME", "stride": 2}),
    "VALID": ([2, 8, 7, 8], [8, 8, 5, 1], {"padding": "VALID"}),
    "groups": ([2, 32, 5, 5], [16, 16, 3, 3], {"groups": 2}),
    "depthwise": ([2, 16, 7, 7], [16, 1, 3, 3], {"groups": 16, "padding": 1, "stride": 2}),
    "global depthwise": ([3, 16, 7, 6], [16, 1, 7, 6], {"groups": 16}),
    "channels last": ([2, 9, 8, 16], [8, 16, 3, 3], {"padding": 1, "data_format": "NHWC"}),
    "depthwise, channels last": ([2, 9, 8, 16], [16, 1, 3, 3], {"groups": 16, "data_format": "NHWC"}),
    "odd channels": ([2, 9, 6, 6], [11, 9, 3, 3], {}),
    "many channels, whose weight gradient is a product": ([2, 256, 5, 5], [8, 256, 3, 3], {"padding": 1}),
}


@trains
@pytest.mark.parametrize("case", CASES)
def test_convolutions_and_gradients_equal_paddles_in_float64(case):
    image, weight, options = CASES[case]
    inputs = tensors([image, weight, weight[:1]])
    with counted() as calls, fast_convolutions():
        values = results(inputs, **options)
    assert calls
    assert_close(values, results(inputs, "float64", **options))


sizes = st.integers(1, 3)


@settings(max_examples=25)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([(8, 8, 1), (8, 24, 1), (16, 8, 2), (1, 1, 9), (1, 1, 16)]),
    st.tuples(sizes, sizes),
    st.tuples(sizes, sizes),
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)),
    st.tuples(sizes, sizes),
)
def test_any_geometry_follows_the_definition(image, channels, window, stride, padding, dilation):
    (n, height, width), (per_group, outputs, groups) = image, channels
    pads = (padding[:2], padding[2:])
    reach = [d * (size - 1) + 1 for d, size in zip(dilation, window)]
    if height + sum(pads[0]) < reach[0] or width + sum(pads[1]) < reach[1]:
        return
    x, weight = tensors([[n, per_group * groups, height, width], [outputs * groups, per_group, *window]])
    with paddle.no_grad(), fast_convolutions():
        output = conv2d(x, weight, stride=stride, padding=list(padding), dilation=dilation, groups=groups).numpy()
    assert_close([output], [naive(x.numpy(), weight.numpy(), stride, pads, dilation, groups)])


@trains
@pytest.mark.parametrize("wanted", [[0], [1], [0, 1], [1, 2]])
def test_paddle_grad_gives_the_gradients_it_is_asked_for(wanted):
    inputs = tensors([[2, 8, 6, 6], [8, 8, 3, 3], [8]])

    def gradients():
        return [value.numpy() for value in paddle.grad(conv2d(*inputs).exp().sum(), [inputs[i] for i in wanted])]

    with fast_convolutions():
        values = gradients()
    assert_close(values, gradients())


@trains
@pytest.mark.parametrize("wanted", [[0], [1], [0, 1]])
def test_second_derivatives_equal_finite_differences(wanted):
    def slopes(inputs, create_graph):
        """Returns a scalar that depends on gradients."""
        output = conv2d(*inputs, padding=1)
        first = paddle.grad((output**3).sum(), [inputs[i] for i in wanted], create_graph=create_graph)
        return sum((value**2).sum() for value in first)

    inputs = tensors([[1, 8, 4, 4], [8, 8, 3, 3]])
    with counted() as calls, fast_convolutions():
        seconds = paddle.grad(slopes(inputs, True), inputs)
    assert calls
    step = 1e-5
    for position, second in enumerate(seconds):
        exact = [paddle.to_tensor(value.numpy().astype("float64"), stop_gradient=False) for value in inputs]
        direction = tensors([exact[position].shape], seed=1, dtype="float64")[0]
        ends = []
        for sign in (1, -1):
            moved = list(exact)
            moved[position] = (exact[position] + sign * step * direction).detach()
            moved[position].stop_gradient = False
            ends.append(float(slopes(moved, False)))
        expected = (ends[0] - ends[1]) / (2 * step)
        assert float((second.astype("float64") * direction).sum()) == pytest.approx(expected, rel=1e-4)


@trains
def test_a_frozen_weight_or_image_gets_no_gradient():
    for frozen in (0, 1):
        inputs = tensors([[2, 8, 6, 6], [8, 8, 3, 3]])
        inputs[frozen].stop_gradient = True
        with counted() as calls, fast_convolutions():
            conv2d(*inputs).sum().backward()
        assert calls and inputs[frozen].grad is None and inputs[1 - frozen].grad is not None


@trains
def test_a_change_in_place_before_the_backward_pass_is_an_error():
    image, weight = tensors([[2, 8, 6, 6], [8, 8, 3, 3]])
    with fast_convolutions():
        x = image * 1
        output = conv2d(x, weight)
    x.add_(paddle.ones([1]))
    with pytest.raises(Exception, match="changed in place"):
        output.sum().backward()


def fallbacks():
    x, weight = tensors([[2, 8, 6, 6], [8, 8, 3, 3]])
    yield "float64", [x.astype("float64"), weight.astype("float64")], {}
    yield "1x1", [x, weight[:, :, :1, :1]], {}
    yield "few channels", [x[:, :3], weight[:, :3]], {}
    yield "few filters", [x, weight[:4]], {}


@pytest.mark.parametrize("case", [name for name, *_ in fallbacks()])
def test_paddle_computes_what_onednn_does_not(case):
    inputs, options = next((inputs, options) for name, inputs, options in fallbacks() if name == case)
    with paddle.no_grad():
        with counted() as calls, fast_convolutions():
            value = conv2d(*inputs, **options)
        assert not calls
        np.testing.assert_array_equal(value.numpy(), conv2d(*inputs, **options).numpy())


@pytest.mark.parametrize("image", [(0, 8, 6, 6), (2, 16, 6, 6), (2, 8, 2, 6)])
def test_paddle_decides_about_empty_batches_and_shapes_that_do_not_match(image):
    options = {"strides": (1, 1), "padding": ("EXPLICIT", 0, 0), "dilations": (1, 1), "groups": 1, "threads": 1}
    assert convolution._convolution(image, (8, 8, 3, 3), channels_last=False, **options) is None


def test_paddle_refuses_channels_that_do_not_match():
    x, weight = tensors([[2, 16, 6, 6], [8, 8, 3, 3]])
    with fast_convolutions(), pytest.raises(ValueError, match="channel"):
        conv2d(x, weight)


def test_images_that_are_views_are_read_in_their_order():
    x, weight = tensors([[2, 6, 5, 8], [8, 8, 3, 3]])
    with paddle.no_grad():
        view = x.transpose([0, 3, 1, 2])
        with counted() as calls, fast_convolutions():
            value = conv2d(view, weight)
        assert calls
        assert_close([value.numpy()], [conv2d(view, weight).numpy()])


def test_only_the_block_and_its_thread_use_onednn():
    x, weight = tensors([[2, 8, 6, 6], [8, 8, 3, 3]])
    with paddle.no_grad(), counted() as calls:
        with fast_convolutions():
            thread = threading.Thread(target=lambda: conv2d(x, weight))
            thread.start()
            thread.join()
            assert not calls
            with fast_convolutions():
                conv2d(x, weight)
            conv2d(x, weight)
        conv2d(x, weight)
        assert len(calls) == 2


def test_the_environment_switches_it_off(monkeypatch):
    monkeypatch.setenv(VARIABLE, "0")
    x, weight = tensors([[2, 8, 6, 6], [8, 8, 3, 3]])
    with paddle.no_grad(), counted() as calls, fast_convolutions():
        conv2d(x, weight)
    assert not calls


def test_a_missing_library_leaves_paddles_own_and_a_debug_line(monkeypatch, caplog):
    def fail(folder):
        raise OSError("libdnnl.so.3: cannot open shared object file")

    monkeypatch.setattr(onednn, "Library", fail)
    onednn.library.cache_clear()
    try:
        with caplog.at_level(logging.DEBUG, "plsc"), fast_convolutions():
            x, weight = tensors([[2, 8, 6, 6], [8, 8, 3, 3]])
            with counted() as calls:
                conv2d(x, weight)
        assert not calls and "libdnnl.so.3" in caplog.text
    finally:
        onednn.library.cache_clear()


def test_threads_compute_the_same_bits_at_the_same_time():
    cases = [tensors([[2, 8 * size, 9, 9], [8, 8 * size, 3, 3]], size) for size in (1, 2, 3, 4)]

    def outputs(case):
        with paddle.no_grad(), fast_convolutions():
            return [conv2d(*case).numpy().tobytes() for _ in range(20)]

    expected = [set(outputs(case)) for case in cases]
    assert all(len(one) == 1 for one in expected)
    with paddle.no_grad(), ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            assert [set(one) for one in pool.map(outputs, cases)] == expected


def test_a_forked_process_computes_the_same_bits():
    x, weight = tensors([[2, 8, 6, 6], [8, 8, 3, 3]])
    with paddle.no_grad(), fast_convolutions():
        expected = conv2d(x, weight).numpy().tobytes()
        child = os.fork()
        if child == 0:
            same = conv2d(x, weight).numpy().tobytes() == expected
            os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_more_shapes_than_are_kept_give_right_results(monkeypatch):
    assert convolution._convolution.cache_info().maxsize == convolution._SHAPES
    (weight,) = tensors([[8, 8, 3, 3]])
    with paddle.no_grad():
        for side in (*range(3, 40), 3):
            (x,) = tensors([[1, 8, side, 5]])
            with fast_convolutions():
                value = conv2d(x, weight).numpy()
            convolution._convolution.cache_clear()
            assert_close([value], [conv2d(x, weight).numpy()])


def trained(context, name="MobileFaceNet", steps=3):
    """Returns the losses and the weights of a short training."""
    paddle.seed(3)
    model = build_model(name, 8, (3, 16, 16))
    build(model, (3, 16, 16))
    model.train()
    parameters = [p for p in model.parameters() if not p.stop_gradient]
    optimizer = paddle.optimizer.Momentum(0.01, 0.9, parameters=parameters)
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal([8, 3, 16, 16]).astype("float32"))
    losses = []
    for _ in range(steps):
        with context():
            embedding = model(images, None)
        loss = ((embedding - 1) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    return losses, np.concatenate([p.numpy().ravel() for p in parameters]), model


@trains
def test_training_agrees_with_paddles_own_and_repeats_to_the_bit():
    with counted() as calls:
        losses, weights, model = trained(fast_convolutions)
    assert len(calls) > 40
    again_losses, again_weights, _ = trained(fast_convolutions)
    assert losses == again_losses and weights.tobytes() == again_weights.tobytes()
    own_losses, own_weights, own = trained(contextlib.nullcontext)
    np.testing.assert_allclose(losses, own_losses, rtol=1e-3)
    assert np.abs(weights - own_weights).max() < 1e-2
    assert model.state_dict().keys() == own.state_dict().keys()


def test_embedding_a_batch_uses_onednn():
    model = build_model("MobileFaceNet", 8, (3, 16, 16))
    build(model, (3, 16, 16))
    images = np.random.default_rng(0).standard_normal([4, 3, 16, 16]).astype("float32")
    with counted() as calls:
        embedding = embed_batch(model, images)
    assert len(calls) > 10
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "0")
        np.testing.assert_allclose(embedding, embed_batch(model, images), atol=1e-4)


def test_an_export_inside_the_block_holds_paddles_own_operator(tmp_path):
    layer = paddle.nn.Conv2D(8, 8, 3)
    layer.eval()
    with counted() as calls, fast_convolutions():
        paddle.jit.save(layer, str(tmp_path / "net"), [paddle.static.InputSpec([None, 8, 6, 6], "float32")])
    assert not calls
    (x,) = tensors([[2, 8, 6, 6]])
    with paddle.no_grad():
        assert_close([paddle.jit.load(str(tmp_path / "net"))(x).numpy()], [layer(x).numpy()])


@trains
def test_a_retained_graph_gives_the_same_gradients_again():
    paddle.seed(0)
    layer, x = paddle.nn.Sequential(paddle.nn.Conv2D(16, 16, 3, padding=1), PReLU(16)), paddle.randn([8, 16, 40, 40])
    x.stop_gradient = False
    with fast_convolutions():
        y = layer(x).square().sum()
    (first,) = paddle.grad(y, [x], retain_graph=True)
    (again,) = paddle.grad(y, [x])
    assert np.array_equal(first.numpy(), again.numpy())
