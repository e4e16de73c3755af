"""One step of the head in the plainest way: dense, in NumPy, on one process. Read this first.

Loss and exact gradients of every built-in loss. Training never runs this: it holds the logits of all classes, which the
streamed head exists to avoid. The tests compare the streamed head with it.

Shapes: B samples, C classes, D embedding, k sub-centres of a class, R = C k rows. theta is the angle between an
embedding and a class centre. plsc/heads/margins.py, plsc/heads/terms.py and plsc/heads/sub_centers.py name the papers.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Optional

import numpy as np

from plsc.heads.margins import AdaFace, AngularMargin, CurricularFace, MagFace, Margin
from plsc.heads.terms import PLAIN_LOSS, LossTerms


class Result(NamedTuple):
    """Loss and gradients of one batch.

    Attributes:
        loss: The mean over the batch, or the mean weighted by class weights.
        embedding: [B, D] d(loss)/d(embedding).
        weight: [C, D] d(loss)/d(W); [C, k, D] with sub-centres.
        bias: [C] d(loss)/d(bias); None with a margin.
        statistics: The margin's running statistics after the batch.
    """

    loss: float
    embedding: np.ndarray
    weight: np.ndarray
    bias: Optional[np.ndarray]
    statistics: tuple[float, ...] = ()


def softmax_step(
    embedding: np.ndarray, weight: np.ndarray, bias: np.ndarray, label: np.ndarray, terms: LossTerms = PLAIN_LOSS
) -> Result:
    """Computes plain softmax: logits X W^T + bias, and the mean cross entropy."""
    share_B = shares(label, terms)
    loss_B, error_BC = cross_entropy(embedding @ weight.T + bias, label, smoothing=terms.label_smoothing)
    error_BC *= share_B[:, None]
    return Result((share_B * loss_B).sum(), error_BC @ weight, error_BC.T @ embedding, error_BC.sum(axis=0))


def margin_step(
    embedding: np.ndarray,
    weight: np.ndarray,
    label: np.ndarray,
    *,
    margin: Margin,
    scale: float,
    statistics: tuple[float, ...] = (),
    terms: LossTerms = PLAIN_LOSS,
) -> Result:
    """Computes a loss with a margin: logits scale * cos(theta), with the cosine of the label replaced.

    `weight` is [C, D], or [C, k, D] with k sub-centres, of which the nearest counts. `statistics` are the margin's
    before this batch, and `terms` what is changed in the loss.
    """
    if terms.class_margins is not None:
        margin = margin.of_classes(terms.class_margins[label])
    at_label = np.arange(len(label)), label
    (unit_BD, norm_B), (center_RD, length_R) = normalised(embedding), normalised(weight.reshape(-1, weight.shape[-1]))
    cosine_BCk = np.clip(unit_BD @ center_RD.T, -1.0, 1.0).reshape(len(label), len(weight), -1)
    nearest_BC1 = cosine_BCk.argmax(axis=2)[:, :, None]  # of several, the first (Sub-center ArcFace, eq. 3)
    cosine_BC = np.take_along_axis(cosine_BCk, nearest_BC1, 2)[:, :, 0]
    statistics = observe(margin, statistics, norm_B, cosine_BC[at_label])
    target_B, slope_B, by_norm_B = target_of(margin, cosine_BC[at_label], norm_B, statistics)
    changed_BC, slope_BC = others_of(margin, cosine_BC, target_B, statistics)
    changed_BC[at_label], slope_BC[at_label] = target_B, slope_B
    filtered_BC = cosine_BC > (terms.interclass_filter or 2.0)
    filtered_BC[at_label] = False
    share_B = shares(label, terms)
    loss_B, error_BC = cross_entropy(scale * changed_BC, label, filtered_BC, terms.label_smoothing)
    error_BC *= share_B[:, None]
    penalty_B, penalty_by_norm_B = penalty_of(margin, norm_B)
    by_cosine_BCk = np.zeros_like(cosine_BCk)
    np.put_along_axis(by_cosine_BCk, nearest_BC1, (scale * error_BC * slope_BC)[:, :, None], 2)
    by_cosine_BR = by_cosine_BCk.reshape(len(label), -1)
    by_norm_B = scale * error_BC[at_label] * by_norm_B + penalty_by_norm_B * share_B
    by_embedding = through_normalisation(by_cosine_BR @ center_RD, unit_BD, norm_B) + by_norm_B[:, None] * unit_BD
    by_weight = through_normalisation(by_cosine_BR.T @ unit_BD, center_RD, length_R).reshape(weight.shape)
    return Result((share_B * (loss_B + penalty_B)).sum(), by_embedding, by_weight, None, statistics)


def cosine_lesson(embedding: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the mean of 1 - cos(student, teacher), and its derivative by the student's embeddings [B, D]."""
    (unit_BD, norm_B), (target_BD, _) = normalised(embedding), normalised(target)
    loss_B = 1.0 - (unit_BD * target_BD).sum(axis=1)
    return loss_B.mean(), through_normalisation(-target_BD / len(embedding), unit_BD, norm_B)


