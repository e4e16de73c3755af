"""Mixed precision: lists of operators, loss scaling, and a simulation on CPUs that rounds where a GPU would."""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Optional

import numpy as np
import paddle

from plsc import parallel
from plsc.config import MixedPrecision
from plsc.errors import ConfigError, shown

logger = logging.getLogger("plsc")

_LARGEST_SCALE = float(np.finfo("float32").max)


class AutoMixedPrecisionLists:
    """Lists of operators that change which ones Paddle computes in the low precision.

    Args:
        custom_white_list: Names of operators to compute in the low precision too, such as 'softmax'.
        custom_black_list: Names of operators to compute in float32, such as 'conv2d'.

    Raises:
        ConfigError: Paddle does not know a name, or a name is in both lists.

    Example:
        >>> from plsc.amp import AutoMixedPrecisionLists
        >>> AutoMixedPrecisionLists(custom_black_list=["matmul"]).custom_black_list
        {'matmul'}
    """

    def __init__(
        self, custom_white_list: Optional[Iterable[str]] = None, custom_black_list: Optional[Iterable[str]] = None
    ) -> None:
        self.custom_white_list = _known("custom_white_list", custom_white_list)
        self.custom_black_list = _known("custom_black_list", custom_black_list)
        both = sorted(self.custom_white_list & self.custom_black_list)
        if both:
            raise ConfigError(f"amp_lists: {both[0]!r} is in the white list and in the black list; leave it in one")


def as_lists(amp_lists: Any) -> AutoMixedPrecisionLists:
    """Returns the lists that were given to `set_mixed_precision`.

    Args:
        amp_lists: None, an `AutoMixedPrecisionLists`, or Paddle's class of the same name.

    Raises:
        ConfigError: It is something else.
    """
    if amp_lists is None:
        return AutoMixedPrecisionLists()
    if isinstance(amp_lists, AutoMixedPrecisionLists):
        return amp_lists
    if type(amp_lists).__name__ == "AutoMixedPrecisionLists" and hasattr(amp_lists, "_custom_white_list"):
        return AutoMixedPrecisionLists(amp_lists._custom_white_list, amp_lists._custom_black_list)
    raise ConfigError(
        f"set_mixed_precision: amp_lists={shown(amp_lists)}: expected None or an AutoMixedPrecisionLists of plsc.amp "
        "or Paddle"
    )


class DynamicLossScaler:
    """A factor on the gradients that keeps small ones from being lost in float16.

    See Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2. The scale is multiplied with `incr_ratio`
    after `incr_every_n_steps` finite steps in a row, and with `decr_ratio` after `decr_every_n_nan_or_inf` steps in a
    row that overflowed. It never grows beyond float32. It never falls below 1 (or below `init_loss_scaling`, where that
    is less), because the scale cannot be the reason why a step overflows without one.

    Attributes:
        scale: Scale of the next step.
        floor: The least scale.
        good_steps: Finite steps in a row since the scale last changed.
        bad_steps: Overflowing steps in a row since the scale last changed.
    """

    def __init__(self, settings: MixedPrecision) -> None:
        self._settings = settings
        self.scale = settings.init_loss_scaling if settings.scales_loss else 1.0
        self.floor = min(1.0, self.scale)
        self.good_steps, self.bad_steps = 0, 0

    @property
    def can_shrink(self) -> bool:
        """Whether a smaller scale may cure an overflow."""
        return self._settings.scales_loss and self._settings.use_dynamic_loss_scaling and self.scale > self.floor

    def update(self, finite: bool) -> None:
        """Adapts the scale after a step.

        Args:
            finite: Whether the loss and all gradients were finite on all ranks.
        """
        settings = self._settings
        if not settings.scales_loss or not settings.use_dynamic_loss_scaling:
            return
        if finite:
            self.good_steps, self.bad_steps = self.good_steps + 1, 0
            if self.good_steps == settings.incr_every_n_steps:
                self.good_steps = 0
                self.scale = min(self.scale * settings.incr_ratio, _LARGEST_SCALE)
            return
        self.good_steps, self.bad_steps = 0, self.bad_steps + 1
        if self.bad_steps == settings.decr_every_n_nan_or_inf:
            self.bad_steps = 0
            shrunk = self.scale * settings.decr_ratio
            self.scale = max(shrunk, self.floor)
            if shrunk < self.floor:
                logger.warning(
                    "the loss scale stays at its floor of %g: steps overflow although gradients are not scaled up, so "
                    "the loss itself grows too large; lower set_lr, or add set_warmup_epochs",
                    self.floor,
                )

    def state(self) -> dict[str, float]:
        """Returns what a checkpoint keeps of the scaler."""
        return {"scale": self.scale, "good_steps": self.good_steps, "bad_steps": self.bad_steps}

    def load(self, state: dict[str, Any]) -> None:
        """Takes over the state in a checkpoint."""
        self.scale = float(state["scale"])
        self.good_steps, self.bad_steps = int(state["good_steps"]), int(state["bad_steps"])


