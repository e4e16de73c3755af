import numpy as np
import paddle
import pytest

from plsc.errors import ConfigError
from plsc.heads import build_head
from plsc.heads.sub_centers import nearest_of, nearest_rows


@pytest.mark.core
@pytest.mark.parametrize("sub_centers", [1, 2, 3, 4])
def test_the_first_of_equally_near_rows_gets_everything(sub_centers):
    values = np.random.default_rng(sub_centers).integers(0, 2, (5, sub_centers, 40)).astype("float32")
    nearest = nearest_of(paddle.to_tensor(values.reshape(-1, 40)), sub_centers)
    np.testing.assert_array_equal(nearest.product_KB.numpy(), values.max(axis=1))
    first = values.argmax(axis=1)
    expected = np.zeros_like(values)
    np.put_along_axis(expected, first[:, None], 7.0, axis=1)
    spread = nearest.spread(paddle.full([5, 40], 7.0))
    np.testing.assert_array_equal(spread.numpy().reshape(values.shape), expected)


@pytest.mark.core
def test_the_label_is_compared_by_angle_and_prefers_the_first_of_equal_rows():
    rows = np.array([[[0, 9.0], [1, 0], [2, 0]], [[0, 0], [-1, 0], [0, 0]]], "float32")
    center, number = nearest_rows(paddle.to_tensor(rows), paddle.to_tensor([[1.0, 0.0], [1.0, 0.0]]))
    np.testing.assert_array_equal(number.numpy(), [1, 0])
    np.testing.assert_array_equal(center.numpy(), [[1, 0], [0, 0]])


@pytest.mark.core
def test_equal_rows_of_a_class_train_like_its_only_row():
    """Where all rows of a class are the same, the first one alone moves, as the only row would."""
    rng = np.random.default_rng(0)
    weight, embedding = rng.integers(-3, 4, (5, 6)), rng.normal(size=(8, 6))
    found = []
    for sub_centers in (1, 3):
        head = build_head("arcface", 5, 6, dtype="float64", chunk=4, sub_centers=sub_centers)
        rows = weight if sub_centers == 1 else np.repeat(weight[:, None], sub_centers, axis=1)
        head.weight.set_value(rows.astype("float64"))
        out = head(paddle.to_tensor(embedding), np.arange(8) % 5, True)
        head.backward()
        found.append((out, head.weight.grad.numpy()))
    (one, of_one), (several, of_several) = found
    assert several.loss == pytest.approx(one.loss, rel=1e-12) and several.correct == one.correct
    np.testing.assert_allclose(of_several[:, 0], of_one, rtol=1e-9, atol=1e-12)
    assert not of_several[:, 1:].any()


def test_fresh_rows_do_not_depend_on_the_number_of_sub_centers_for_one():
    one, same, two = (
        build_head("arcface", 9, 6, seed=3, **k).weight for k in ({}, {"sub_centers": 1}, {"sub_centers": 2})
    )
    np.testing.assert_array_equal(one.numpy(), same.numpy())
    assert two.shape == [9, 2, 6] and len(np.unique(two.numpy())) == 9 * 2 * 6


def test_softmax_has_no_sub_centers():
    with pytest.raises(ConfigError, match="sub_centers: softmax without a margin"):
        build_head("softmax", 5, 6, sub_centers=2)


def test_a_row_that_is_not_finite_is_named_by_its_class():
    head = build_head("arcface", 5, 6, sub_centers=2)
    weight = head.weight.numpy()
    weight[3, 1, 2] = np.inf
    head.weight.set_value(weight)
    embedding = paddle.full([2, 6], float("nan"))
    assert "the class centre of class 3 is not finite" in head(embedding, np.arange(2)).problem
