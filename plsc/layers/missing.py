"""The error for a name of Paddle 1.x that plsc does not have; it says what to use instead."""

from __future__ import annotations

import dis
import sys
from collections.abc import Mapping

from plsc.errors import PlscError

LAYERS = {
    **dict.fromkeys(
        ("data", "py_reader", "double_buffer", "read_file"), "build_network receives the images and labels"
    ),
    **dict.fromkeys(
        (
            "autoincreased_step_counter",
            "create_global_var",
            "While",
            "Switch",
            "cond",
            "IfElse",
            "StaticRNN",
            "DynamicRNN",
        ),
        "build_network runs as plain Python: use its variables, if and for",
    ),
    **dict.fromkeys(
        ("dynamic_lstm", "dynamic_lstmp", "lstm", "lstm_unit", "LSTMCell"), "make a paddle.nn.LSTM in __init__"
    ),
    **dict.fromkeys(("dynamic_gru", "gru_unit", "GRUCell"), "make a paddle.nn.GRU in __init__"),
    **dict.fromkeys(("conv3d", "conv3d_transpose"), "make a paddle.nn.Conv3D or Conv3DTranspose in __init__"),
    **dict.fromkeys(("pool3d", "adaptive_pool3d"), "use paddle.nn.functional.max_pool3d or avg_pool3d"),
    "spectral_norm": "use paddle.nn.utils.spectral_norm on a layer made in __init__",
    "inplace_abn": "use batch_norm and leaky_relu",
    "data_norm": "use batch_norm",
    "row_conv": "use conv2d",
    "center_loss": "use set_loss_type of Entry; plsc provides the last layer and its loss",
    "sampled_softmax_with_cross_entropy": "use set_sample_ratio of Entry",
    "affine_channel": "use elementwise_mul and elementwise_add with axis=1",
    "brelu": "use clip",
    "soft_relu": "use softplus",
    "hard_shrink": "use paddle.nn.functional.hardshrink",
    "logsigmoid": "use paddle.nn.functional.log_sigmoid",
    "topk": "use paddle.topk",
    "sum": "use paddle.add_n",
    "sums": "use paddle.add_n",
    "pad": "use paddle.nn.functional.pad",
    "expand": "use paddle.tile, which repeats as expand did",
    "expand_as": "use paddle.tile",
    "fill_constant": "use paddle.full",
    "fill_constant_batch_size_like": "use paddle.full with the shape of the other tensor",
    "gaussian_random": "use paddle.normal",
    "uniform_random": "use paddle.uniform",
    "resize_trilinear": "use paddle.nn.functional.interpolate",
    "lrn": "use paddle.nn.functional.local_response_norm",
    "space_to_depth": "use paddle.nn.functional.pixel_unshuffle",
    "shuffle_channel": "use paddle.nn.functional.channel_shuffle",
    "sigmoid_cross_entropy_with_logits": "use paddle.nn.functional.binary_cross_entropy_with_logits",
    "smooth_l1": "use paddle.nn.functional.smooth_l1_loss",
    "warpctc": "use paddle.nn.functional.ctc_loss",
    "Print": "use print: build_network runs as plain Python",
}
_CALCULATIONS = "use the equivalent function in paddle or paddle.nn.functional"


class NotHereError(PlscError, AttributeError):
    """The error for a name of Paddle 1.x that plsc does not have; the message says what to use instead."""


def not_here(module: str, name: str, hints: Mapping[str, str] = LAYERS, otherwise: str = _CALCULATIONS) -> Exception:
    """Returns the error that the `__getattr__` of a module raises.

    Args:
        module: Module as users write it, such as 'fluid.layers'.
        name: The missing name.
        hints: For some names what to use instead.
        otherwise: What to use instead of a name that has no hint.
    """
    if name.startswith("__"):  # Python itself looks for such names.
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    hint = hints.get(name)
    if hint is None and hints is LAYERS:
        for home in ("paddle.nn.functional", "paddle"):
            if callable(getattr(sys.modules[home], name, None)):
                hint = f"use {home}.{name}"
                break
    text = f"{module}.{name} is not in plsc; {hint or otherwise} (docs/fluid.md lists the supported names)"
    # `from module import name` turns an AttributeError into an ImportError without its text.
    frame = sys._getframe(2)
    importing = frame.f_code.co_code[frame.f_lasti] == dis.opmap["IMPORT_FROM"]
    return ImportError(text) if importing else NotHereError(text)
