"""A second backward pass through a function of plsc is an error of Python, for which Paddle would crash."""

import paddle
import pytest
from paddle import nn

from plsc.layers.convolution import fast_convolutions
from plsc.layers.gradients import HAS_GRADIENTS
from plsc.layers.slopes import PReLU
from plsc.layers.transformer import GELU, LayerNorm, Linear

pytestmark = pytest.mark.core
LAYERS = {
    "linear": (lambda: Linear(40, 8), [16, 40]),
    "gelu": (GELU, [16, 40]),
    "layer norm": (lambda: LayerNorm(40), [16, 40]),
    "prelu": (lambda: PReLU(16), [8, 16, 40, 40]),
    "convolution": (lambda: nn.Conv2D(16, 16, 3, padding=1), [8, 16, 40, 40]),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def computed(name):
    make, shape = LAYERS[name]
    paddle.seed(0)
    layer, x = make(), paddle.randn(shape)
    x.stop_gradient = False
    with fast_convolutions():
        return layer, x, layer(x)


@pytest.mark.skipif(not HAS_GRADIENTS, reason="with Paddle 2.6, these gradients are Paddle's own")
@each_layer
def test_a_second_backward_is_refused(name):
    _, x, y = computed(name)
    y.backward(retain_graph=True)
    first = x.grad.numpy()
    with pytest.raises(Exception, match="backward has already run through this output of a layer"):
        y.backward()
    assert (x.grad.numpy() == first).all()


@each_layer
def test_paddle_grad_may_come_before_backward(name):
    layer, x, y = computed(name)
    found = paddle.grad(y, x, retain_graph=True)[0]
    y.backward()
    assert (x.grad.numpy() == found.numpy()).all()
