"""Gives a network what training would leave in it, without training."""

import paddle


def randomize_norms(model, image_shape):
    """Gives a built network statistics of three batches of noise, and its norms random scales and shifts."""
    model.train()
    with paddle.no_grad():
        for _ in range(3):
            model(paddle.randn([8, *image_shape]) * 0.5 + 0.1)
        for layer in model.sublayers():
            if isinstance(layer, paddle.nn.layer.norm._BatchNormBase) and layer.bias is not None:
                layer.weight.set_value(paddle.uniform(layer.weight.shape, min=0.5, max=1.5))
                layer.bias.set_value(paddle.uniform(layer.bias.shape, min=-0.3, max=0.3))
    return model
