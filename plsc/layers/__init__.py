"""Layers as functions for `BaseModel.build_network`.

Names, argument order and defaults are those of `fluid.layers` in Paddle 1.x. Layers with parameters (conv2d, fc,
batch_norm, ...) are created before training, and each call finds its layer again under the next name of its kind
(conv2d_0, conv2d_1, ...). The others (pool2d, relu, reshape, ...) are plain functions.
"""

from __future__ import annotations

from typing import Any

from plsc.layers.activations import (
    abs,
    elu,
    exp,
    hard_sigmoid,
    hard_swish,
    leaky_relu,
    prelu,
    relu,
    relu6,
    sigmoid,
    softmax,
    softplus,
    sqrt,
    square,
    swish,
    tanh,
)
from plsc.layers.functional import (
    cast,
    clip,
    concat,
    dropout,
    elementwise_add,
    elementwise_div,
    elementwise_floordiv,
    elementwise_max,
    elementwise_min,
    elementwise_mod,
    elementwise_mul,
    elementwise_pow,
    elementwise_sub,
    flatten,
    l2_normalize,
    matmul,
    mean,
    mul,
    reduce_all,
    reduce_any,
    reduce_max,
    reduce_mean,
    reduce_min,
    reduce_prod,
    reduce_sum,
    reshape,
    scale,
    split,
    squeeze,
    stack,
    transpose,
    unsqueeze,
)
from plsc.layers.images import adaptive_pool2d, image_resize, pad2d, pool2d, resize_bilinear, resize_nearest
from plsc.layers.losses import accuracy, cross_entropy, one_hot, softmax_with_cross_entropy
from plsc.layers.missing import not_here
from plsc.layers.parametric import (
    batch_norm,
    conv2d,
    conv2d_transpose,
    create_parameter,
    embedding,
    fc,
    group_norm,
    instance_norm,
    layer_norm,
)

# fmt: off
__all__ = [
    "abs", "accuracy", "adaptive_pool2d", "batch_norm", "cast", "clip", "concat", "conv2d", "conv2d_transpose",
    "create_parameter", "cross_entropy", "dropout", "elementwise_add", "elementwise_div", "elementwise_floordiv",
    "elementwise_max", "elementwise_min", "elementwise_mod", "elementwise_mul", "elementwise_pow", "elementwise_sub",
    "elu", "embedding", "exp", "fc", "flatten", "group_norm", "hard_sigmoid", "hard_swish", "image_resize",
    "instance_norm", "l2_normalize", "layer_norm", "leaky_relu", "matmul", "mean", "mul", "one_hot", "pad2d",
    "pool2d", "prelu", "reduce_all", "reduce_any", "reduce_max", "reduce_mean", "reduce_min", "reduce_prod",
    "reduce_sum", "relu", "relu6", "reshape", "resize_bilinear", "resize_nearest", "scale", "sigmoid", "softmax",
    "softmax_with_cross_entropy", "softplus", "split", "sqrt", "square", "squeeze", "stack", "swish", "tanh",
    "transpose", "unsqueeze",
]
# fmt: on


def __getattr__(name: str) -> Any:
    raise not_here("layers", name)
