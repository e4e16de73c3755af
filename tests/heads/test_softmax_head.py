import numpy as np
import paddle
import pytest
from head_cases import CASES, DIM, data
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_head import loss_of, numeric_gradient

from plsc.heads import build_head, shard_bounds

pytestmark = pytest.mark.core
MARGIN, SCALE = 0.4, 16.0


def kind_of(loss_type):
    return loss_type.replace("dist_", "")


def gathered(folder, world, case):
    """What all ranks computed, put together: loss, and gradients of the whole batch and the whole head."""
    parts = [np.load(folder / f"{world}_{rank}.npz") for rank in range(world)]
    sharded = CASES[case][0].startswith("dist_")
    losses = [float(part[f"{case}/loss"]) for part in parts]
    assert len(set(losses)) == 1, "every rank reports the same loss"
    result = {"loss": losses[0], "correct": parts[0][f"{case}/correct"]}
    result["embedding"] = np.concatenate([part[f"{case}/embedding"] for part in parts])
    for name in ("weight", "bias"):
        rows = [part[f"{case}/{name}"] for part in parts if f"{case}/{name}" in part]
        if rows:
            result[name] = np.concatenate(rows) if sharded else rows[0]
    return result


@pytest.fixture(scope="module", params=["float64", "float32"])
def computed(request, tmp_path_factory):
    from ranks import run_ranks

    folder = tmp_path_factory.mktemp(request.param)
    for world in (1, 2, 3, 4):
        run_ranks("head_cases.py", world, folder, request.param)
    return request.param, folder


@given(st.integers(1, 200), st.integers(1, 40))
def test_shards_cover_every_class_once(classes, ranks):
    bounds = [shard_bounds(classes, ranks, rank) for rank in range(ranks)]
    assert bounds[0][0] == 0 and bounds[-1][1] == classes
    assert all(before[1] == after[0] for before, after in zip(bounds, bounds[1:]))
    assert max(b - a for a, b in bounds) - min(b - a for a, b in bounds) <= 1


@pytest.mark.parametrize("case", range(len(CASES)))
def test_any_number_of_ranks_agrees_with_the_float64_reference(computed, case):
    dtype, folder = computed
    full = data(case)
    arguments = (full["embedding"], full["weight"], full["bias"], full["label"], MARGIN, SCALE)
    kind = kind_of(CASES[case][0])

    def reference():
        return loss_of(kind, *arguments)

    expected = {"loss": reference()}
    zero = np.flatnonzero(~full["embedding"].any(axis=1)) if kind != "softmax" else []
    for name in ("embedding", "weight", "bias") if kind == "softmax" else ("embedding", "weight"):
        expected[name] = numeric_gradient(reference, full[name])
    expected["embedding"][zero] = 0.0  # by definition: the exact gradient does not exist there
    tolerance = {"float64": 1e-7, "float32": 2e-5}[dtype]
    for world in (1, 2, 3, 4):
        result = gathered(folder, world, case)
        for name, value in expected.items():
            np.testing.assert_allclose(
                result[name],
                value,
                rtol=tolerance,
                atol=tolerance * max(1, np.abs(value).max()),
                err_msg=f"{name}, {world} ranks",
            )


@pytest.mark.parametrize("case", range(len(CASES)))
def test_accuracy_counts_over_all_shards(computed, case):
    _, folder = computed
    full = data(case)
    logits = full["embedding"] @ full["weight"].T + full["bias"]
    if kind_of(CASES[case][0]) != "softmax":
        logits = full["embedding"] @ (full["weight"] / np.linalg.norm(full["weight"], axis=1, keepdims=True)).T
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = [(order[:, :k] == full["label"][:, None]).any(axis=1).sum() for k in (1, 5)]
    for world in (1, 2, 3, 4):
        assert list(gathered(folder, world, case)["correct"]) == expected


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["arcface", "cosface", "softmax"]), st.integers(0, 10**6))
def test_nothing_is_ever_infinite_at_the_edges(kind, seed):
    rng = np.random.default_rng(seed)
    embedding = (rng.normal(size=(6, DIM)) * 10.0 ** rng.integers(-20, 18, (6, 1))).astype("float32")
    weight = rng.normal(size=(5, DIM)).astype("float32")
    label = rng.integers(0, 5, 6)
    embedding[0], weight[1] = 0.0, 0.0
    embedding[1], embedding[2] = weight[label[1]], -weight[label[2]]  # |cos| = 1
    if kind == "softmax":
        embedding = np.clip(embedding, -1e3, 1e3)
    head = build_head(kind, 5, DIM, margin=0.5, scale=64.0)
    head.weight.set_value(weight)
    out = head.step(paddle.to_tensor(embedding), paddle.to_tensor(label))
    assert np.isfinite(float(out.loss))
    assert np.isfinite(out.embedding_grad.numpy()[np.abs(embedding).max(axis=1) > 1e-18]).all()
    assert np.isfinite(head.weight.grad.numpy()).all()


def test_initial_rows_do_not_depend_on_the_sharding():
    from plsc.heads.softmax import _initial_rows

    whole = _initial_rows(0, 10000, 3, seed=5)
    parts = [_initial_rows(*shard_bounds(10000, 3, rank), 3, seed=5) for rank in range(3)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_attributes_of_the_head_are_honoured():
    attr = paddle.ParamAttr(
        initializer=paddle.nn.initializer.Constant(0.25),
        learning_rate=0.5,
        regularizer=paddle.regularizer.L2Decay(0.125),
    )
    head = build_head("dist_softmax", 4, DIM, param_attr=attr, bias_attr=paddle.ParamAttr(learning_rate=2.0))
    assert (head.weight.numpy() == 0.25).all()
    assert head.weight.optimize_attr["learning_rate"] == 0.5 and head.bias.optimize_attr["learning_rate"] == 2.0
    optimizer = paddle.optimizer.SGD(1.0, parameters=[head.weight])
    head.weight.grad = paddle.zeros_like(head.weight)
    optimizer.step()
    np.testing.assert_allclose(head.weight.numpy(), 0.25 - 0.5 * 0.125 * 0.25, rtol=1e-6)
