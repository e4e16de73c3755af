"""Updates of the head's rows in chunks, in place of an optimizer that would need the whole gradient."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, Optional, Union

import paddle
from paddle.nn import ClipGradByValue

from plsc.optim.lion import Lion
from plsc.optim.state import create_state, step_errors
from plsc.optim.wrapped import groups_of, set_list

# The rules of these treat each element by itself, so that a chunk of rows moves as it does in the whole matrix.
# Paddle 2.6 does not have all of them.
_BY_ELEMENT = {
    getattr(paddle.optimizer, name, Lion)
    for name in ("SGD", "Momentum", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSProp")
} | {Lion}

_DTYPES = (paddle.float32, paddle.float64, paddle.bfloat16)


class RowUpdate:
    """SGD or Momentum on one matrix of the head, applied to a chunk of rows as soon as its gradient is known.

    The numbers are those of Paddle's optimizer of that name, with its learning rate, L2 decay and Nesterov momentum,
    but the gradient of the whole matrix is never made. Rows that are not handed over keep their values and their
    momentum.

    Attributes:
        momentum: Factor on the momentum; 0 for SGD.
        decay: L2 coefficient.
        buffer: The momentum (Paddle's `velocity`), in the shape of the matrix; None for SGD.
        buffers: The same as a tuple, of none for SGD.
        in_place: Whether the gradient of a chunk may be added to `momentum * buffer` directly.
    """

    moves_rows = True

    def __init__(
        self,
        optimizer: paddle.optimizer.Optimizer,
        parameter: paddle.Tensor,
        momentum: float,
        nesterov: bool,
        decay: float,
    ) -> None:
        self._optimizer, self._nesterov = optimizer, nesterov
        self._rate_factor = float(parameter.optimize_attr["learning_rate"])
        self.momentum, self.decay = momentum, decay
        self.buffer = paddle.zeros_like(parameter) if momentum else None
        self.buffers: tuple[paddle.Tensor, ...] = () if self.buffer is None else (self.buffer,)
        self.in_place = momentum != 0.0 and not nesterov

    def state(self) -> dict[str, paddle.Tensor]:
        """Returns what a checkpoint keeps in addition to the accumulators of the optimizer, by name."""
        return {} if self.buffer is None else {"velocity": self.buffer}

    def begin(self) -> None:
        """Does nothing: a step has nothing that the chunks share."""

    def apply(self, rows: paddle.Tensor, gradient: paddle.Tensor, buffers: Sequence[paddle.Tensor]) -> None:
        """Moves rows in place.

        Args:
            rows: The rows, [C, D].
            gradient: Their gradient including decay, [C, D]; may be overwritten.
            buffers: Their momentum, [C, D]; where it is `gradient` itself, it has been updated already.
        """
        for buffer in buffers:
            if gradient is not buffer:
                buffer.scale_(self.momentum).add_(gradient)
                gradient = gradient.add_(buffer * self.momentum) if self._nesterov else buffer
        rows.add_(paddle.scale(gradient, -self._optimizer.get_lr() * self._rate_factor))


class RowOptimizer:
    """An optimizer on one matrix of the head, which is given a chunk of rows as soon as its gradient is known.

    It is the optimizer's own code that moves the rows, so the numbers are those that it has for the whole matrix. Its
    accumulators stay in the optimizer, under the name of the parameter. Rows that are not handed over keep their values
    and their moments; what the rows share, such as the powers of beta, moves with each step. For rows in
    bfloat16 they are in float32, except the velocity of Momentum.

    Args:
        optimizer: The optimizer, whose rule treats each element by itself.
        parameter: The matrix.
        group: The parameter group that the matrix is in, without its parameters; None where there are no groups.

    Attributes:
        buffers: The accumulators in the shape of the matrix.
    """

    momentum, decay, in_place, moves_rows = 0.0, 0.0, False, True

    def __init__(
        self, optimizer: paddle.optimizer.Optimizer, parameter: paddle.Tensor, group: Optional[dict[str, Any]]
    ) -> None:
        self._optimizer, self._parameter, self._group = optimizer, parameter, group
        with warnings.catch_warnings():  # Paddle expects a loss of precision; the rows are computed with in float32
            warnings.simplefilter("ignore" if parameter.dtype == paddle.bfloat16 else "default")
            create_state(optimizer, [parameter])
        own = {name: of[parameter.name] for name, of in optimizer._accumulators.items() if parameter.name in of}
        by_row = [name for name, tensor in own.items() if list(tensor.shape) == list(parameter.shape)]
        for name in by_row:
            # Some rules subtract what they keep, and take the root of the difference: bfloat16 could make it negative.
            if own[name].dtype == paddle.bfloat16 and type(optimizer) is not paddle.optimizer.Momentum:
                own[name] = optimizer._accumulators[name][parameter.name] = own[name].astype("float32")
        self._names = by_row
        self.buffers: tuple[paddle.Tensor, ...] = tuple(own[name] for name in by_row)
        self._shared = {name: tensor for name, tensor in own.items() if name not in by_row}
        self._before: dict[str, paddle.Tensor] = {}
        self._rate: Any = None

    def state(self) -> dict[str, paddle.Tensor]:
        """Returns nothing: a checkpoint finds the accumulators in the optimizer."""
        return {}

    def begin(self) -> None:
        """Takes the learning rate of the step, and moves what all rows share by one step."""
        self._optimizer._create_global_learning_rate()
        self._rate = self._optimizer._create_param_lr((self._parameter, None))
        self._before = {name: tensor.clone() for name, tensor in self._shared.items()}
        # A row of zeros moves it, also on a rank of which no rows are drawn.
        dtype = "float32" if self._parameter.dtype == paddle.bfloat16 else self._parameter.dtype
        row = paddle.zeros([1, *self._parameter.shape[1:]], dtype)
        with step_errors(self._optimizer):
            self._step(row, paddle.zeros_like(row), [paddle.zeros_like(row) for _ in self.buffers], self._shared)

    def apply(self, rows: paddle.Tensor, gradient: paddle.Tensor, buffers: Sequence[paddle.Tensor]) -> None:
        """Moves rows in place.

        Args:
            rows: The rows, [C, D].
            gradient: Their gradient, [C, D].
            buffers: Their parts of `buffers`, [C, D] each.
        """
        self._step(rows, gradient, buffers, {name: tensor.clone() for name, tensor in self._before.items()})

    def _step(
        self,
        rows: paddle.Tensor,
        gradient: paddle.Tensor,
        buffers: Sequence[paddle.Tensor],
        shared: dict[str, paddle.Tensor],
    ) -> None:
        """Has a copy of the optimizer, with these accumulators, do what it does to a parameter in a step."""
        one, whole, group = copy.copy(self._optimizer), self._parameter, self._group
        rows.name, rows.stop_gradient = whole.name, False
        one._accumulators = {
            name: {whole.name: tensor} for name, tensor in [*zip(self._names, buffers), *shared.items()]
        }
        one._create_param_lr = lambda _: self._rate
        clip = one._grad_clip if group is None else group.get("grad_clip")
        if clip is not None and getattr(whole, "need_clip", True):
            gradient = paddle.clip(gradient, clip.min, clip.max)
        own = getattr(whole, "regularizer", None)
        gradient = one._create_regularization_of_grad(rows, gradient, one.regularization if own is None else own)
        block, pair = paddle.static.default_main_program().global_block(), (rows, gradient)
        one._append_optimize_op(block, pair if group is None else {**group, "params": pair})
        one._finish_update(block, [pair] if group is None else {**group, "params": [pair]})


RowMover = Union[RowUpdate, RowOptimizer]


def row_update(optimizer: paddle.optimizer.Optimizer, parameter: paddle.Tensor) -> Optional[RowMover]:
    """Returns what moves the rows of `parameter` as `optimizer` would; None where only the optimizer itself can.

    Only the optimizer can where its rule needs the whole matrix at once, where plsc does not know its rule, and where
    it clips by the norm of single gradients.
    """
    if type(optimizer) not in _BY_ELEMENT or parameter.dtype not in _DTYPES:
        return None
    group = next((one for one in groups_of(optimizer) if any(p is parameter for p in one["params"])), None)
    clip = optimizer._grad_clip if group is None else group.get("grad_clip")
    if clip is not None and type(clip) is not ClipGradByValue:
        return None
    update = _momentum_update(optimizer, parameter) if group is None and clip is None else None
    if update is not None:
        return update
    if group is not None:
        group = {name: value for name, value in group.items() if name != "params"}
    return RowOptimizer(optimizer, parameter, group)


def _momentum_update(optimizer: paddle.optimizer.Optimizer, parameter: paddle.Tensor) -> Optional[RowUpdate]:
    """Returns the update of SGD or Momentum with L2 decay or none; None for other optimizers and other decays."""
    own = getattr(parameter, "regularizer", None)
    if type(optimizer) is paddle.optimizer.Momentum:
        common: Any = optimizer.regularization
        if common is None and optimizer._regularization_method == "l2_decay":
            common = paddle.regularizer.L2Decay(optimizer._regularization_coeff)
        momentum, nesterov = float(optimizer._momentum), bool(optimizer._use_nesterov)
        if optimizer._rescale_grad != 1.0:
            return None
    elif type(optimizer) is paddle.optimizer.SGD:
        common, momentum, nesterov = optimizer.regularization, 0.0, False
    else:
        return None
    decay = own if own is not None else common
    if decay is not None and not isinstance(decay, paddle.regularizer.L2Decay):
        return None
    return RowUpdate(optimizer, parameter, momentum, nesterov, 0.0 if decay is None else float(decay._coeff))


def take_rows(optimizer: paddle.optimizer.Optimizer, head: dict[str, paddle.Tensor]) -> dict[str, RowMover]:
    """Takes the parameters of the head away from `optimizer` if each of them can be moved chunk by chunk.

    Args:
        optimizer: The optimizer of the backbone and the head.
        head: The parameters of the head, by name.

    Returns:
        {name: update}; empty when the optimizer needs their whole gradients.
    """
    updates = {name: row_update(optimizer, parameter) for name, parameter in head.items()}
    if not all(updates.values()):
        return {}
    taken = {id(parameter) for parameter in head.values()}  # by identity: Paddle compares tensors by value
    if groups_of(optimizer):
        for group in optimizer._param_groups:
            group["params"] = [kept for kept in group["params"] if id(kept) not in taken]
        set_list(optimizer, [group for group in optimizer._param_groups if group["params"]])
    else:
        set_list(optimizer, [kept for kept in optimizer._parameter_list if id(kept) not in taken])
    return {name: update for name, update in updates.items() if update is not None}
