import functools
import json

import numpy as np
import paddle
import pytest
import uneven_heads
from head_cases import CASES, DIM, KINDS, SCALE, data, expected_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ranks import run_ranks

from plsc.errors import DataError
from plsc.heads import ClassifierHead, build_head
from plsc.heads.margins import AdaFace, CurricularFace
from plsc.heads.walk import chunk_rows

# A precision is one of the arithmetic, which does not depend on the number of ranks. Some cases leave one of three
# ranks without samples, without classes, or without both. Two ranks are those of float32.
WORLDS = {"float64": (1, 3), "float32": (1, 2)}

MICRO_BATCHED = {"float64": (1, 3), "float32": (1,)}  # micro-batches are most of the work


def kind_of(loss_type):
    return loss_type.replace("dist_", "")


@functools.cache
def parts_of(folder, world):
    """What each of `world` ranks computed, read once for all cases."""
    return [dict(np.load(folder / f"{world}_{rank}.npz")) for rank in range(world)]


def gathered(folder, world, case):
    """Returns what all ranks computed together: the loss, and gradients of the whole batch and the whole head."""
    parts = parts_of(folder, world)
    sharded = CASES[case][0].startswith("dist_")
    losses = [float(part[f"{case}/loss"]) for part in parts]
    assert len(set(losses)) == 1, "every rank reports the same loss"
    result = {"loss": losses[0], "correct": parts[0][f"{case}/correct"]}
    taken = [part[f"{case}/taken"] for part in parts]
    result["taken"] = np.concatenate(taken) if sharded else taken[0]
    if f"{case}/state" in parts[0]:
        result["state"] = parts[0][f"{case}/state"]
    result["embedding"] = np.concatenate([part[f"{case}/embedding"] for part in parts])
    for name in ("weight", "bias"):
        rows = [part[f"{case}/{name}"] for part in parts if f"{case}/{name}" in part]
        if rows:
            result[name] = np.concatenate(rows) if sharded else rows[0]
    return result


@pytest.fixture(scope="module", params=["float64", pytest.param("float32", marks=pytest.mark.core)])
def computed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    for world in WORLDS[request.param]:
        run_ranks("head_cases.py", world, folder, request.param, int(world in MICRO_BATCHED[request.param]))
    return request.param, folder


@pytest.mark.parametrize("case", range(len(CASES)))
def test_any_number_of_ranks_agrees_with_the_float64_reference(computed, case):
    dtype, folder = computed
    tolerance = {"float64": 1e-7, "float32": 2e-5}[dtype]
    expected = {}
    for world in WORLDS[dtype]:
        result = gathered(folder, world, case)
        if world == 1 or CASES[case][3] < 1:  # sampling depends on the ranks
            expected = expected_of(case, result["taken"])
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
    dtype, folder = computed
    full = data(case)
    if kind_of(CASES[case][0]) == "softmax":
        logits = full["embedding"] @ full["weight"].T + full["bias"]
    else:
        rows = full["weight"] / np.linalg.norm(full["weight"], axis=-1, keepdims=True)
        logits = np.einsum("bd,ckd->bck", full["embedding"], rows.reshape(len(rows), -1, DIM)).max(axis=2)
    for world in WORLDS[dtype]:
        result = gathered(folder, world, case)
        order = result["taken"][np.argsort(-logits[:, result["taken"]], axis=1, kind="stable")]
        expected = [(order[:, :k] == full["label"][:, None]).any(axis=1).sum() for k in (1, 5)]
        assert list(result["correct"]) == expected, f"{world} ranks"


@pytest.mark.parametrize("case", range(len(CASES)))
def test_micro_batches_give_what_one_batch_gives(computed, case):
    dtype, folder = computed
    tolerance = {"float64": 1e-12, "float32": 1e-5}[dtype]
    kind = kind_of(CASES[case][0])
    for world in MICRO_BATCHED[dtype]:
        parts = parts_of(folder, world)
        assert (f"{case}/parts/loss" in parts[0]) == (kind not in ("adaface", "curricularface"))
        for part in parts:
            for key in (key for key in part if key.startswith(f"{case}/parts/") and not key.endswith("square_sum")):
                whole = part[key.replace("/parts", "")]
                scale = max(1, np.abs(whole).max(initial=0))
                np.testing.assert_allclose(part[key], whole, rtol=tolerance, atol=tolerance * scale, err_msg=key)
        if f"{case}/parts/loss" in parts[0]:
            whole = gathered(folder, world, case)
            squares = sum((whole[name] ** 2).sum() for name in ("weight", "bias") if name in whole)
            assert float(parts[0][f"{case}/parts/square_sum"]) == pytest.approx(squares, rel=100 * tolerance)


