"""Layers with parameters. They work only inside `build_network`, because a model must hold their parameters.

The arguments `use_cudnn`, `in_place`, `is_sparse`, `is_distributed` and `do_model_average_for_mean_and_var` are
accepted for scripts of Paddle 1.x, and have no effect: today's Paddle makes these choices itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional, Union

import paddle
from paddle import Tensor, nn

from plsc.errors import PlscError
from plsc.layers.activations import Parameter, activated
from plsc.layers.scope import as_attr, find_layer, in_dry_run, is_kept_in_evaluation

Size = Union[int, Sequence[int]]
Padding = Union[int, str, Sequence[Any]]

_CONVOLUTION = ("kernel_size", "stride", "padding", "dilation", "groups")


def conv2d(
    input: Tensor,
    num_filters: int,
    filter_size: Size,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: Optional[int] = None,
    param_attr: Any = None,
    bias_attr: Any = None,
    use_cudnn: bool = True,
    act: Optional[str] = None,
    name: Optional[str] = None,
    data_format: str = "NCHW",
) -> Tensor:
    """Applies a convolution, [B, C, H, W] -> [B, num_filters, H', W'].

    Args:
        input: Feature map, [B, C, H, W].
        num_filters: Number of output channels.
        filter_size: Size of the filters, (height, width) or one number for both.
        stride: Step between places of the filter.
        padding: Rows and columns on each side, as one number, [height, width], [top, bottom, left, right], or one pair
            for each of the four dimensions; or 'SAME' or 'VALID'.
        dilation: Distance between the elements of a filter.
        groups: Number of groups of channels; as many groups as channels make the convolution depthwise.
        param_attr: Attributes of the weight, such as a `ParamAttr`.
        bias_attr: Attributes of the bias; False leaves it out.
        use_cudnn: Has no effect.
        act: Activation to apply; None applies none.
        name: Name of the layer in the model; by default the layers of a kind are numbered.
        data_format: 'NCHW', or 'NHWC' for [B, H, W, C].
    """
    channels = _channels("conv2d", input, data_format)
    sizes = (_size(filter_size), _size(stride), _size(padding), _size(dilation), groups or 1)
    (weight, weight_name), (bias, bias_name) = as_attr(param_attr), as_attr(bias_attr)

    def make() -> nn.Layer:
        settings = dict(zip(_CONVOLUTION, sizes))
        return nn.Conv2D(channels, num_filters, **settings, weight_attr=weight, bias_attr=bias, data_format=data_format)

    layer = find_layer(
        "conv2d", name, (channels, num_filters, *sizes), make, {"weight": weight_name, "bias": bias_name}
    )
    return activated(layer(input), act)


def conv2d_transpose(
    input: Tensor,
    num_filters: int,
    output_size: Optional[Size] = None,
    filter_size: Optional[Size] = None,
    padding: Padding = 0,
    stride: Size = 1,
    dilation: Size = 1,
    groups: Optional[int] = None,
    param_attr: Any = None,
    bias_attr: Any = None,
    use_cudnn: bool = True,
    act: Optional[str] = None,
    name: Optional[str] = None,
    data_format: str = "NCHW",
) -> Tensor:
    """Applies a transposed convolution, [B, C, H, W] -> [B, num_filters, H', W'].

    Args:
        input: Feature map, [B, C, H, W].
        num_filters: Number of output channels.
        output_size: Size of the result, (H', W').
        filter_size: Size of the filters; None derives it from `output_size`.
        padding: Padding; see `conv2d`.
        stride: Step between places of the filter in the result.
        dilation: Distance between the elements of a filter.
        groups: Number of groups of channels.
        param_attr: Attributes of the weight.
        bias_attr: Attributes of the bias; False leaves it out.
        use_cudnn: Has no effect.
        act: Activation to apply; None applies none.
        name: Name of the layer; see `conv2d`.
        data_format: 'NCHW', or 'NHWC' for [B, H, W, C].
    """
    channels = _channels("conv2d_transpose", input, data_format)
    if filter_size is None:
        if output_size is None:
            raise PlscError("layers.conv2d_transpose: give filter_size or output_size")
        first = 2 if data_format == "NCHW" else 1
        sides = [int(side) for side in input.shape[first : first + 2]]
        filter_size = _filter_of(sides, _pair(output_size), _pair(stride), _sides(padding), _pair(dilation))
    sizes = (_size(filter_size), _size(stride), _size(padding), _size(dilation), groups or 1)
    (weight, weight_name), (bias, bias_name) = as_attr(param_attr), as_attr(bias_attr)

    def make() -> nn.Layer:
        settings = dict(zip(_CONVOLUTION, sizes))
        return nn.Conv2DTranspose(
            channels, num_filters, **settings, weight_attr=weight, bias_attr=bias, data_format=data_format
        )

    layer = find_layer(
        "conv2d_transpose", name, (channels, num_filters, *sizes), make, {"weight": weight_name, "bias": bias_name}
    )
    return activated(layer(input, None if output_size is None else _pair(output_size)), act)


def fc(
    input: Union[Tensor, Sequence[Tensor]],
    size: int,
    num_flatten_dims: int = 1,
    param_attr: Any = None,
    bias_attr: Any = None,
    act: Optional[str] = None,
    name: Optional[str] = None,
) -> Tensor:
    """Applies a fully connected layer, [B, ...] -> [B, size].

    Args:
        input: Input, or several inputs. Each has its own weight; their products are added up, with one bias.
        size: Number of output features.
        num_flatten_dims: The dimensions from this one on are flattened to the input features.
        param_attr: Attributes of the weight; a list gives those of each weight.
        bias_attr: Attributes of the bias; False leaves it out.
        act: Activation to apply; None applies none.
        name: Name of the layer; see `conv2d`.
    """
    inputs = list(input) if isinstance(input, (list, tuple)) else [input]
    attrs = list(param_attr) if isinstance(param_attr, (list, tuple)) else [param_attr] * len(inputs)
    if len(attrs) != len(inputs):
        raise PlscError(f"layers.fc: {len(inputs)} inputs, but param_attr has {len(attrs)}; give one for each")
    flat = [_from_dimension(x, num_flatten_dims) for x in inputs]
    features = tuple(int(x.shape[-1]) for x in flat)
    weights, (bias, bias_name) = [as_attr(attr) for attr in attrs], as_attr(bias_attr)
    if len(flat) == 1:
        layer = find_layer(
            *("fc", name, (*features, size)),
            lambda: nn.Linear(features[0], size, weight_attr=weights[0][0], bias_attr=bias),
            {"weight": weights[0][1], "bias": bias_name},
        )
        return activated(layer(flat[0]), act)
    shared = {f"weight_{number}": given for number, (_, given) in enumerate(weights)}
    layer = find_layer(
        *("fc", name, (*features, size)),
        lambda: _SumOfProducts(features, size, [attr for attr, _ in weights], bias),
        {**shared, "bias": bias_name},
    )
    return activated(layer(*flat), act)


class _SumOfProducts(nn.Layer):
    """A layer that computes x_0 W_0 + x_1 W_1 + ... + bias."""

    def __init__(self, features: Sequence[int], size: int, weight_attrs: Sequence[Any], bias_attr: Any) -> None:
        super().__init__()
        for number, (rows, attr) in enumerate(zip(features, weight_attrs)):
            setattr(self, f"weight_{number}", self.create_parameter([rows, size], attr))
        self.bias = None if bias_attr is False else self.create_parameter([size], bias_attr, is_bias=True)

    def forward(self, *inputs: Tensor) -> Tensor:
        products = [paddle.matmul(x, getattr(self, f"weight_{number}")) for number, x in enumerate(inputs)]
        total = paddle.add_n(products)
        return total if self.bias is None else total + self.bias


def batch_norm(
    input: Tensor,
    act: Optional[str] = None,
    is_test: bool = False,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    param_attr: Any = None,
    bias_attr: Any = None,
    data_layout: str = "NCHW",
    in_place: bool = False,
    name: Optional[str] = None,
    moving_mean_name: Optional[str] = None,
    moving_variance_name: Optional[str] = None,
    do_model_average_for_mean_and_var: bool = True,
    use_global_stats: bool = False,
) -> Tensor:
    """Applies batch normalisation.

    Args:
        input: [B, C], [B, C, L], [B, C, H, W] or [B, C, D, H, W].
        act: Activation to apply; None applies none.
        is_test: Whether to normalise by the running statistics, and leave them unchanged.
        momentum: Momentum of the running statistics: new = momentum * old + (1 - momentum) * batch.
        epsilon: Added to the variance.
        param_attr: Attributes of the scale.
        bias_attr: Attributes of the bias.
        data_layout: 'NCHW', or 'NHWC' with the channels last.
        in_place: Has no effect.
        name: Name of the layer; see `conv2d`.
        moving_mean_name: Name of the running mean; layers with the same name share it.
        moving_variance_name: Name of the running variance; layers with the same name share it.
        do_model_average_for_mean_and_var: Has no effect.
        use_global_stats: Whether to normalise by the running statistics in training too.
    """
    channels, dimensions = _channels("batch_norm", input, data_layout), len(input.shape)
    classes = {2: nn.BatchNorm1D, 3: nn.BatchNorm1D, 4: nn.BatchNorm2D, 5: nn.BatchNorm3D}
    formats = {"NCHW": {2: "NC", 3: "NCL", 4: "NCHW", 5: "NCDHW"}, "NHWC": {2: "NC", 3: "NLC", 4: "NHWC", 5: "NDHWC"}}
    if dimensions not in classes:
        raise PlscError(f"layers.batch_norm: expected an input of 2 to 5 dimensions, got {list(input.shape)}")
    (weight, weight_name), (bias, bias_name) = as_attr(param_attr), as_attr(bias_attr)
    names = {"_mean": moving_mean_name, "_variance": moving_variance_name, "weight": weight_name, "bias": bias_name}
    layer = find_layer(
        *("batch_norm", name, (channels,)),
        lambda: classes[dimensions](
            channels, weight_attr=weight, bias_attr=bias, data_format=formats[data_layout][dimensions]
        ),
        names,
    )
    # A branch for training and one for tests may differ in these settings, and still mean the same layer.
    layer._momentum, layer._epsilon = momentum, epsilon
    layer._use_global_stats = True if use_global_stats else None  # None means in tests only.
    mode = layer.training
    layer.training = not (is_test or in_dry_run() or is_kept_in_evaluation(layer))
    output = layer(input)
    layer.training = mode
    return activated(output, act)


def layer_norm(
    input: Tensor,
    scale: bool = True,
    shift: bool = True,
    begin_norm_axis: int = 1,
    epsilon: float = 1e-5,
    param_attr: Any = None,
    bias_attr: Any = None,
    act: Optional[str] = None,
    name: Optional[str] = None,
) -> Tensor:
    """Normalises each sample over its dimensions from `begin_norm_axis` on.

    Args:
        input: [B, ...].
        scale: Whether a weight of the shape of those dimensions is trained.
        shift: Whether a bias of the shape of those dimensions is trained.
        begin_norm_axis: First dimension to normalise over.
        epsilon: Added to the variance.
        param_attr: Attributes of the weight.
        bias_attr: Attributes of the bias.
        act: Activation to apply; None applies none.
        name: Name of the layer; see `conv2d`.
    """
    shape = [int(side) for side in input.shape[begin_norm_axis:]]
    (weight, weight_name), (bias, bias_name) = as_attr(param_attr), as_attr(bias_attr)
    layer = find_layer(
        *("layer_norm", name, (*shape, bool(scale), bool(shift))),
        lambda: nn.LayerNorm(
            shape, epsilon, weight_attr=weight if scale else False, bias_attr=bias if shift else False
        ),
        {"weight": weight_name if scale else None, "bias": bias_name if shift else None},
    )
    layer._epsilon = epsilon
    return activated(layer(input), act)


def instance_norm(
    input: Tensor, epsilon: float = 1e-5, param_attr: Any = None, bias_attr: Any = None, name: Optional[str] = None
) -> Tensor:
    """Normalises each channel of each sample, with a scale and a bias per channel.

    Args:
        input: [B, C, L], [B, C, H, W] or [B, C, D, H, W].
        epsilon: Added to the variance.
        param_attr: Attributes of the scale.
        bias_attr: Attributes of the bias.
        name: Name of the layer; see `conv2d`.
    """
    classes = {3: nn.InstanceNorm1D, 4: nn.InstanceNorm2D, 5: nn.InstanceNorm3D}
    dimensions = len(input.shape)
    if dimensions not in classes:
        raise PlscError(f"layers.instance_norm: expected an input of 3 to 5 dimensions, got {list(input.shape)}")
    channels = _channels("instance_norm", input, "NCHW")
    (weight, weight_name), (bias, bias_name) = as_attr(param_attr), as_attr(bias_attr)
    layer = find_layer(
        *("instance_norm", name, (channels,)),
        lambda: classes[dimensions](channels, epsilon, weight_attr=weight, bias_attr=bias),
        {"scale": weight_name, "bias": bias_name},
    )
    layer._epsilon = epsilon
    return layer(input)


def group_norm(
    input: Tensor,
    groups: int,
    epsilon: float = 1e-5,
    param_attr: Any = None,
    bias_attr: Any = None,
    act: Optional[str] = None,
    data_layout: str = "NCHW",
    name: Optional[str] = None,
) -> Tensor:
    """Normalises each group of channels of each sample, with a scale and a bias per channel.

    Args:
        input: [B, C, H, W].
        groups: Number of groups.
        epsilon: Added to the variance.
        param_attr: Attributes of the scale; False leaves it out.
        bias_attr: Attributes of the bias; False leaves it out.
        act: Activation to apply; None applies none.
        data_layout: 'NCHW', or 'NHWC' with the channels last.
        name: Name of the layer; see `conv2d`.
    """
    channels = _channels("group_norm", input, data_layout)
    (weight, weight_name), (bias, bias_name) = as_attr(param_attr), as_attr(bias_attr)
    layer = find_layer(
        *("group_norm", name, (groups, channels)),
        lambda: nn.GroupNorm(groups, channels, epsilon, weight_attr=weight, bias_attr=bias, data_format=data_layout),
        {"weight": weight_name, "bias": bias_name},
    )
    layer._epsilon = epsilon
    return activated(layer(input), act)


def embedding(
    input: Tensor,
    size: Sequence[int],
    is_sparse: bool = False,
    is_distributed: bool = False,
    padding_idx: Optional[int] = None,
    param_attr: Any = None,
    dtype: str = "float32",
    name: Optional[str] = None,
) -> Tensor:
    """Looks up rows of a trained table, numbers [B, 1] or [B] -> [B, size[1]].

    Args:
        input: Numbers of rows, int64 in [0, size[0]); a last dimension of 1 is dropped.
        size: Rows and columns of the table.
        is_sparse: Has no effect.
        is_distributed: Has no effect.
        padding_idx: Number whose row is zero and stays zero; a negative one counts from the end.
        param_attr: Attributes of the table.
        dtype: Type of the table.
        name: Name of the layer; see `conv2d`.
    """
    return table_rows(drop_last_one(input), size, padding_idx, param_attr, dtype, name)


def table_rows(
    numbers: Tensor, size: Sequence[int], padding_idx: Optional[int], param_attr: Any, dtype: str, name: Optional[str]
) -> Tensor:
    """Looks up rows of a table for numbers of any shape, [...] -> [..., size[1]]; see `embedding`."""
    rows, columns = (int(n) for n in size)
    weight, weight_name = as_attr(param_attr)

    def make() -> nn.Layer:
        previous = paddle.get_default_dtype()
        paddle.set_default_dtype(dtype)
        try:
            return nn.Embedding(rows, columns, padding_idx, weight_attr=weight)
        finally:
            paddle.set_default_dtype(previous)

    return find_layer("embedding", name, (rows, columns, dtype), make, {"weight": weight_name})(numbers)


def create_parameter(
    shape: Sequence[int],
    dtype: str,
    name: Optional[str] = None,
    attr: Any = None,
    is_bias: bool = False,
    default_initializer: Any = None,
) -> Tensor:
    """Returns a trained tensor.

    Args:
        shape: Shape of the tensor.
        dtype: Type of the tensor.
        name: Name of the parameter; calls with the same name, here or in `attr`, share one parameter.
        attr: Attributes of the parameter.
        is_bias: Whether it starts as zeros, rather than as uniform random numbers (Xavier).
        default_initializer: Initializer for `attr` without one.
    """
    attr, shared = as_attr(attr)
    sides = [int(side) for side in shape]
    layer = find_layer(
        *("create_parameter", name, (*sides, str(dtype))),
        lambda: Parameter(sides, attr, dtype, is_bias, default_initializer),
        {"weight": shared or name},
    )
    return layer.weight


def drop_last_one(numbers: Tensor) -> Tensor:
    """Drops a last dimension of 1, [B, 1] -> [B], which labels have in Paddle 1.x."""
    return numbers.squeeze(-1) if len(numbers.shape) > 1 and numbers.shape[-1] == 1 else numbers


def _from_dimension(x: Tensor, dimensions: int) -> Tensor:
    """Flattens the dimensions from one on: [a, b, c, d] -> [a, b, c * d] for 2; -1 changes nothing."""
    return x.flatten(dimensions) if 0 <= dimensions < len(x.shape) - 1 else x


def _channels(kind: str, input: Tensor, data_format: str) -> int:
    if data_format not in ("NCHW", "NHWC"):
        raise PlscError(f"layers.{kind}: {data_format!r}: expected 'NCHW' or 'NHWC'")
    if len(input.shape) < 2:
        raise PlscError(f"layers.{kind}: expected an input of at least 2 dimensions, got {list(input.shape)}")
    return int(input.shape[1 if data_format == "NCHW" else -1])


def _size(size: Any) -> Any:
    """Returns a size with tuples for lists, so that recipes can be compared."""
    return tuple(_size(one) for one in size) if isinstance(size, (list, tuple)) else size


def _pair(size: Size) -> list[int]:
    return [size, size] if isinstance(size, int) else [int(one) for one in size]


def _sides(padding: Any) -> list[int]:
    """Returns a padding as [top, bottom, left, right]."""
    if isinstance(padding, str):
        return [0, 0, 0, 0]
    if isinstance(padding, int):
        return [padding] * 4
    if len(padding) == 2:
        return [padding[0], padding[0], padding[1], padding[1]]
    return [side for pair in padding[2:] for side in pair] if isinstance(padding[0], (list, tuple)) else list(padding)


def _filter_of(
    sides: Sequence[int], output: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Returns the size of the filter that makes a map of size `output` from one of size `sides`."""
    return [
        math.floor((output[i] - (sides[i] - 1) * stride[i] + padding[2 * i] + padding[2 * i + 1] - 1) / dilation[i]) + 1
        for i in (0, 1)
    ]
