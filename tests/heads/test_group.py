"""Separate heads: their weighted sum agrees with a dense float64 reference on any number of ranks."""

import head_groups
import numpy as np
import paddle
import pytest
from head_cases import DIM
from head_groups import CASES, data, expected_of, has_statistics
from ranks import run_ranks

from plsc.errors import DataError
from plsc.heads import HeadGroup, build_head

WORLDS = (2, 3)


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Returns what each rank computed, by the number of ranks."""
    folder = tmp_path_factory.mktemp("groups")
    for world in WORLDS:
        run_ranks("head_groups.py", world, folder)
    found = {world: [dict(np.load(folder / f"{world}_{rank}.npz")) for rank in range(world)] for world in WORLDS}
    return {1: [{name: np.asarray(value) for name, value in head_groups.compute().items()}], **found}


def joined(parts, case, name):
    """Returns the rows of all ranks and all heads, in the order of the classes."""
    sharded = CASES[case][0].startswith("dist_")
    return np.concatenate(
        [
            part[key]
            for number in range(len(CASES[case][1]))
            for part in (parts if sharded else parts[:1])
            if (key := f"{case}/{name} {number}") in part
        ]
    )


@pytest.mark.core
@pytest.mark.parametrize("case", range(len(CASES)))
def test_any_number_of_ranks_agrees_with_the_weighted_sum_of_the_reference(computed, case):
    for world, parts in computed.items():
        taken = joined(parts, case, "taken")
        expected = expected_of(case, taken)
        for micro in ("", "parts/"):
            if micro and has_statistics(case):
                continue
            found = {f"loss {k}": part for k in range(len(CASES[case][1])) for part in [parts[0][f"{case}/loss {k}"]]}
            found["loss"] = parts[0][f"{case}/{micro}loss"]
            found["embedding"] = np.concatenate([part[f"{case}/{micro}embedding"] for part in parts])
            rows = joined(parts, case, f"{micro}weight")
            assert len(rows) == len(expected["weight"])
            for name, value in (*found.items(), ("weight", rows)):
                wanted = expected[name] if np.size(expected[name]) else np.zeros(2)
                np.testing.assert_allclose(
                    value, wanted, rtol=1e-7, atol=1e-7 * max(1, np.abs(wanted).max()), err_msg=f"{name}, {world} ranks"
                )
            if "softmax" in CASES[case][0]:
                np.testing.assert_allclose(joined(parts, case, f"{micro}bias"), expected["bias"], atol=1e-9)
            assert len({float(part[f"{case}/{micro}loss"]) for part in parts}) == 1
            assert parts[0][f"{case}/{micro}correct"].tolist() == parts[-1][f"{case}/correct"].tolist()
        squares = sum(float(one[f"{case}/squares {k}"]) for one in parts for k in range(len(CASES[case][1])))
        if CASES[case][0].startswith("dist_"):
            assert squares == pytest.approx((rows**2).sum() + (expected["bias"] ** 2).sum(), rel=1e-6)
        if has_statistics(case):
            for number in range(len(CASES[case][1])):
                np.testing.assert_allclose(parts[-1][f"{case}/state {number}"], expected[f"state {number}"], rtol=1e-9)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("bfloat16", 2e-2), ("float16", 3e-3)])
def test_simulated_mixed_precision_stays_near_the_reference(dtype, tolerance):
    group, full = head_groups.build(0, dtype="float32", compute_dtype=dtype, simulate=True), data(0)
    found = head_groups.step(group, full["embedding"].astype("float32"), full["label"])
    expected = expected_of(0, np.arange(13))
    weight = np.concatenate([found[f"weight {number}"] for number in range(3)])
    for value, wanted in ((weight, expected["weight"]), (found["embedding"], expected["embedding"])):
        np.testing.assert_allclose(value, wanted, atol=tolerance * np.abs(wanted).max())
    assert found["loss"] == pytest.approx(expected["loss"], rel=tolerance)


@pytest.mark.core
def test_one_head_is_a_group_of_one_to_the_bit():
    rng = np.random.default_rng(0)
    embedding, label = paddle.to_tensor(rng.normal(size=(9, DIM)).astype("float32")), rng.integers(0, 20, 9)
    alone, grouped = (build_head("dist_arcface", 20, DIM, sample_ratio=0.5) for _ in range(2))
    group = HeadGroup([grouped], ["all"])
    for _ in range(2):
        one, other = alone(embedding, label, True), group(embedding, label, True)
        assert (one.loss, one.correct, one.samples) == (other.loss, other.correct, other.samples)
        np.testing.assert_array_equal(one.embedding_grad, other.embedding_grad)
        alone.backward()
        grouped.backward()
        np.testing.assert_array_equal(alone.weight.grad, grouped.weight.grad)
    assert list(dict(group.named_parameters())) == ["0.weight"] and group.next_step == 2


def test_a_head_with_a_bad_embedding_stops_the_step_of_all_heads():
    group = HeadGroup([build_head("dist_arcface", 4, DIM) for _ in range(3)], ["a", "b", "c"])
    embedding, label = paddle.ones([3, DIM]), np.array([1, 5, 9])
    embedding[1] = float("nan")
    output = group(embedding, label)
    assert output.problem.startswith("the head of b: rank 0: 1 of 1 embeddings are not finite")
    embedding[1] = 1.0
    assert group(embedding, label).problem is None
    assert [part.head.next_step for part in group.parts] == [2, 2, 2]
    with pytest.raises(DataError, match=r"label 12 is not in \[0, 12\)"):
        group(embedding, np.array([0, 1, 12]))