@pytest.mark.core
@pytest.mark.parametrize("margin", [AdaFace(momentum=1.0), CurricularFace(momentum=1.0)])
def test_micro_batches_of_a_margin_with_statistics(margin):
    """With statistics that stand still, micro-batches agree with one batch; otherwise each micro-batch moves them."""
    rng = np.random.default_rng(3)
    embedding, label = rng.normal(size=(9, DIM)) * 20, rng.integers(0, 5, 9)
    results = []
    for cuts in ([], [2, 6]):
        head = ClassifierHead(5, DIM, margin, scale=SCALE, dtype="float64", chunk=2)
        head.weight.set_value(np.random.default_rng(4).normal(size=(5, DIM)))
        head.margin_state.set_value(np.array([60.0, 30.0] if isinstance(margin, AdaFace) else [0.3]))
        parts = list(zip(np.split(embedding, cuts), np.split(label, cuts)))
        gathered = head.gather_labels(*(labels for _, labels in parts))
        outputs = [head(paddle.to_tensor(rows), gathered, False, part) for part, (rows, _) in enumerate(parts)]
        head.backward()
        gradients = [out.embedding_grad.numpy() for out in outputs]
        results.append((sum(out.loss for out in outputs), np.concatenate(gradients), head.weight.grad.numpy()))
    for whole, parts in zip(*results):
        np.testing.assert_allclose(parts, whole, rtol=1e-12, atol=1e-13)


@pytest.mark.core
def test_running_statistics_see_each_micro_batch():
    states = []
    for together in (True, False):
        head = build_head("adaface", 5, DIM, dtype="float64")
        rng = np.random.default_rng(5)
        parts = [(rng.normal(size=(4, DIM)), rng.integers(0, 5, 4)) for _ in range(3)]
        gathered = head.gather_labels(*(labels for _, labels in parts))
        for part, (rows, labels) in enumerate(parts):
            if together:
                head(paddle.to_tensor(rows), gathered, False, part)
            else:
                head(paddle.to_tensor(rows), labels)
                head.backward()
        head.backward()
        states.append(head.margin_state.numpy())
    np.testing.assert_array_equal(states[0], states[1])


@pytest.mark.core
def test_a_head_on_every_rank_takes_batches_of_any_size_in_few_reductions(ranks, tmp_path):
    """The rows are walked in more than one chunk, and a rank's own batch would ask for another chunk on each rank."""
    assert len({chunk_rows(max(batch, 1), uneven_heads.DIM) for batch in (300, 120, 0)}) > 1
    for world in (1, 3):
        ranks("uneven_heads.py", world, tmp_path)
    for case, (kind, _) in enumerate(uneven_heads.CASES):
        whole, *parts = [dict(np.load(tmp_path / f"{world}_{rank}.npz")) for world in (1, 3) for rank in range(world)]
        assert not len(whole[f"{case}/reductions"])
        for part in parts:
            sizes = [uneven_heads.CLASSES * uneven_heads.DIM, *([uneven_heads.CLASSES] if kind == "softmax" else [])]
            assert part[f"{case}/reductions"].tolist() == sizes
            for name in (f"{case}/loss", f"{case}/weight"):
                np.testing.assert_allclose(part[name], whole[name], rtol=1e-5, atol=2e-6, err_msg=f"{kind}, {name}")


@pytest.mark.core
def test_a_step_takes_two_gathers_and_two_reductions(ranks, tmp_path):
    ranks("count_collectives.py", 2, tmp_path)
    counted = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert counted[0] == counted[1]
    for ratio in (1.0, 0.3):
        for loss in ("dist_arcface", "dist_magface", "dist_adaface"):
            # The gathers are of embeddings and labels, the reductions of row sums and the gradient of the embeddings.
            assert counted[0][f"{loss} {ratio}"] == {"all_gather": 2, "all_reduce": 2}
        # Where logits are not bounded, each rank's largest travels with its sums: a gather replaces a reduction.
        assert counted[0][f"dist_softmax {ratio}"] == {"all_gather": 3, "all_reduce": 1}
        # CurricularFace compares every class with the label's cosine, which has to be known first.
        assert counted[0][f"dist_curricularface {ratio}"] == {"all_gather": 3, "all_reduce": 2}
    assert counted[0]["first large batch"] == {"all_gather": 3, "all_reduce": 2}
    assert counted[0]["second large batch"] == {"all_gather": 2, "all_reduce": 2}


