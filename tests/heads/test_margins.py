import math

import numpy as np
import paddle
import pytest

from plsc.heads.margins import AngularMargin

pytestmark = pytest.mark.core


@pytest.mark.parametrize("m2, m3", [(0.5, 0.0), (0.0, 0.35), (0.3, 0.2), (1.2, 0.0)])
def test_target_and_derivative_agree_with_float64(m2, m3):
    cosine = np.concatenate([np.linspace(-0.999, 0.999, 501)])
    theta = np.arccos(cosine)
    expected = np.where(theta + m2 < math.pi, np.cos(theta + m2), cosine - m2 * math.sin(m2)) - m3
    target, slope = AngularMargin(m2, m3).target(paddle.to_tensor(cosine))
    # Paddle 2.6 rounds a Python number to float32 before it meets a float64 tensor.
    np.testing.assert_allclose(target.numpy(), expected, atol=1e-8)
    step = 1e-7
    above, _ = AngularMargin(m2, m3).target(paddle.to_tensor(cosine + step))
    below, _ = AngularMargin(m2, m3).target(paddle.to_tensor(cosine - step))
    smooth = np.abs(theta + m2 - math.pi) > 1e-3
    numeric = (above.numpy() - below.numpy()) / (2 * step)
    np.testing.assert_allclose(slope.numpy()[smooth], numeric[smooth], rtol=1e-5, atol=1e-6)


def test_the_ends_are_finite():
    target, slope = AngularMargin(0.5).target(paddle.to_tensor([-1.0, 1.0], dtype="float32"))
    assert np.isfinite(target.numpy()).all() and np.isfinite(slope.numpy()).all()