def autocast(settings: MixedPrecision) -> contextlib.AbstractContextManager:
    """Returns the context in which the backbone's forward pass runs.

    On a GPU that is Paddle's automatic mixed precision; on a CPU it is a simulation of it, or nothing.
    """
    if not settings.use_fp16:
        return contextlib.nullcontext()
    lists = as_lists(settings.amp_lists)
    white, black = lists.custom_white_list, lists.custom_black_list
    if not parallel.on_cpu():
        return paddle.amp.auto_cast(True, white or None, black or None, level="O1", dtype=settings.dtype)
    if not settings.simulate:
        return contextlib.nullcontext()
    white = _with_aliases(set(paddle.amp.white_list()[settings.dtype]["O1"]) | white)
    return _simulated(settings.dtype, white - _with_aliases(black))


class _Rounded(paddle.autograd.PyLayer):
    """A function that rounds a value to the low precision, and its gradient in the backward pass."""

    @staticmethod
    def forward(context: Any, value: paddle.Tensor, dtype: str) -> paddle.Tensor:
        context.dtype = dtype
        return value.astype(dtype).astype("float32")

    @staticmethod
    def backward(context: Any, gradient: paddle.Tensor) -> paddle.Tensor:
        return gradient.astype(context.dtype).astype("float32")


@contextlib.contextmanager
def _simulated(dtype: str, operators: set[str]) -> Iterator[None]:
    """Rounds the inputs and outputs of `operators`, and their gradients.

    Paddle's functions look up their operators in `paddle._C_ops` at each call (2.6 to 3.3), so they are replaced there.
    """
    names = {name for name in operators if hasattr(paddle._C_ops, name)}
    originals = {name: getattr(paddle._C_ops, name) for name in names}
    for name, original in originals.items():
        setattr(paddle._C_ops, name, _rounding(original, dtype))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(paddle._C_ops, name, original)


def _rounding(operator: Callable[..., Any], dtype: str) -> Callable[..., Any]:
    def rounded(value: Any) -> Any:
        is_float = isinstance(value, paddle.Tensor) and value.dtype == paddle.float32
        return _Rounded.apply(value, dtype) if is_float else value

    def wrapper(*arguments: Any, **options: Any) -> Any:
        return rounded(operator(*map(rounded, arguments), **options))

    return wrapper


def _with_aliases(names: set[str]) -> set[str]:
    """Returns `names`, with the names that the same operators have in `paddle._C_ops`."""
    matmul = {"matmul", "matmul_v2", "linear", "linear_v2"}
    aliases = {"conv2d": {"depthwise_conv2d"}, "matmul": matmul, "matmul_v2": matmul}
    return names.union(*(aliases.get(name, set()) for name in names))


def _known(argument: str, names: Optional[Iterable[str]]) -> set[str]:
    if names is None:
        return set()
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"amp_lists: {argument}={names!r}: expected a list of operator names")
    known = {name for name in dir(paddle._C_ops) if not name.startswith("_")}
    for table in (paddle.amp.white_list(), paddle.amp.black_list()):
        known |= set(table["float16"]["O1"])
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"amp_lists: {argument}: Paddle has no operator {name!r}{hint}")
    return set(names)


def describe(settings: MixedPrecision) -> str:
    """Describes the precision in one line, for the log."""
    if not settings.use_fp16:
        return "float32"
    scaling = "no loss scaling"
    if settings.scales_loss:
        kind = "dynamic" if settings.use_dynamic_loss_scaling else "fixed"
        scaling = f"{kind} loss scaling from {settings.init_loss_scaling:g}"
    if not parallel.on_cpu():
        return f"{settings.dtype} for the operators of Paddle's lists, {scaling}"
    if settings.simulate:
        return f"{settings.dtype} simulated in float32, {scaling}"
    return f"float32 instead of {settings.dtype}, for which Paddle has no arithmetic on a CPU; {scaling}"
