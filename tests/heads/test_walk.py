"""The walk in chunks gives the same numbers for any chunk and any number of threads, and those of the optimizer."""

import numpy as np
import paddle
import pytest
from head_cases import KINDS

from plsc import optim
from plsc.heads import build_head
from plsc.heads.products import Products
from plsc.heads.walk import chunk_rows, kept_fraction

CLASSES, DIM, BATCH = 37, 8, 10
pytestmark = pytest.mark.core


def batches(steps=4):
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(BATCH, DIM)).astype("float32"), rng.integers(0, CLASSES, BATCH)) for _ in range(steps)]


def trained(loss_type, make_optimizer, fused, dtype="float32", **options):
    """Returns weights, bias and momentum after a few steps, by row updates or by the optimizer itself."""
    head = build_head(loss_type, CLASSES, DIM, scale=8.0, dtype=dtype, seed=3, **options)
    if head.bias is not None:
        head.bias.set_value(np.linspace(-1, 1, CLASSES).astype(dtype))
    with paddle.no_grad():
        head.weight.scale_(50.0)
    optimizer = make_optimizer(head.parameters())
    updates = optim.take_rows(optimizer, dict(head.named_parameters())) if fused else {}
    assert bool(updates) == fused
    for embedding, label in batches():
        out = head(paddle.to_tensor(embedding.astype(dtype)), label)
        assert out.problem is None
        head.backward(updates.get("weight"), updates.get("bias"))
        if not fused:
            optimizer.step()
            optimizer.clear_grad()
    names = {parameter.name: name for name, parameter in head.named_parameters()}
    state = optim.optimizer_state(optimizer, names)
    state.update({name: update.state() for name, update in updates.items() if update.state()})
    return {
        **{name: p.numpy() for name, p in head.named_parameters()},
        **{f"{name}/{part}": t.numpy() for name, parts in state.items() for part, t in parts.items()},
    }


def momentum(**options):
    return lambda parameters: paddle.optimizer.Momentum(0.3, 0.9, parameters=parameters, **options)


OPTIMIZERS = {
    "momentum": momentum(),
    "decay": momentum(weight_decay=paddle.regularizer.L2Decay(0.05)),
    "float decay": momentum(weight_decay=0.05),
    "nesterov": momentum(weight_decay=0.05, use_nesterov=True),
    "sgd": lambda parameters: paddle.optimizer.SGD(0.3, parameters=parameters),
    "sgd with decay": lambda parameters: paddle.optimizer.SGD(0.3, parameters=parameters, weight_decay=0.05),
}


L1 = paddle.regularizer.L1Decay(0.01)


def made(kind, **options):
    return lambda parameters: kind(learning_rate=0.1, parameters=parameters, **options)


def grouped(kind, **options):
    """Returns an optimizer with the weight in a group that has settings of its own."""

    def make(parameters):
        groups = [{"params": parameters[:1], "learning_rate": 0.5, "weight_decay": 0.3}, {"params": parameters[1:]}]
        return kind(learning_rate=0.1, parameters=[group for group in groups if group["params"]], **options)

    return make


BY_CHUNKS = {  # whose own code moves the chunks
    **{
        name: made(getattr(paddle.optimizer, name))
        for name in ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta")
        if hasattr(paddle.optimizer, name)
    },
    "Lion": made(optim.Lion, weight_decay=0.1),
    "RMSProp": made(paddle.optimizer.RMSProp, momentum=0.9, centered=True, weight_decay=0.05),
    "Adam with L2 decay": made(paddle.optimizer.Adam, weight_decay=0.05, beta1=0.8, epsilon=1e-3),
    "Adam with L1 decay": made(paddle.optimizer.Adam, weight_decay=L1),
    "Momentum with L1 decay": made(paddle.optimizer.Momentum, weight_decay=L1),
    "SGD clipped by value": made(paddle.optimizer.SGD, grad_clip=paddle.nn.ClipGradByValue(0.01)),
    "groups of AdamW": grouped(paddle.optimizer.AdamW, grad_clip=paddle.nn.ClipGradByValue(0.01)),
    "groups of Momentum": grouped(paddle.optimizer.Momentum),
    "groups of Lion": grouped(optim.Lion, beta2=0.9),
    "a schedule": lambda parameters: paddle.optimizer.Adam(
        paddle.optimizer.lr.ExponentialDecay(0.1, 0.5), parameters=parameters
    ),
}