def relation_lesson(embedding: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the mean squared difference of all cosines between two samples, and its derivative as above."""
    (unit_BD, norm_B), (target_BE, _) = normalised(embedding), normalised(target)
    excess_BB = unit_BD @ unit_BD.T - target_BE @ target_BE.T
    np.fill_diagonal(excess_BB, 0.0)
    pairs = max(1, len(embedding) * (len(embedding) - 1))
    by_unit_BD = 4.0 / pairs * excess_BB @ unit_BD
    return (excess_BB**2).sum() / pairs, through_normalisation(by_unit_BD, unit_BD, norm_B)


def cross_entropy(
    logits_BC: np.ndarray, label: np.ndarray, filtered_BC: Optional[np.ndarray] = None, smoothing: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each sample's -log(probability of its label), and its derivative by the logits.

    Args:
        logits_BC: The logits.
        label: The labels [B].
        filtered_BC: Which classes are left out of the sum of the softmax; None for none.
        smoothing: The share of the label's probability that is asked for from all classes alike.
    """
    wanted_BC = np.full_like(logits_BC, smoothing / logits_BC.shape[1])
    wanted_BC[np.arange(len(label)), label] += 1.0 - smoothing
    logits_BC = logits_BC - logits_BC.max(axis=1, keepdims=True)
    summed_BC = np.exp(logits_BC) if filtered_BC is None else np.exp(logits_BC) * ~filtered_BC
    total_B1 = summed_BC.sum(axis=1, keepdims=True)
    return np.log(total_B1[:, 0]) - (wanted_BC * logits_BC).sum(axis=1), summed_BC / total_B1 - wanted_BC


def shares(label: np.ndarray, terms: LossTerms) -> np.ndarray:
    """Returns the share of each sample in the loss [B]: that of the weight of its class in the weights of the batch."""
    weight_B = np.ones(len(label)) if terms.class_weights is None else terms.class_weights[label].astype("float64")
    return weight_B / (weight_B.sum() or 1.0)


def normalised(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns unit rows and norms; a zero row stays zero."""
    norm = np.linalg.norm(rows, axis=1)
    return np.divide(rows, norm[:, None], out=np.zeros_like(rows), where=norm[:, None] > 0), norm


def through_normalisation(gradient: np.ndarray, unit: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """Returns the gradient by the rows from that by the unit rows: less the radial part, divided by the norm."""
    tangential = gradient - unit * (unit * gradient).sum(axis=1, keepdims=True)
    return np.divide(tangential, norm[:, None], out=np.zeros_like(unit), where=norm[:, None] > 0)


def target_of(
    margin: Margin, cosine: np.ndarray, norm: np.ndarray, statistics: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what replaces the label's cosine, and its derivatives by the cosine and by the embedding's norm."""
    theta, by_norm = np.arccos(cosine), np.zeros_like(cosine)
    if isinstance(margin, AngularMargin) and margin.m1 != 1.0:  # SphereFace, eq. 7: psi(angle)
        angle = margin.m1 * theta + margin.m2
        turns = np.floor(angle / math.pi)
        value = (-1.0) ** turns * np.cos(angle) - 2.0 * turns - margin.m3
        by_theta = -((-1.0) ** turns) * np.sin(angle) * margin.m1
    elif isinstance(margin, AngularMargin):  # ArcFace, eq. 4; CosFace, eq. 4
        value, by_theta, _ = _cosine_of_sum(theta, margin.m2)
        value = value - margin.m3
    elif isinstance(margin, AdaFace):  # section 3; no gradient by the norm
        mean, std = statistics
        quality = np.clip((np.clip(norm, 1e-3, 100.0) - mean) / (std + 1e-3) * margin.h, -1.0, 1.0)
        angle = np.clip(theta - margin.m * quality, 0.0, math.pi)
        value, by_theta = np.cos(angle) - margin.m * quality - margin.m, -np.sin(angle)
    elif isinstance(margin, MagFace):  # section 3: m(a) grows with the norm a
        slope = (margin.u_m - margin.l_m) / (margin.u_a - margin.l_a)
        added = margin.l_m + slope * (np.clip(norm, margin.l_a, margin.u_a) - margin.l_a)
        value, by_theta, by_margin = _cosine_of_sum(theta, added)
        by_norm = by_margin * slope * ((norm >= margin.l_a) & (norm <= margin.u_a))
    else:
        assert isinstance(margin, CurricularFace)  # section 3: T
        value, by_theta, _ = _cosine_of_sum(theta, margin.m)
    return value, -by_theta / np.maximum(np.sin(theta), 1e-12), by_norm


def _cosine_of_sum(theta: np.ndarray, margin: np.ndarray | float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns cos(theta + margin), or cos(theta) - margin sin(margin) past pi, and its derivatives by both."""
    inside, sine = theta + margin < math.pi, np.sin(theta + margin)
    value = np.where(inside, np.cos(theta + margin), np.cos(theta) - margin * np.sin(margin))
    by_margin = np.where(inside, -sine, -np.sin(margin) - margin * np.cos(margin))
    return value, np.where(inside, -sine, -np.sin(theta)), by_margin


def others_of(
    margin: Margin, cosine: np.ndarray, target: np.ndarray, statistics: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what replaces the cosines of the other classes, and its derivative (CurricularFace: N(t, cos))."""
    if not isinstance(margin, CurricularFace):
        return cosine.copy(), np.ones_like(cosine)
    hard, (t,) = cosine > target[:, None], statistics
    return np.where(hard, cosine * (t + cosine), cosine), np.where(hard, t + 2.0 * cosine, 1.0)


def penalty_of(margin: Margin, norm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is added to each sample's loss, and its derivative by the norm (MagFace, eq. 2: lambda_g g(a))."""
    if not isinstance(margin, MagFace):
        return np.zeros_like(norm), np.zeros_like(norm)
    held, inside = np.clip(norm, margin.l_a, margin.u_a), (norm >= margin.l_a) & (norm <= margin.u_a)
    by_norm = (1.0 / margin.u_a**2 - 1.0 / held**2) * inside
    return margin.lambda_g * (1.0 / held + held / margin.u_a**2), margin.lambda_g * by_norm


def observe(margin: Margin, statistics: tuple[float, ...], norm: np.ndarray, cosine: np.ndarray) -> tuple[float, ...]:
    """Returns the running statistics after a batch: exponential moving averages."""
    if isinstance(margin, CurricularFace):
        seen: tuple[float, ...] = (cosine.mean(),)
    elif isinstance(margin, AdaFace) and len(norm) > 1:  # one sample has no standard deviation
        held = np.clip(norm, 1e-3, 100.0)
        seen = (held.mean(), held.std(ddof=1))
    else:
        return statistics
    return tuple(margin.momentum * old + (1.0 - margin.momentum) * new for old, new in zip(statistics, seen))
