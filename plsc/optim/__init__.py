"""Optimizers: the default one and its schedule, those of users, and what training does with their gradients."""

from __future__ import annotations

from plsc.optim.build import (
    MOMENTUM,
    WEIGHT_DECAY,
    OptimizerOrFactory,
    build_optimizer,
    check_parameters,
    deferred,
    learning_rate_at,
)
from plsc.optim.clip import NormClip, clip_factor, head_squares, scale_gradients, squares_of, take_clips
from plsc.optim.factors import check_joining, scale_rates
from plsc.optim.lion import Lion
from plsc.optim.rows import RowMover, RowOptimizer, RowUpdate, row_update, take_rows
from plsc.optim.schedule import Schedules, rate_of
from plsc.optim.state import (
    clear_grad,
    copies_of_state,
    create_state,
    first_not_finite,
    first_tensor_not_finite,
    optimizer_state,
    step,
)

__all__ = [
    "MOMENTUM",
    "WEIGHT_DECAY",
    "Lion",
    "NormClip",
    "OptimizerOrFactory",
    "RowMover",
    "RowOptimizer",
    "RowUpdate",
    "Schedules",
    "build_optimizer",
    "check_joining",
    "check_parameters",
    "clear_grad",
    "clip_factor",
    "copies_of_state",
    "create_state",
    "deferred",
    "first_not_finite",
    "first_tensor_not_finite",
    "head_squares",
    "learning_rate_at",
    "optimizer_state",
    "rate_of",
    "row_update",
    "scale_gradients",
    "scale_rates",
    "squares_of",
    "step",
    "take_clips",
    "take_rows",
]
