"""Layers with parameters. Outside `build_network` they refuse to work: nothing would hold what they train.

`use_cudnn`, `in_place`, `is_sparse`, `is_distributed` and `do_model_average_for_mean_and_var` are taken as scripts of
Paddle 1.x give them, and change nothing: today's Paddle decides such things by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional, Union

import paddle
from paddle import Tensor, nn

from plsc.errors import PlscError
from plsc.layers.activations import Parameter, activated
from plsc.layers.scope import as_attr, find_layer, in_dry_run

Size = Union[int, Sequence[int]]
Padding = Union[int, str, Sequence[Any]]


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
    """Convolution [B, C, H, W] -> [B, num_filters, H', W'].

    Args:
        padding: rows and columns on each side; [height, width], [top, bottom, left, right], one pair for each of the four
            dimensions, 'SAME' or 'VALID'.
        groups: as many as channels makes it depthwise.
        bias_attr: False leaves the bias out.
        data_format: 'NCHW', or 'NHWC' for [B, H, W, C].
    """
    channels = _channels("conv2d", input, data_format)
    sizes = (_size(filter_size), _size(stride), _size(padding), _size(dilation), groups or 1)
    (weight, weight_name), (bias, bias_name) = as_attr(param_attr), as_attr(bias_attr)

    def make() -> nn.Layer:
        kernel, step, pad, spread, parts = sizes
        return nn.Conv2D(
            *(channels, num_filters, kernel, step, pad, spread, parts),
            weight_attr=weight,
            bias_attr=bias,
            data_format=data_format,
        )

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
    """Transposed convolution [B, C, H, W] -> [B, num_filters, H', W'].

    Args:
        output_size: (H', W'); with `filter_size` None the filter is as large as that needs.
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
        kernel, step, pad, spread, parts = sizes
        return nn.Conv2DTranspose(
            *(channels, num_filters, kernel, step, pad),
            dilation=spread,
            groups=parts,
            weight_attr=weight,
            bias_attr=bias,
            data_format=data_format,
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
    """Fully connected layer over the dimensions from `num_flatten_dims` on: [B, ...] -> [B, size].

    Several inputs have a weight each, and one bias; their products are added up. `param_attr` may be a list then.
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
    """x_0 W_0 + x_1 W_1 + ... + bias."""

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
    """Batch normalisation of [B, C], [B, C, L], [B, C, H, W] or [B, C, D, H, W].

    Args:
        is_test: normalise by the running statistics, and leave them as they are.
        momentum: of the running statistics; new = momentum * old + (1 - momentum) * batch.
        data_layout: 'NCHW', or 'NHWC' with the channels last.
        moving_mean_name, moving_variance_name: layers that give the same name share them.
        use_global_stats: normalise by the running statistics in training too.
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
    # A training and a test branch may differ in these, and mean the same layer.
    layer._momentum, layer._epsilon = momentum, epsilon
    layer._use_global_stats = True if use_global_stats else None  # None: in tests only
    layer.training = not is_test and not in_dry_run()
    return activated(layer(input), act)


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
        scale, shift: whether a weight and a bias of that shape are trained.
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
    """Normalises each channel of each sample of [B, C, L], [B, C, H, W] or [B, C, D, H, W]; a scale and bias a channel."""
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
    """Normalises each group of channels of each sample; a scale and a bias a channel, which False leaves out."""
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
    """Rows of a trained table: numbers [B, 1] or [B] -> [B, size[1]].

    Args:
        input: int64 in [0, size[0]); a last dimension of 1 is dropped.
        padding_idx: the number whose row is zeros and stays so; negative ones count from the end.
    """
    return table_rows(drop_last_one(input), size, padding_idx, param_attr, dtype, name)


def table_rows(
    numbers: Tensor, size: Sequence[int], padding_idx: Optional[int], param_attr: Any, dtype: str, name: Optional[str]
) -> Tensor:
    """`embedding` for numbers of any shape [...] -> [..., size[1]]."""
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
    """A trained tensor. One name, here or in `attr`, is one parameter.

    Args:
        is_bias: zeros at first, rather than Xavier's uniform numbers.
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
    """[B, 1] -> [B]: labels and numbers of words had a last dimension of 1 in Paddle 1.x."""
    return numbers.squeeze(-1) if len(numbers.shape) > 1 and numbers.shape[-1] == 1 else numbers


def _from_dimension(x: Tensor, dimensions: int) -> Tensor:
    """[a, b, c, d] -> [a, b, c * d] for 2; as it is for -1."""
    return x.flatten(dimensions) if 0 <= dimensions < len(x.shape) - 1 else x


def _channels(kind: str, input: Tensor, data_format: str) -> int:
    if data_format not in ("NCHW", "NHWC"):
        raise PlscError(f"layers.{kind}: {data_format!r}: expected 'NCHW' or 'NHWC'")
    if len(input.shape) < 2:
        raise PlscError(f"layers.{kind}: expected an input of at least 2 dimensions, got {list(input.shape)}")
    return int(input.shape[1 if data_format == "NCHW" else -1])


def _size(size: Any) -> Any:
    """As part of a recipe."""
    return tuple(_size(one) for one in size) if isinstance(size, (list, tuple)) else size


def _pair(size: Size) -> list[int]:
    return [size, size] if isinstance(size, int) else [int(one) for one in size]


def _sides(padding: Any) -> list[int]:
    """[top, bottom, left, right]."""
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
    """The filter that makes `output` of `sides`."""
    return [
        math.floor((output[i] - (sides[i] - 1) * stride[i] + padding[2 * i] + padding[2 * i + 1] - 1) / dilation[i]) + 1
        for i in (0, 1)
    ]
