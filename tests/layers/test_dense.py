"""The linear layer for a CPU, compared with Paddle's."""

import numpy as np
import paddle
import pytest
from function_model import random_array
from paddle import nn

from plsc import amp
from plsc.layers.dense import Linear

pytestmark = pytest.mark.core


def numbers_of(layer, x, gradient):
    """The output, and the gradients of the input and of the parameters that are trained."""
    x = paddle.to_tensor(x, stop_gradient=False)
    layer.clear_gradients()
    y = layer(x)
    y.backward(paddle.to_tensor(gradient))
    return [y.numpy(), x.grad.numpy(), *(one.grad.numpy() for one in layer.parameters() if not one.stop_gradient)]


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (1, 7)])
@pytest.mark.parametrize("kind", ["usual", "no bias", "frozen bias", "rounded"])
def test_outputs_and_gradients_are_those_of_paddle(shape, kind):
    ours, theirs = (make(7, 4, bias_attr=False if kind == "no bias" else None) for make in (Linear, nn.Linear))
    theirs.set_state_dict(
        {name: paddle.to_tensor(random_array(*v.shape).astype("float32")) for name, v in theirs.state_dict().items()}
    )
    ours.set_state_dict(theirs.state_dict())
    for layer in (ours, theirs):
        if kind == "frozen bias":
            layer.bias.stop_gradient = True
    x, gradient = random_array(*shape, seed=1), random_array(*shape[:-1], 4, seed=2)
    x, gradient = x.astype("float32"), gradient.astype("float32")
    with amp._simulated("bfloat16", {"linear", "matmul"}) if kind == "rounded" else paddle.enable_grad():
        found, expected = (numbers_of(layer, x, gradient) for layer in (ours, theirs))
    assert len(found) == len(expected) == (3 if kind in ("no bias", "frozen bias") else 4)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6 * np.abs(other).max())
    assert np.array_equal(found[0], expected[0])