@pytest.mark.core
def test_a_label_out_of_range_is_named():
    with pytest.raises(DataError, match=r"rank 0: label 5 is not in \[0, 5\)"):
        build_head("arcface", 5, DIM)(paddle.rand([2, DIM]), np.array([0, 5]))


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_named_and_nothing_is_updated(kind):
    head = build_head(kind, 5, DIM)
    embedding = np.random.default_rng(0).normal(size=(4, DIM)).astype("float32")
    embedding[1, 2], embedding[3, 0] = np.nan, np.inf
    state = None if head.margin_state is None else head.margin_state.numpy()
    out = head(paddle.to_tensor(embedding), np.arange(4))
    assert "rank 0: 2 of 4 embeddings are not finite" in out.problem
    head.backward()
    assert head.weight.grad is None
    if state is not None:
        np.testing.assert_array_equal(head.margin_state.numpy(), state)
    weight = head.weight.numpy()
    weight[3, 1] = np.inf
    head.weight.set_value(weight)
    out = head(paddle.to_tensor(np.nan_to_num(embedding)), np.arange(4))
    assert kind != "softmax" or "class centre of class 3 is not finite" in out.problem


@settings(max_examples=150, deadline=None)
@example("arcface", 103, 64.0)  # a row of 2e-15 whose gradient was infinite
@given(st.sampled_from(KINDS), st.integers(0, 10**6), st.sampled_from([64.0, 2.0, 66.0, 80.0, 300.0]))
def test_nothing_is_ever_infinite_at_the_edges(kind, seed, scale):
    rng = np.random.default_rng(seed)
    embedding = (rng.normal(size=(6, DIM)) * 10.0 ** rng.integers(-20, 18, (6, 1))).astype("float32")
    weight = (rng.normal(size=(5, DIM)) * 10.0 ** rng.integers(-20, 18, (5, 1))).astype("float32")
    weight[3] = weight[4] = rng.normal(size=DIM)  # identical rows
    label = rng.integers(0, 5, 6)
    embedding[0], weight[1] = 0.0, 0.0
    embedding[1], embedding[2] = weight[label[1]], -weight[label[2]]  # |cos| = 1
    if kind == "softmax":
        embedding, weight = np.clip(embedding, -1e3, 1e3), np.clip(weight, -1e3, 1e3)
    head = build_head(kind, 5, DIM, scale=scale)
    head.weight.set_value(weight)
    out = head(paddle.to_tensor(embedding), label)
    assert np.isfinite(out.loss) and out.problem is None
    assert np.isfinite(out.embedding_grad.numpy()[np.abs(embedding).max(axis=1) > 1e-18]).all()
    head.backward()
    assert np.isfinite(head.weight.grad.numpy()).all()


@settings(max_examples=60, deadline=None)
@example("arcface", 0, 32.0, 0.3, -1.0)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 10**6),
    st.sampled_from([8.0, 32.0, 64.0, 80.0]),
    st.sampled_from([0.1, 0.3, 1.0, 10.0]),
    st.sampled_from([-1.0, 0.0, 1.0]),
)
def test_float32_follows_float64_wherever_embeddings_and_centres_are(kind, seed, scale, spread, side):
    """A collapsed network, as may occur early in training, gives the smallest and the largest sums of exponentials.

    All centres point in nearly one direction, and the embeddings in the same direction, the opposite one, or both.
    """
    rng = np.random.default_rng(seed)
    classes, batch, dim = 40, 24, 16
    common = rng.normal(size=dim)
    common /= np.linalg.norm(common)
    sides = rng.choice([-1.0, 1.0], batch) if side == 0 else np.full(batch, side)
    weight = common + spread * rng.normal(size=(classes, dim)) / np.sqrt(dim)
    embedding = 4 * sides[:, None] * (common + spread * rng.normal(size=(batch, dim)) / np.sqrt(dim))
    label = rng.integers(0, classes, batch)
    found = {}
    for dtype in ("float64", "float32"):
        head = build_head(kind, classes, dim, scale=scale, dtype=dtype)
        head.weight.set_value(weight.astype("float32").astype(dtype))
        out = head(paddle.to_tensor(embedding.astype("float32").astype(dtype)), label)
        head.backward()
        found[dtype] = {"loss": out.loss, "rows": head.weight.grad.numpy(), "embedding": out.embedding_grad.numpy()}
    for name, wanted in found["float64"].items():
        np.testing.assert_allclose(found["float32"][name], wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
    if kind != "softmax":  # the length of a centre does not matter
        rows = found["float32"]["rows"]
        along = np.abs(np.sum(rows * weight, axis=1)) / np.linalg.norm(weight, axis=1)
        assert along.max() <= 1e-4 * np.linalg.norm(rows, axis=1).max() + 1e-12


@pytest.mark.core
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
