import doctest
import math

import numpy as np
import paddle
import pytest

from plsc.heads import margins, reference
from plsc.heads.margins import AdaFace, AngularMargin, CurricularFace, MagFace, Margin, Target

pytestmark = pytest.mark.core

NORM_STATE = (25.0, 12.0)
MARGINS = [
    *(AngularMargin(m2=m) for m in (0.1, 0.5, 1.2)),
    AngularMargin(m3=0.35),
    *(AngularMargin(m1=m) for m in (0.9, 1.35, 4.0)),
    AngularMargin(1.1, 0.3, 0.2),
    AngularMargin(0.9, 0.4, 0.15),
    AdaFace(),
    MagFace(),
    CurricularFace(),
]


def tensor(values, dtype="float64"):
    return paddle.to_tensor(np.asarray(values, dtype=dtype))


def computed(margin, cosine, norm):
    state = tensor(NORM_STATE if isinstance(margin, AdaFace) else [0.3])
    return margin.target(tensor(cosine), tensor(norm), state)


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_the_target_agrees_with_float64(margin):
    cosine = np.linspace(-0.999, 0.999, 997)
    for norm in (0.5, 10.0, 30.0, 57.3, 110.0, 500.0):
        norms = np.full(997, norm)
        expected, *_ = reference.target_of(margin, cosine, norms, NORM_STATE)
        # Paddle 2.6 rounds a Python number to float32 before it meets a float64 tensor.
        np.testing.assert_allclose(computed(margin, cosine, norms).value.numpy(), expected, atol=3e-7)


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_the_derivatives_agree_with_finite_differences(margin):
    cosine, step = np.linspace(-0.998, 0.998, 701), 1e-6
    for norm in (5.0, 33.0, 57.3, 400.0):
        norms = np.full_like(cosine, norm)
        target = computed(margin, cosine, norms)
        above, below = (computed(margin, cosine + side, norms).value.numpy() for side in (step, -step))
        smooth = np.abs(above - below) < 1e-3  # arcface's target has a step where theta + m passes pi
        assert smooth.mean() > 0.99
        numeric = (above - below) / (2 * step)
        np.testing.assert_allclose(target.by_cosine.numpy()[smooth], numeric[smooth], rtol=2e-4, atol=2e-3)
        if target.by_norm is None:
            continue
        above, below = (computed(margin, cosine, norms + side).value.numpy() for side in (1e-4, -1e-4))
        numeric = (above - below) / 2e-4
        smooth = np.abs(above - below) < 1e-3
        np.testing.assert_allclose(target.by_norm.numpy()[smooth], numeric[smooth], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_the_target_never_rises_with_the_angle(margin):
    cosine = np.cos(np.linspace(0.001, math.pi - 0.001, 2000))
    value = computed(margin, cosine, np.full_like(cosine, 40.0)).value.numpy()
    assert (np.diff(value) <= 1e-7).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_the_ends_are_finite(margin, dtype):
    cosine = tensor([-1.0, 1.0, 0.0, math.cos(math.pi - 0.5)], dtype)
    for norm in (0.0, 1e-30, 1e30, 1e38):
        target = margin.target(cosine, paddle.full_like(cosine, norm), tensor(NORM_STATE))
        for part in target:
            assert part is None or np.isfinite(part.numpy()).all()
        if margin.penalty(paddle.full_like(cosine, norm)) is not None:
            assert all(np.isfinite(part.numpy()).all() for part in margin.penalty(paddle.full_like(cosine, norm)))


def test_magface_penalty_and_its_derivative():
    margin, norm = MagFace(), np.array([3.0, 20.0, 57.3, 109.0, 300.0])
    value, by_norm = margin.penalty(tensor(norm))
    held = np.clip(norm, 10, 110)
    np.testing.assert_allclose(value.numpy(), 35 * (1 / held + held / 110**2), rtol=1e-6)
    numeric = (margin.penalty(tensor(norm + 1e-4))[0] - margin.penalty(tensor(norm - 1e-4))[0]).numpy() / 2e-4
    np.testing.assert_allclose(by_norm.numpy(), numeric, rtol=1e-4, atol=1e-8)
    assert (by_norm.numpy()[1:4] < 0).all(), "the loss falls as the norm grows"


def test_adaface_keeps_moving_averages_of_the_norms():
    margin, state = AdaFace(), tensor(AdaFace.initial_state)
    mean, std = AdaFace.initial_state
    for seed in range(3):
        norm = np.random.default_rng(seed).uniform(0, 130, 9)
        state = margin.observe(state, tensor(norm), None)
        held = np.clip(norm, 1e-3, 100)
        mean, std = 0.99 * mean + 0.01 * held.mean(), 0.99 * std + 0.01 * held.std(ddof=1)
    np.testing.assert_allclose(state.numpy(), [mean, std], rtol=1e-6)
    np.testing.assert_array_equal(margin.observe(state, tensor([5.0]), None).numpy(), state.numpy())


def test_curricularface_weighs_only_the_classes_that_beat_the_label():
    margin, state, step = CurricularFace(), tensor([0.3]), 1e-6
    cosine, target = np.array([[0.9, -0.5], [0.2, 0.1], [-0.7, 0.35]]), np.array([[0.3, 0.3]])
    value, slope = margin.others(tensor(cosine), tensor(target), state)
    expected = np.where(cosine > target, cosine * (0.3 + cosine), cosine)
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-6)
    above = margin.others(tensor(cosine + step), tensor(target), state)[0].numpy()
    np.testing.assert_allclose(slope.numpy(), (above - expected) / step, rtol=1e-4)
    np.testing.assert_allclose(
        margin.observe(state, None, tensor([0.5, 0.1])).numpy(), [0.99 * 0.3 + 0.01 * 0.3], rtol=1e-6
    )


def test_the_example_of_the_module_runs():
    assert doctest.testmod(margins).attempted > 2 and doctest.testmod(margins).failed == 0


def test_a_margin_needs_a_target_and_nothing_else():
    class Squared(Margin):
        def target(self, cosine, norm, state):
            gap = 1.0 - cosine
            return Target(cosine - 0.2 * gap * gap, 1.0 + 0.4 * gap)

    assert Squared().penalty(tensor([1.0])) is None and Squared().initial_state == ()
    with pytest.raises(NotImplementedError, match="target"):
        Margin().target(tensor([0.5]), tensor([1.0]), None)
