import itertools
import logging

import numpy as np
import paddle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plsc import amp
from plsc.config import MixedPrecision
from plsc.errors import ConfigError

pytestmark = pytest.mark.core


def simulated_table(finite_steps, init, incr_every, decr_every, incr_ratio, decr_ratio, dynamic):
    """Returns the scale before each step, from the table in the specification: it counts steps since each change."""
    scale, since, scales = init, [], []
    for finite in finite_steps:
        scales.append(scale)
        since.append(finite)
        if not dynamic:
            continue
        in_a_row = len(list(itertools.takewhile(finite.__eq__, reversed(since))))
        if finite and in_a_row == incr_every:
            scale, since = min(scale * incr_ratio, 3.4028234663852886e38), []
        elif not finite and in_a_row == decr_every:
            scale, since = max(scale * decr_ratio, min(1.0, init)), []
    return scales


@settings(max_examples=400, deadline=None)
@example([False] * 300, 2.0**30, 7, 2, 2.0, 0.5, True)
@example([True] * 400, 1.0, 1, 2, 8.0, 0.5, True)
@given(
    st.lists(st.booleans(), max_size=120),
    st.sampled_from([1.0, 0.25, 2.0**15, 1000.0, 3e38]),
    st.integers(1, 9),
    st.integers(1, 5),
    st.floats(1.01, 10.0),
    st.floats(0.01, 0.99),
    st.booleans(),
)
def test_the_scaler_does_what_the_table_says(finite, init, incr_every, decr_every, incr_ratio, decr_ratio, dynamic):
    scaler = amp.DynamicLossScaler(MixedPrecision(True, init, incr_every, decr_every, incr_ratio, decr_ratio, dynamic))
    scales = []
    for number, one in enumerate(finite):
        if number % 7 == 3:  # through a checkpoint and back
            state, scaler = scaler.state(), amp.DynamicLossScaler(scaler._settings)
            scaler.load(state)
        scales.append(scaler.scale)
        scaler.update(one)
    expected = simulated_table(finite, init, incr_every, decr_every, incr_ratio, decr_ratio, dynamic)
    np.testing.assert_array_equal(scales, expected)
    assert all(0 < scale < np.inf for scale in scales)


def test_a_scale_at_its_floor_is_reported_with_the_reason(caplog):
    scaler = amp.DynamicLossScaler(MixedPrecision(True, 2.0, decr_every_n_nan_or_inf=1))
    with caplog.at_level(logging.WARNING, "plsc"):
        logging.getLogger("plsc").propagate = True
        scaler.update(False)
        assert scaler.scale == 1.0 and not scaler.can_shrink and not caplog.records
        scaler.update(False)
    assert scaler.scale == 1.0 and "floor of 1" in caplog.text and "set_lr" in caplog.text


@pytest.mark.parametrize("chosen", [MixedPrecision(False, 8.0), MixedPrecision(True, 8.0, dtype="bfloat16")])
def test_precisions_that_need_no_scaling_have_none(chosen):
    scaler = amp.DynamicLossScaler(chosen)
    for _ in range(3000):
        scaler.update(False)
    assert scaler.scale == 1.0 and not scaler.can_shrink


def test_lists_are_taken_from_plsc_and_from_paddle():
    ours = amp.AutoMixedPrecisionLists(["softmax"], ["conv2d"])
    assert amp.as_lists(ours) is ours
    assert amp.as_lists(None).custom_white_list == set()
    paddles = amp.as_lists(paddle.static.amp.AutoMixedPrecisionLists({"softmax"}, {"conv2d"}))
    assert (paddles.custom_white_list, paddles.custom_black_list) == ({"softmax"}, {"conv2d"})


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"custom_white_list": ["conv2dd"]}, "no operator 'conv2dd'; did you mean 'conv2d'"),
        ({"custom_black_list": "conv2d"}, "expected a list"),
        ({"custom_black_list": [3]}, "expected a list"),
        ({"custom_white_list": ["exp"], "custom_black_list": ["exp"]}, "'exp' is in the white list and in the black"),
    ],
)
def test_wrong_lists_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        amp.AutoMixedPrecisionLists(**arguments)
    with pytest.raises(ConfigError, match="amp_lists"):
        amp.as_lists(["conv2d"])


class Net(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = paddle.nn.Conv2D(3, 4, 3), paddle.nn.Linear(4 * 4, 5)

    def forward(self, x):
        return self.fc(paddle.nn.functional.relu(self.conv(x)).flatten(1))


def run(settings, image, scale=1.0):
    """Returns the output and the gradients of a small network, which is the same for every call."""
    paddle.seed(1)
    net = Net()
    original = paddle._C_ops.conv2d
    with amp.autocast(settings):
        out = net(paddle.to_tensor(image))
    assert paddle._C_ops.conv2d is original
    (out.sum() * scale).backward()
    return [out.numpy(), *(p.grad.numpy() / scale for p in net.parameters())]


IMAGE = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype("float32")


@pytest.mark.parametrize("dtype, most", [("float16", 2e-3), ("bfloat16", 3e-2)])
def test_the_simulation_rounds_values_and_gradients(dtype, most):
    exact = run(MixedPrecision(), IMAGE)
    rounded = run(MixedPrecision(True, dtype=dtype, simulate=True), IMAGE)
    for one, other in zip(exact, rounded):
        assert 0 <= np.abs(one - other).max() < most * 10 * max(1, np.abs(one).max())
    assert np.abs(exact[0] - rounded[0]).max() > 0
    assert (rounded[0] == paddle.to_tensor(rounded[0]).astype(dtype).astype("float32").numpy()).all()


def test_float16_overflows_and_underflows_for_real():
    simulated = MixedPrecision(True, simulate=True)
    assert not np.isfinite(run(simulated, IMAGE, scale=1e30)[1]).any()
    assert np.isfinite(run(MixedPrecision(), IMAGE, scale=1e30)[1]).all()
    tiny = 1e-9
    lost = run(simulated, IMAGE * 1e-2, scale=tiny)
    kept = run(simulated, IMAGE * 1e-2, scale=tiny * 2.0**24)
    exact = run(MixedPrecision(), IMAGE * 1e-2)
    assert (lost[1] == 0).all() and (exact[1] != 0).all()
    np.testing.assert_allclose(kept[1], exact[1], rtol=0.1, atol=1e-4)


def test_the_lists_decide_what_is_rounded():
    black = amp.AutoMixedPrecisionLists(custom_black_list=["conv2d", "matmul"])
    exact = run(MixedPrecision(), IMAGE)
    np.testing.assert_array_equal(run(MixedPrecision(True, simulate=True, amp_lists=black), IMAGE)[0], exact[0])
    white = amp.AutoMixedPrecisionLists(["relu"], ["conv2d", "matmul"])
    assert (run(MixedPrecision(True, simulate=True, amp_lists=white), IMAGE)[0] != exact[0]).any()


def test_without_simulation_a_cpu_computes_in_float32():
    for one, other in zip(run(MixedPrecision(), IMAGE), run(MixedPrecision(True), IMAGE)):
        np.testing.assert_array_equal(one, other)
    assert "no arithmetic on a CPU" in amp.describe(MixedPrecision(True))
    assert "simulated" in amp.describe(MixedPrecision(True, simulate=True))
    assert amp.describe(MixedPrecision()) == "float32"
    assert "no loss scaling" in amp.describe(MixedPrecision(True, dtype="bfloat16"))
