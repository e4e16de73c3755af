"""The head's loss in float64 NumPy, written from the papers' formulas, class by class where that is clearer."""

import math

import numpy as np


def normalise(rows):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0), norms


def arc(cosine, margin):
    """cos(theta + margin), and cos(theta) - margin sin(margin) past pi."""
    theta = np.arccos(np.clip(cosine, -1, 1))
    return np.where(theta + margin < math.pi, np.cos(theta + margin), cosine - margin * np.sin(margin))


def psi(angle):
    """SphereFace's (-1)^k cos(angle) - 2k."""
    turns = np.floor(angle / math.pi)
    return (-1.0) ** turns * np.cos(angle) - 2 * turns


def statistics_of(kind, embedding, weight, label):
    """What adaptive margins look at without a gradient: norms, and their running statistics after this batch."""
    norm = np.linalg.norm(embedding, axis=1)
    held = np.clip(norm, 1e-3, 100)
    cosine = np.sum(normalise(embedding)[0] * normalise(weight)[0][label], axis=1)
    mean, std = (
        (0.99 * 20 + 0.01 * held.mean(), 0.99 * 100 + 0.01 * held.std(ddof=1)) if len(held) > 1 else (20.0, 100.0)
    )
    return {"norm": held, "mean": mean, "std": std, "t": 0.01 * cosine.mean()}


def target_of(kind, cosine, margin, norm, frozen):
    """The labelled class's cosine after the margin, [B]."""
    theta = np.arccos(np.clip(cosine, -1, 1))
    if kind in ("arcface", "curricularface"):
        return arc(cosine, margin)
    if kind == "cosface":
        return cosine - margin
    if kind == "sphereface":
        return psi(margin * theta)
    if kind == "combined":
        m1, m2, m3 = margin
        return psi(m1 * theta + m2) - m3
    if kind == "adaface":
        z = np.clip((frozen["norm"] - frozen["mean"]) / (frozen["std"] + 1e-3) * 0.333, -1, 1)
        return np.cos(np.clip(theta - margin * z, 0, math.pi)) - (margin * z + margin)
    assert kind == "magface"
    a = np.clip(norm, 10, 110)
    return arc(cosine, 0.45 + (0.8 - 0.45) / (110 - 10) * (a - 10))


def loss_of(kind, embedding, weight, bias, label, margin, scale, classes=None, frozen=None):
    """Mean cross entropy over `classes` (all of them by default), with MagFace's penalty."""
    frozen = frozen or statistics_of(kind, embedding, weight, label)
    samples = np.arange(len(label))
    classes = np.arange(len(weight)) if classes is None else classes
    column = np.searchsorted(classes, label)
    norm = np.linalg.norm(embedding, axis=1)
    if kind == "softmax":
        logits = embedding @ weight[classes].T + bias[classes]
    else:
        cosine = np.clip(normalise(embedding)[0] @ normalise(weight[classes])[0].T, -1, 1)
        target = target_of(kind, cosine[samples, column], margin, norm, frozen)
        if kind == "curricularface":
            hard = cosine > target[:, None]
            cosine = np.where(hard, cosine * (frozen["t"] + cosine), cosine)
        logits = cosine.copy()
        logits[samples, column] = target
        logits *= scale
    largest = logits.max(axis=1)
    loss = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1)) - logits[samples, column]
    if kind == "magface":
        a = np.clip(norm, 10, 110)
        loss = loss + 35 * (1 / a + a / 110**2)
    return float(np.mean(loss))


def numeric_gradient(function, array, step=1e-6):
    """Central differences of a scalar function over every element of `array`."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(*array.shape):
        kept = array[index]
        array[index] = kept + step
        above = function()
        array[index] = kept - step
        below = function()
        array[index] = kept
        gradient[index] = (above - below) / (2 * step)
    return gradient
