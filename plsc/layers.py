"""Named layers for `BaseModel.build_network`: the first call makes a layer, later calls find it again by its name.

Names count up within one pass of `build_network`: conv2d_0, conv2d_1, batch_norm_0, ...
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Optional, Union

import paddle
from paddle import nn
from paddle.nn import functional

from plsc.errors import PlscError

Size = Union[int, Sequence[int]]


class _Current(threading.local):
    scopes: Optional[list[LayerScope]] = None


_current = _Current()


class LayerScope:
    """Holds the layers of one model; `with scope:` makes it current and starts the names afresh.

    Args:
        owner: the model whose sublayers the layers become.
    """

    def __init__(self, owner: nn.Layer) -> None:
        self._owner = owner
        self._counter: Counter[str] = Counter()
        self._made: dict[str, tuple[Any, ...]] = {}

    def __enter__(self) -> LayerScope:
        self._counter.clear()
        if _current.scopes is None:
            _current.scopes = []
        _current.scopes.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        assert _current.scopes is not None
        _current.scopes.pop()

    def layer(self, kind: str, name: Optional[str], recipe: tuple[Any, ...], make: Callable[[], nn.Layer]) -> Any:
        """The layer called `name`, or the next of its kind; made when it is not there yet.

        Args:
            recipe: what must be the same at every pass, such as the sizes.
            make: makes the layer.
        """
        if name is None:
            name = f"{kind}_{self._counter[kind]}"
            self._counter[kind] += 1
        recipe = (kind, *recipe)
        if name not in self._made:
            if name in self._owner._sub_layers:
                raise PlscError(f"layers.{kind}: the model already has a layer called {name!r}; choose another name")
            self._owner.add_sublayer(name, make())
            self._made[name] = recipe
        elif self._made[name] != recipe:
            raise PlscError(
                f"layers.{kind}: {name!r} was made as {self._made[name]} and is now asked for as {recipe}; "
                "build_network must make the same calls in the same order every time"
            )
        return self._owner._sub_layers[name]


def _scope(kind: str) -> LayerScope:
    if not _current.scopes:
        raise PlscError(f"layers.{kind} works only inside build_network of a plsc.models.base_model.BaseModel")
    return _current.scopes[-1]


def _activated(x: paddle.Tensor, act: Optional[str]) -> paddle.Tensor:
    if act is None:
        return x
    if act == "prelu":
        return prelu(x)
    if act in ("relu", "sigmoid", "tanh"):
        return getattr(functional, act)(x)
    raise PlscError(f"act={act!r}: expected None, 'relu', 'prelu', 'sigmoid' or 'tanh'")


def _size(size: Size) -> Any:
    return size if isinstance(size, int) else tuple(size)


def conv2d(
    input: paddle.Tensor,
    num_filters: int,
    filter_size: Size,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    param_attr: Any = None,
    bias_attr: Any = None,
    act: Optional[str] = None,
    name: Optional[str] = None,
) -> paddle.Tensor:
    """Convolution [B, C, H, W] -> [B, num_filters, H', W']; `bias_attr=False` leaves the bias out."""
    groups = groups or 1
    sizes = (_size(filter_size), _size(stride), _size(padding), _size(dilation), groups)
    recipe = (int(input.shape[1]), num_filters, *sizes)
    layer = _scope("conv2d").layer(
        "conv2d",
        name,
        recipe,
        lambda: nn.Conv2D(recipe[0], num_filters, *sizes, weight_attr=param_attr, bias_attr=bias_attr),
    )
    return _activated(layer(input), act)


def batch_norm(
    input: paddle.Tensor,
    act: Optional[str] = None,
    is_test: bool = False,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    param_attr: Any = None,
    bias_attr: Any = None,
    name: Optional[str] = None,
) -> paddle.Tensor:
    """Batch normalisation of [B, C] or [B, C, H, W]; `is_test` uses the running statistics."""
    kinds = {2: nn.BatchNorm1D, 4: nn.BatchNorm2D}
    if len(input.shape) not in kinds:
        raise PlscError(f"layers.batch_norm: expected an input of 2 or 4 dimensions, got {list(input.shape)}")
    channels = int(input.shape[1])
    layer = _scope("batch_norm").layer(
        "batch_norm",
        name,
        (len(input.shape), channels, momentum, epsilon),
        lambda: kinds[len(input.shape)](channels, momentum, epsilon, weight_attr=param_attr, bias_attr=bias_attr),
    )
    layer.training = not is_test
    return _activated(layer(input), act)


def fc(
    input: paddle.Tensor,
    size: int,
    num_flatten_dims: int = 1,
    param_attr: Any = None,
    bias_attr: Any = None,
    act: Optional[str] = None,
    name: Optional[str] = None,
) -> paddle.Tensor:
    """Fully connected layer over the dimensions from `num_flatten_dims` on: [B, ...] -> [B, size]."""
    flat = input.flatten(num_flatten_dims) if len(input.shape) > num_flatten_dims + 1 else input
    features = int(flat.shape[-1])
    layer = _scope("fc").layer(
        "fc", name, (features, size), lambda: nn.Linear(features, size, weight_attr=param_attr, bias_attr=bias_attr)
    )
    return _activated(layer(flat), act)


def prelu(x: paddle.Tensor, mode: str = "channel", param_attr: Any = None, name: Optional[str] = None) -> paddle.Tensor:
    """PReLU with one slope ('all') or one a channel ('channel'), 0.25 at first."""
    if mode not in ("all", "channel"):
        raise PlscError(f"layers.prelu: mode={mode!r}: expected 'all' or 'channel'")
    slopes = 1 if mode == "all" else int(x.shape[1])
    layer = _scope("prelu").layer(
        "prelu", name, (mode, slopes), lambda: nn.PReLU(slopes, init=0.25, weight_attr=param_attr)
    )
    return layer(x)


def dropout(x: paddle.Tensor, dropout_prob: float, is_test: bool = False) -> paddle.Tensor:
    """Sets elements to 0 with probability `dropout_prob` in training and scales up the others."""
    return functional.dropout(x, dropout_prob, training=not is_test, mode="upscale_in_train")


def pool2d(
    input: paddle.Tensor,
    pool_size: Size = 2,
    pool_type: str = "max",
    pool_stride: Size = 1,
    pool_padding: Size = 0,
    global_pooling: bool = False,
) -> paddle.Tensor:
    """Maximum ('max') or mean ('avg') of each window, or of the whole map."""
    if pool_type not in ("max", "avg"):
        raise PlscError(f"layers.pool2d: pool_type={pool_type!r}: expected 'max' or 'avg'")
    if global_pooling:
        adaptive = functional.adaptive_max_pool2d if pool_type == "max" else functional.adaptive_avg_pool2d
        return adaptive(input, 1)
    pool = functional.max_pool2d if pool_type == "max" else functional.avg_pool2d
    return pool(input, pool_size, pool_stride, pool_padding)


def relu(x: paddle.Tensor) -> paddle.Tensor:
    """max(x, 0)."""
    return functional.relu(x)


def elementwise_add(x: paddle.Tensor, y: paddle.Tensor, act: Optional[str] = None) -> paddle.Tensor:
    """x + y."""
    return _activated(x + y, act)
