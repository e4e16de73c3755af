"""The head's loss and gradients in float64 NumPy, written from the formulas, class by class where that is clearer."""

import math

import numpy as np


def normalise(rows):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0), norms


def loss_of(kind, embedding, weight, bias, label, margin, scale):
    """Mean cross entropy of kind softmax, arcface or cosface."""
    rows = np.arange(len(label))
    if kind == "softmax":
        logits = embedding @ weight.T + bias
    else:
        cosine = np.clip(normalise(embedding)[0] @ normalise(weight)[0].T, -1, 1)
        target = cosine[rows, label]
        if kind == "arcface":
            theta = np.arccos(target)
            target = np.where(theta + margin < math.pi, np.cos(theta + margin), target - margin * math.sin(margin))
        else:
            target = target - margin
        logits = cosine.copy()
        logits[rows, label] = target
        logits *= scale
    largest = logits.max(axis=1)
    return float(np.mean(largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1)) - logits[rows, label]))


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