@pytest.mark.parametrize("loss_type", ["dist_softmax", "arcface"])
@pytest.mark.parametrize("name", BY_CHUNKS)
def test_an_optimizer_moves_chunks_as_it_moves_the_whole_matrix_to_the_bit(loss_type, name):
    ordinary = trained(loss_type, BY_CHUNKS[name], fused=False, chunk=5)
    updated = trained(loss_type, BY_CHUNKS[name], fused=True, chunk=5)
    assert ordinary.keys() == updated.keys()
    for key, value in ordinary.items():
        np.testing.assert_array_equal(updated[key], value, err_msg=key)


@pytest.mark.parametrize("loss_type", ["dist_softmax", "arcface", "dist_magface", "dist_curricularface"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_row_updates_equal_the_ordinary_optimizer(loss_type, name):
    ordinary = trained(loss_type, OPTIMIZERS[name], fused=False, chunk=16)
    updated = trained(loss_type, OPTIMIZERS[name], fused=True, chunk=16)
    assert ordinary.keys() == updated.keys()
    for key, value in ordinary.items():
        np.testing.assert_allclose(updated[key], value, rtol=1e-6, atol=1e-6 * np.abs(value).max(), err_msg=key)


def test_row_updates_honour_the_parameters_own_rate_and_decay():
    attr = paddle.ParamAttr(learning_rate=0.5, regularizer=paddle.regularizer.L2Decay(0.125))
    options = {"param_attr": attr, "bias_attr": paddle.ParamAttr(learning_rate=2.0)}
    ordinary = trained("softmax", OPTIMIZERS["decay"], fused=False, **options)
    updated = trained("softmax", OPTIMIZERS["decay"], fused=True, **options)
    for key, value in ordinary.items():
        np.testing.assert_allclose(updated[key], value, rtol=1e-6, atol=1e-6 * np.abs(value).max(), err_msg=key)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_the_chunk_changes_nothing_but_rounding(kind, ratio):
    results = [
        trained(kind, OPTIMIZERS["decay"], True, "float64", chunk=chunk, sample_ratio=ratio) for chunk in (1, 5, 16, 64)
    ]
    for other in results[1:]:
        for key, value in results[0].items():
            np.testing.assert_allclose(other[key], value, rtol=1e-10, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("kind", ["softmax", "arcface", "curricularface"])
def test_threads_change_nothing_but_rounding(kind, monkeypatch):
    results = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(trained(kind, OPTIMIZERS["decay"], True, "float64", chunk=4))
    for other in results[1:]:
        for key, value in results[0].items():
            np.testing.assert_allclose(other[key], value, rtol=1e-10, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("loss_type", ["dist_arcface", "softmax"])
@pytest.mark.parametrize("make", [OPTIMIZERS["decay"], BY_CHUNKS["AdamW"]])
def test_rows_that_take_no_part_are_left_alone(loss_type, make):
    head = build_head(loss_type, 400, DIM, sample_ratio=0.1, seed=5)
    optimizer = make(head.parameters())
    updates = optim.take_rows(optimizer, dict(head.named_parameters()))
    taken = set()
    for embedding, label in batches(3):
        before = {name: [t.numpy() for t in (p, *updates[name].buffers)] for name, p in head.named_parameters()}
        head(paddle.to_tensor(embedding), label)
        rows = head._step.rows.selected
        assert len(rows) == 40 and set(label) <= set(rows)
        taken.add(tuple(rows))
        head.backward(updates["weight"], updates.get("bias"))
        left = np.setdiff1d(np.arange(400), rows)
        for name, p in head.named_parameters():
            for now, then in zip((p, *updates[name].buffers), before[name]):
                np.testing.assert_array_equal(now.numpy()[left], then[left])
                assert (now.numpy()[rows] != then[rows]).any()
    assert len(taken) == 3


def test_adam_corrects_the_bias_of_all_rows_by_the_steps_of_the_run():
    """Drawn or not: the powers of beta belong to the whole matrix, as Paddle and arcface_torch have them."""
    head = build_head("arcface", 400, DIM, sample_ratio=0.1, seed=5)
    optimizer = BY_CHUNKS["Adam"]([head.weight])
    updates = optim.take_rows(optimizer, {"weight": head.weight})
    first, second = np.zeros((400, DIM)), np.zeros((400, DIM))
    expected = head.weight.numpy().astype("float64")
    for step, (embedding, label) in enumerate(batches(3), start=1):
        number = head.next_step
        head(paddle.to_tensor(embedding), label)
        rows = head._step.rows.selected
        head.backward()
        gradient = head.weight.grad.numpy().astype("float64")[rows]
        head.next_step = number
        head(paddle.to_tensor(embedding), label)
        head.backward(updates["weight"])
        first[rows] = 0.9 * first[rows] + 0.1 * gradient
        second[rows] = 0.999 * second[rows] + 0.001 * gradient**2
        root = np.sqrt(second[rows] / (1 - 0.999**step)) + 1e-8
        expected[rows] -= 0.1 * first[rows] / (1 - 0.9**step) / root
        np.testing.assert_allclose(head.weight.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_sample_ratio_of_one_is_the_full_head():
    full = trained("arcface", OPTIMIZERS["decay"], fused=True)
    sampled = trained("arcface", OPTIMIZERS["decay"], fused=True, sample_ratio=1.0)
    for key, value in full.items():
        np.testing.assert_array_equal(sampled[key], value)


def test_all_rows_sampled_give_the_full_heads_numbers():
    # 0.999 of 37 rows are all of them, but they are gathered and put back.
    full = trained("arcface", OPTIMIZERS["decay"], True, "float64")
    sampled = trained("arcface", OPTIMIZERS["decay"], True, "float64", sample_ratio=0.999)
    for key, value in full.items():
        np.testing.assert_allclose(sampled[key], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss_type", ["softmax", "dist_magface"])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_the_norm_of_the_gradient_is_known_before_anything_moves(loss_type, ratio):
    head = build_head(loss_type, CLASSES, DIM, sample_ratio=ratio, chunk=8)
    embedding, label = batches(1)[0]
    head(paddle.to_tensor(embedding), label)
    before = [p.numpy() for p in head.parameters()]
    square_sum = sum(head.gradient_squares().values())
    assert all((p.numpy() == then).all() for p, then in zip(head.parameters(), before))
    head.backward()
    gradients = [p.grad.numpy().astype("float64") for p in head.parameters()]
    assert square_sum == pytest.approx(sum((g**2).sum() for g in gradients), rel=1e-6)
    head.next_step = 0  # the same rows again
    head(paddle.to_tensor(embedding), label)
    head.backward(factor=0.25)
    for parameter, whole in zip(head.parameters(), gradients):
        np.testing.assert_allclose(parameter.grad.numpy(), whole * 0.25, rtol=1e-5, atol=1e-9)


def test_the_norm_of_the_gradient_leaves_out_what_is_frozen():
    head = build_head("softmax", CLASSES, DIM, chunk=8)
    embedding, label = batches(1)[0]
    head(paddle.to_tensor(embedding), label)
    whole = head.gradient_squares()
    head.weight.stop_gradient = True
    assert head.gradient_squares() == {"bias": whole["bias"]}
    head.bias.stop_gradient = True
    assert head.gradient_squares() == {} and min(whole.values()) > 0


@pytest.mark.parametrize("dtype, tolerance", [("float16", 0.02), ("bfloat16", 0.1)])
@pytest.mark.parametrize("kind", ["softmax", "arcface", "curricularface"])
def test_low_precision_products_train_nearly_the_same(kind, dtype, tolerance):
    exact = trained(kind, OPTIMIZERS["decay"], fused=True)
    rounded = trained(kind, OPTIMIZERS["decay"], fused=True, compute_dtype=dtype, simulate=True)
    for key, value in exact.items():
        error = np.abs(rounded[key] - value).max() / np.abs(value).max()
        assert 1e-6 < error < tolerance, key


def test_a_cpu_computes_in_float32_whatever_is_asked():
    exact = trained("arcface", OPTIMIZERS["decay"], fused=True)
    asked = trained("arcface", OPTIMIZERS["decay"], fused=True, compute_dtype="float16")
    np.testing.assert_array_equal(asked["weight"], exact["weight"])


@pytest.mark.parametrize("kind", ["arcface", "curricularface"])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_nothing_is_uploaded_for_each_chunk(kind, ratio, monkeypatch):
    uploads, to_tensor = [], paddle.to_tensor
    counts = []
    for chunk in (2, 64):
        head = build_head(kind, CLASSES, DIM, sample_ratio=ratio, chunk=chunk)
        embedding, label = batches(1)[0]
        embedding = to_tensor(embedding)
        monkeypatch.setattr(
            paddle, "to_tensor", lambda *values, **options: (uploads.append(1), to_tensor(*values, **options))[1]
        )
        uploads.clear()
        head(embedding, label, True)
        head.backward()
        counts.append(len(uploads))
        monkeypatch.setattr(paddle, "to_tensor", to_tensor)
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("fraction", "products"), [(0.0, 24), (0.5, 16), (1.0, 8)])
def test_a_sampled_step_computes_the_products_that_it_keeps_once(fraction, products, monkeypatch):
    """It gives the numbers of a step that keeps none, also after it has computed the norm of the gradient."""
    calls, logits, results = [], Products.logits, []
    monkeypatch.setattr(Products, "logits", lambda *arguments: (calls.append(1), logits(*arguments))[1])
    for kept in (0.0, fraction):
        monkeypatch.setattr("plsc.heads.walk.kept_fraction", lambda *_, kept=kept: kept)
        head = build_head("arcface", 16 * CLASSES, DIM, sample_ratio=0.5, chunk=CLASSES)  # 8 chunks, in three walks
        embedding, label = batches(1)[0]
        calls.clear()
        output = head(paddle.to_tensor(embedding), label, True)
        squares = head.gradient_squares()
        head.backward()
        results.append((output.loss, output.correct, squares, head.weight.grad.numpy().tobytes()))
    assert len(calls) == products
    assert results[0] == results[1]


def test_kept_products_take_at_most_a_sixteenth_of_the_rows():
    for rows, selected, dim, batch in ((1000, 100, 512, 4096), (1000, 900, 128, 64), (1, 0, 2, 1)):
        fraction = kept_fraction(rows, selected, dim, batch)
        assert 0.0 <= fraction <= 1.0 and 16 * fraction * selected * batch <= rows * dim * (1 + 1e-9)
    assert kept_fraction(1000, 100, 512, 256) == 1.0 and kept_fraction(1000, 100, 512, 4096) < 0.1


def test_chunks_fit_the_batch_and_the_embedding():
    sizes = [chunk_rows(batch, dim) for batch, dim in ((64, 128), (256, 512), (1024, 512), (8192, 2048), (1, 1))]
    assert all(size & (size - 1) == 0 and 128 <= size <= 65536 for size in sizes)
    assert sizes[0] > sizes[1] >= sizes[2] >= sizes[3]
