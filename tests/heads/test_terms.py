"""What changes the loss, where the head takes other ways than in the cases of `head_cases`."""

import numpy as np
import paddle
import pytest
from head_cases import DIM

from plsc.heads import build_head, build_margin, reference
from plsc.heads.terms import LossTerms, class_balanced_weights, ldam_margins, unfiltered

pytestmark = pytest.mark.core

CLASSES, BATCH = 11, 9


def made(kind, terms, scale, dtype="float64", **options):
    """Returns a head and a batch, on which the filter and the smoothing have much to do."""
    rng = np.random.default_rng(3)
    head = build_head(kind, CLASSES, DIM, scale=scale, dtype=dtype, chunk=3, terms=terms, **options)
    head.weight.set_value(rng.normal(size=head.weight.shape).astype(dtype))
    return head, rng.normal(size=(BATCH, DIM)), rng.integers(0, CLASSES, BATCH)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-7), ("float32", 1e-4)])  # as for all heads
@pytest.mark.parametrize("scale", [16.0, 70.0, 300.0])  # from 66 on, logits are not bounded
@pytest.mark.parametrize("kind, sub_centers", [("cosface", 1), ("curricularface", 1), ("cosface", 3)])
def test_any_scale_agrees_with_the_reference(kind, sub_centers, scale, dtype, tolerance):
    terms = LossTerms(0.2, 0.1)
    head, embedding, label = made(kind, terms, scale, dtype, sub_centers=sub_centers)
    margin, weight = build_margin(kind), head.weight.numpy().astype("float64")
    wanted = reference.margin_step(
        embedding, weight, label, margin=margin, scale=scale, statistics=margin.initial_state, terms=terms
    )
    found = head(paddle.to_tensor(embedding.astype(dtype)), label)
    head.backward()
    assert found.loss == pytest.approx(wanted.loss, rel=tolerance)
    for value, expected in ((found.embedding_grad, wanted.embedding), (head.weight.grad, wanted.weight)):
        np.testing.assert_allclose(value.numpy(), expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("scale", [16.0, 70.0])
def test_a_sample_whose_other_classes_are_all_filtered_has_no_loss(scale):
    head, embedding, label = made("arcface", LossTerms(1e-6), scale)
    head.weight.set_value(np.ones([CLASSES, DIM]) + 1e-3 * head.weight.numpy())
    found = head(paddle.to_tensor(np.abs(embedding)), label)
    head.backward()
    assert found.problem is None and found.loss == 0.0
    assert not found.embedding_grad.numpy().any() and not head.weight.grad.numpy().any()


def test_weights_that_are_all_zero_in_a_batch_give_no_loss_and_no_gradient():
    weights = np.zeros(CLASSES, "float32")
    head, embedding, label = made("cosface", LossTerms(class_weights=weights), 16.0)
    found = head(paddle.to_tensor(embedding), label)
    head.backward()
    assert found.problem is None and found.loss == 0.0 and not head.weight.grad.numpy().any()


def test_only_the_ratios_of_weights_count():
    weights = np.random.default_rng(1).uniform(0.5, 3, CLASSES).astype("float32")
    results = []
    for factor in (1.0, 8.0):
        head, embedding, label = made("cosface", LossTerms(class_weights=weights * factor), 16.0)
        results.append(head(paddle.to_tensor(embedding), label))
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)
    np.testing.assert_allclose(results[0].embedding_grad, results[1].embedding_grad, rtol=1e-6)


def test_what_the_first_walk_filtered_the_second_filters_in_spite_of_rounding():
    """A class just above the threshold leaves the sum, and may be just below it when it is computed again."""
    product = paddle.to_tensor([[8.001, 7.999, 7.999]])
    total = paddle.to_tensor([[1.0, 1.0, 7.999]])  # logarithms; a class that is in a sum is below it
    assert unfiltered(product, 8.0, product, None).tolist() == [[0.0, 1.0, 1.0]]
    assert unfiltered(product, 8.0, product, total).tolist() == [[0.0, 0.0, 1.0]]


def test_weights_follow_the_effective_number_of_images():
    counts = np.array([0, 1, 10, 1000])
    np.testing.assert_allclose(
        class_balanced_weights(counts, 0.9), [(1 - 0.9) / (1 - 0.9**n) for n in (1, 1, 10, 1000)], rtol=1e-6
    )
    assert class_balanced_weights(counts, 0.0).tolist() == [1.0, 1.0, 1.0, 1.0]


def test_margins_fall_with_the_fourth_root_of_the_images():
    margins = ldam_margins(np.array([0, 2, 32, 162]), 0.4)
    np.testing.assert_allclose(margins, [0.4, 0.4, 0.2, 0.4 / 3], rtol=1e-6)
