import numpy as np
import paddle
import pytest

from plsc.heads.products import Products

pytestmark = pytest.mark.core
C, B, D = 5, 7, 6


@pytest.fixture
def operands():
    rng = np.random.default_rng(0)
    return {
        "weight": paddle.to_tensor(rng.normal(size=(C, D)).astype("float32") * 0.01),
        "query": paddle.to_tensor(rng.normal(size=(B, D)).astype("float32")),
        "inverse": paddle.to_tensor(rng.uniform(20, 50, (C, 1)).astype("float32")),
        "softmax": paddle.to_tensor(rng.uniform(0, 1, (C, B)).astype("float32")),
    }


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float16", 4e-3), ("bfloat16", 3e-2)])
def test_products_are_exact_to_the_precision_of_their_dtype(operands, dtype, tolerance):
    products = Products(dtype, max(C, B), simulate=True)
    weight, query, inverse, softmax = (operands[name].numpy().astype("float64") for name in operands)
    logits = products.logits(operands["weight"], operands["query"], operands["inverse"]).numpy()
    np.testing.assert_allclose(logits, weight * inverse @ query.T, atol=tolerance * 5)

    pull = paddle.ones([B, D])
    products.add_pull(pull, operands["softmax"].clone(), operands["weight"], operands["inverse"])
    np.testing.assert_allclose(pull.numpy(), 1 + softmax.T @ (weight * inverse), atol=tolerance * 5)

    gradient = paddle.ones([C, D])
    products.add_gradient(gradient, 0.5, operands["softmax"].clone(), operands["query"], operands["inverse"])
    np.testing.assert_allclose(gradient.numpy(), 0.5 + softmax @ query * inverse, atol=tolerance * 300)
    if dtype != "float32":
        assert np.abs(logits - weight * inverse @ query.T).max() > 1e-6, "it was rounded"


def test_float16_keeps_small_probabilities_and_does_not_overflow():
    products = Products("float16", 1024, simulate=True)
    tiny, rows = paddle.full([3, 2], 2e-8), paddle.ones([3, 4])
    pull = paddle.zeros([2, 4])
    products.add_pull(pull, tiny, rows, None)
    np.testing.assert_allclose(pull.numpy(), 6e-8, rtol=0.3)  # rounded to float16 itself, 2e-8 is 0
    assert paddle.full([1], 2e-8).astype("float16").astype("float32").item() == 0.0
    pull = paddle.zeros([1, 4])
    products.add_pull(pull, paddle.ones([1024, 1]), paddle.ones([1024, 4]), None)
    np.testing.assert_allclose(pull.numpy(), 1024.0)
