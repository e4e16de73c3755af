"""The gradients of the dense reference agree with finite differences of its loss."""

import dataclasses

import numpy as np
import pytest
from head_cases import KINDS, margin_of

from plsc.config import MARGINS_BY_CLASS
from plsc.heads import build_margin, reference
from plsc.heads.terms import LossTerms

CLASSES, BATCH, DIM = 5, 6, 4


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


def terms_for(kind):
    """Returns all that can change a loss."""
    rng = np.random.default_rng(0)
    return LossTerms(
        interclass_filter=0.0 if kind == "softmax" else 0.4,
        label_smoothing=0.2,
        class_weights=rng.uniform(0, 3, CLASSES).astype("float32"),
        class_margins=rng.uniform(0, 0.7, CLASSES).astype("float32") if kind in MARGINS_BY_CLASS else None,
    )


@pytest.mark.parametrize(
    "seed, is_plain, sub_centers",
    [*((seed, True, 1) for seed in range(4)), (0, False, 1), (1, False, 1), (0, True, 3), (1, True, 3), (2, False, 3)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_finite_differences(kind, seed, is_plain, sub_centers):
    rng = np.random.default_rng(seed)
    has_sub_centers = sub_centers > 1 and kind != "softmax"
    embedding = rng.normal(size=(BATCH, DIM))
    weight = rng.normal(size=(CLASSES, sub_centers, DIM) if has_sub_centers else (CLASSES, DIM))
    embedding *= rng.uniform(1, 80, (BATCH, 1))  # norms below, within and beyond MagFace's bounds
    bias, label, norm = rng.normal(size=CLASSES), rng.integers(0, CLASSES, BATCH), np.linalg.norm(embedding, axis=1)
    margin = build_margin(kind, margin_of(kind))
    if margin is not None and margin.initial_state:
        margin = dataclasses.replace(margin, momentum=1.0)  # the statistics stand still: no gradient flows through them
    terms = LossTerms() if is_plain else terms_for(kind)
    statistics = {"adaface": (60.0, 30.0), "curricularface": (0.3,)}.get(kind, ())

    def step():
        if margin is None:
            return reference.softmax_step(embedding, weight, bias, label, terms)
        rows = embedding
        if kind == "adaface":  # looks at the norm without a gradient
            rows = embedding * (norm / np.linalg.norm(embedding, axis=1))[:, None]
        return reference.margin_step(rows, weight, label, margin=margin, scale=8.0, statistics=statistics, terms=terms)

    found = step()
    assert (found.bias is None) == (kind != "softmax") and found.statistics == statistics
    pairs = [(found.embedding, embedding), (found.weight, weight), *([(found.bias, bias)] if kind == "softmax" else [])]
    for gradient, array in pairs:
        np.testing.assert_allclose(
            gradient, numeric_gradient(lambda: step().loss, array), rtol=1e-6, atol=1e-7, err_msg=kind
        )
