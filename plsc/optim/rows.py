"""Updates of the head's rows in chunks, in place of an optimizer that would need the whole gradient."""

from __future__ import annotations

from typing import Any, Optional

import paddle

from plsc.optim.wrapped import groups_of, set_list


class RowUpdate:
    """SGD or Momentum on one matrix of the head, applied to a chunk of rows as soon as its gradient is known.

    The numbers are those of Paddle's optimizer of that name, with its learning rate, L2 decay and Nesterov momentum,
    but the gradient of the whole matrix is never made. Rows that are not handed over keep their values and their
    momentum.

    Attributes:
        momentum: Factor on the momentum; 0 for SGD.
        decay: L2 coefficient.
        buffer: The momentum (Paddle's `velocity`), in the shape of the matrix; None for SGD.
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
        self.in_place = momentum != 0.0 and not nesterov

    def apply(self, rows: paddle.Tensor, gradient: paddle.Tensor, buffer: Optional[paddle.Tensor]) -> None:
        """Moves rows in place.

        Args:
            rows: The rows, [C, D].
            gradient: Their gradient including decay, [C, D]; may be overwritten.
            buffer: Their momentum, [C, D]; where it is `gradient` itself, it has been updated already.
        """
        if buffer is not None and gradient is not buffer:
            buffer.scale_(self.momentum).add_(gradient)
            gradient = gradient.add_(buffer * self.momentum) if self._nesterov else buffer
        rows.add_(paddle.scale(gradient, -self._optimizer.get_lr() * self._rate_factor))


def row_update(optimizer: paddle.optimizer.Optimizer, parameter: paddle.Tensor) -> Optional[RowUpdate]:
    """Returns what moves the rows of `parameter` as `optimizer` would; None where only the optimizer itself can.

    Only the optimizer can with every kind but Momentum and SGD, with a decay other than L2, and with clipping by value
    or by the norm of single gradients.
    """
    if optimizer._grad_clip is not None or groups_of(optimizer):
        return None
    if parameter.dtype not in (paddle.float32, paddle.float64):
        return None
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


def take_rows(optimizer: paddle.optimizer.Optimizer, head: dict[str, paddle.Tensor]) -> dict[str, RowUpdate]:
    """Takes the parameters of the head away from `optimizer` if a `RowUpdate` can move each of them.

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
    set_list(optimizer, [kept for kept in optimizer._parameter_list if id(kept) not in taken])
    return {name: update for name, update in updates.items() if update is not None}
