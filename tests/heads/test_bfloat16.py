"""Class centres in bfloat16: how they are rounded, and that a head with them does the same however it is divided."""

import numpy as np
import paddle
import pytest

from plsc import optim
from plsc.heads import build_head
from plsc.heads.bfloat16 import Rounding, put_rows, tensor_like, widened
from plsc.heads.shard import initialise_rows
from plsc.heads.terms import LossTerms
from plsc.machine.bfloat16 import BFLOAT16, bfloat16_of, floats_of_bfloat16

pytestmark = pytest.mark.core
DIM, PERIOD = 16, Rounding.PERIOD


@pytest.fixture(autouse=True)
def without_gradients():
    with paddle.no_grad():
        yield


def bits_of(matrix):
    return matrix.detach().view("int16").numpy()


def rounded(values, step=0, first=0, matrix=0):
    rounding = Rounding(3, step, values.shape[1])
    rounding.prepare()
    return rounding.round(paddle.to_tensor(values), first, matrix)


def test_widening_and_rounding_keep_what_bfloat16_holds():
    every = np.arange(1 << 16, dtype="uint16").reshape(-1, DIM)
    every[(every & 0x7F80) == 0x7F80] = 0  # without infinities and NaN
    values = floats_of_bfloat16(every)
    found = widened(paddle.to_tensor(every))  # Paddle takes uint16 for bfloat16
    np.testing.assert_array_equal(found.numpy().view("uint32"), values.view("uint32"))
    np.testing.assert_array_equal(bits_of(rounded(values)), every.view("int16"))
    np.testing.assert_array_equal(bfloat16_of(values).view("uint16"), every)


@pytest.mark.parametrize("value", [1 + 0.3 / 128, -1 - 0.3 / 128, 1e-30 * (1 + 0.7 / 128), 255.1, 1 + 1 / 65536])
def test_the_mean_of_rounded_values_is_the_value(value):
    value = np.float32(value)
    upper_half = np.array([0, 1], "uint16") + np.uint16(value.view("uint32") >> 16)
    below, above = np.abs(floats_of_bfloat16(upper_half))
    gap = above - below
    share, count = (abs(value) - below) / gap, 200 * PERIOD * DIM
    ups = 0
    for step in range(200):
        found = np.abs(widened(rounded(np.full((PERIOD, DIM), value), step)).numpy())
        assert set(np.unique(found)) <= {below, above}
        ups += int((found > below).sum())
    assert abs(ups - share * count) < 5 * np.sqrt(max(share * (1 - share) * count, 1.0))


def test_rounding_errors_of_elements_steps_and_matrices_are_independent():
    value = np.full((PERIOD, DIM), 1 + 0.5 / 128, "float32")
    errors = [bits_of(rounded(value, step, matrix=matrix)) & 1 for step in range(4) for matrix in (0, 1)]
    errors = [(one - 0.5).ravel() for one in errors]
    shifted = [np.roll(errors[0].reshape(-1, DIM), 1, axis).ravel() for axis in (0, 1)]
    rows = np.corrcoef(np.stack([*errors, *shifted]))
    assert np.abs(rows - np.eye(len(rows))).max() < 5 / np.sqrt(value.size)


@pytest.mark.parametrize("first", [0, 700, 5000])
def test_a_row_is_rounded_the_same_in_every_chunk(first):
    values = np.random.default_rng(0).normal(size=(2500, DIM)).astype("float32")
    whole = bits_of(rounded(values, first=first, matrix=1))
    for begin, end in ((0, 3), (1000, 1100), (100, 900), (2499, 2500)):
        part = rounded(values[begin:end], first=first + begin, matrix=1)
        np.testing.assert_array_equal(bits_of(part), whole[begin:end])
    chosen = np.array([5, 6, 1029, 2000])
    some = rounded(values[chosen], first=paddle.to_tensor(first + chosen), matrix=1)
    np.testing.assert_array_equal(bits_of(some), whole[chosen])


def test_paddle_rounds_and_widens_as_numpy_does(monkeypatch):
    every = np.arange(1 << 16, dtype="uint16")
    values = floats_of_bfloat16(every).view("uint32") | np.random.default_rng(0).integers(0, 1 << 16, 1 << 16, "uint32")
    values[:DIM] = 0x7FFFFFFF
    values = values.view("float32").reshape(-1, DIM)  # infinities, NaN and denormal numbers too
    chosen = paddle.to_tensor(np.random.default_rng(1).permutation(len(values)))

    def found():
        consecutive, apart = rounded(values, first=77, matrix=1), rounded(values[chosen.numpy()], first=chosen)
        wide = widened(consecutive).view("int32").numpy()
        return [bits_of(consecutive), bits_of(apart), wide]

    by_numpy = found()
    monkeypatch.setattr("plsc.parallel.on_cpu", lambda: False)
    by_paddle = found()
    is_nan = np.isnan(values)
    for one, wanted, nan in zip(by_paddle, by_numpy, (is_nan, is_nan[chosen.numpy()], is_nan)):
        np.testing.assert_array_equal(one[~nan], wanted[~nan])
    # A GPU makes NaN whose bits are all set, and a sum with them would be -0.
    assert np.isnan(floats_of_bfloat16(by_paddle[0].view("uint16"))[values.view("uint32") == 0x7FFFFFFF]).all()


def test_rows_are_put_where_they_belong():
    values = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    matrix = paddle.zeros([7, 5], "bfloat16")
    put_rows(matrix, paddle.to_tensor([6, 0, 2]), tensor_like(values, paddle.bfloat16))
    expected = np.zeros((7, 5), "float32")
    expected[[6, 0, 2]] = floats_of_bfloat16(bfloat16_of(values))
    np.testing.assert_array_equal(widened(matrix).numpy(), expected)


def test_the_largest_number_may_become_infinite_and_a_denormal_number_keeps_its_mean():
    largest, smallest = np.float32(np.finfo("float32").max), np.float32(2.0**-134)  # half of bfloat16's smallest
    for value, neighbours in ((largest, (3.3895314e38, np.inf)), (smallest, (0.0, 2.0**-133))):
        found = widened(rounded(np.full((PERIOD, DIM), value))).numpy()
        assert set(np.unique(found)) <= set(np.float32(neighbours))
    assert (found > 0).mean() == pytest.approx(0.5, abs=0.05)
    exact = np.array([[3.3895314e38, -np.inf, 2.0**-133, -0.0] * 4], "float32")
    np.testing.assert_array_equal(widened(rounded(exact)).numpy().view("uint32"), exact.view("uint32"))


def test_rows_without_a_direction_stay_and_an_infinite_one_stops_the_step():
    head, mover, _ = trained(steps=1)
    rows = widened(head.weight).numpy()
    rows[0], rows[1] = 0.0, 2.0**-133  # both count as rows of zeros
    head.weight.set_value(tensor_like(rows, paddle.bfloat16))
    mover.buffer.set_value(tensor_like(np.zeros_like(rows), paddle.bfloat16))
    embedding, label = paddle.ones([3, DIM]), np.arange(3)
    for _ in range(3):
        assert head(embedding, label).problem is None
        head.backward(mover)
    assert np.isfinite(widened(head.weight).numpy()).all()
    assert np.abs(widened(head.weight).numpy()[:2]).max() < 1e-30, "no gradient without a direction"
    rows[2] = np.inf
    head.weight.set_value(tensor_like(rows, paddle.bfloat16))
    found = head(embedding, label).embedding_grad
    assert not paddle.isfinite(found).all(), "the step is skipped, as in float32"


def test_a_step_that_is_left_out_changes_no_bit_and_the_next_one_draws_its_own_numbers():
    """As dynamic loss scaling leaves steps out: their number is used up, on every rank alike."""
    embedding, label = paddle.ones([8, DIM]), np.arange(8)
    results = []
    for way in ("bad loss", "bad backbone", "straight"):
        head, mover, _ = trained(steps=2)
        before = [bits_of(one).copy() for one in (head.weight, mover.buffer)]
        if way == "bad loss":
            assert head(embedding * float("inf"), label).problem
            head.backward(mover)  # without anything to do
        elif way == "bad backbone":
            head(embedding, label)  # the trainer does not call `backward`
        for one, wanted in zip((head.weight, mover.buffer), before):
            np.testing.assert_array_equal(bits_of(one), wanted)
        head.next_step = 3
        head(embedding, label)
        head.backward(mover, factor=1.0)
        results.append(np.concatenate([bits_of(one).ravel() for one in (head.weight, mover.buffer)]))
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_array_equal(results[1], results[2])


def test_values_are_rounded_to_the_nearest_and_nan_stays():
    values = np.array([[1 + 1 / 256, 1 + 3 / 256, 1.001, -3e38, np.nan, np.inf]], "float32")
    wanted = [[1.0, 1 + 1 / 64, 1.0, -3.00406e38, np.nan, np.inf]]
    np.testing.assert_allclose(floats_of_bfloat16(bfloat16_of(values)), wanted, rtol=1e-4)
    np.testing.assert_array_equal(bits_of(tensor_like(values, paddle.bfloat16)), bfloat16_of(values).view("int16"))
    assert bfloat16_of(values).dtype == BFLOAT16


def trained(optimizer="Momentum", steps=4, threads=1, loss_type="dist_arcface", **options):
    head = build_head(loss_type, 300, DIM, seed=5, row_dtype="bfloat16", **options)
    head._shard.workers.count = threads
    made = getattr(paddle.optimizer, optimizer)(0.05, parameters=head.parameters(), weight_decay=5e-4)
    updates = optim.take_rows(made, dict(head.named_parameters()))
    rng = np.random.default_rng(0)
    for _ in range(steps):
        embedding = rng.normal(size=(8, DIM)).astype("float32")
        output = head(paddle.to_tensor(embedding), rng.integers(0, 300, 8), True)
        assert output.problem is None
        head.backward(updates["weight"], updates.get("bias"))
    return head, updates["weight"], output.loss


@pytest.mark.parametrize(
    "optimizer, ratio, sub_centers",
    [
        *((optimizer, ratio, 1) for optimizer in ("Momentum", "SGD", "Adam") for ratio in (1.0, 0.3)),
        ("Momentum", 0.3, 2),
    ],
)
def test_chunks_and_threads_change_nothing_but_the_rounding_of_products(optimizer, ratio, sub_centers):
    options = {"sample_ratio": ratio, "sub_centers": sub_centers}
    first, mover, loss = trained(optimizer, **options)
    for chunk, threads in ((7, 1), (64, 3), (300, 1)):
        head, other, found = trained(optimizer, chunk=chunk, threads=threads, **options)
        assert found == pytest.approx(loss, rel=1e-5)
        pairs = [(head.weight, first.weight), *zip(other.buffers, mover.buffers)]
        for one, wanted in pairs:
            # Values that differ in the last bit of a float32 are seldom rounded to different neighbours.
            differ = (one.astype("float32") != wanted.astype("float32")).numpy().mean()
            assert one.dtype == wanted.dtype and differ < (0.02 if one.dtype == paddle.bfloat16 else 0.7)
    assert first.weight.dtype == paddle.bfloat16 and (optimizer != "Momentum" or mover.buffer.dtype == paddle.bfloat16)


@pytest.mark.parametrize(
    "loss_type, options",
    [
        ("dist_softmax", {}),
        ("dist_curricularface", {}),
        ("arcface", {}),
        ("dist_arcface", {"sub_centers": 2, "terms": LossTerms(label_smoothing=0.1)}),
    ],
)
def test_a_head_in_bfloat16_follows_one_in_float32(loss_type, options):
    head, _, loss = trained(loss_type=loss_type, steps=20, **options)
    exact = build_head(loss_type, 300, DIM, seed=5, **options)
    exact.weight.set_value(widened(build_head(loss_type, 300, DIM, seed=5, row_dtype="bfloat16", **options).weight))
    made = paddle.optimizer.Momentum(0.05, parameters=exact.parameters(), weight_decay=5e-4)
    updates = optim.take_rows(made, dict(exact.named_parameters()))
    rng = np.random.default_rng(0)
    for _ in range(20):
        embedding = rng.normal(size=(8, DIM)).astype("float32")
        output = exact(paddle.to_tensor(embedding), rng.integers(0, 300, 8), True)
        exact.backward(updates["weight"], updates.get("bias"))
    assert loss == pytest.approx(output.loss, rel=0.02)
    moved = exact.weight.numpy()
    difference = np.abs(widened(head.weight).numpy() - moved)
    assert difference.mean() < 0.06 * np.abs(moved).mean()


def test_small_updates_add_up_where_the_nearest_number_would_not_move():
    head = build_head("dist_arcface", 64, DIM, row_dtype="bfloat16")
    rows = paddle.full([64, DIM], 1.0)
    optimizer = paddle.optimizer.SGD(1e-4, parameters=head.parameters())
    mover = optim.take_rows(optimizer, dict(head.named_parameters()))["weight"]
    matrix = tensor_like(rows.numpy(), paddle.bfloat16)
    for step in range(200):
        values = widened(matrix)
        mover.apply(values, paddle.full([64, DIM], -1.0), [])
        nearest = floats_of_bfloat16(bfloat16_of(values.numpy()))
        assert (nearest == widened(matrix).numpy()).all(), "each update is lost where it is rounded to the nearest"
        matrix = rounded(values.numpy(), step)
    assert float(widened(matrix).mean()) == pytest.approx(1.02, abs=0.001)


def test_all_but_momentum_keep_their_state_in_float32_and_no_root_is_of_a_negative_number():
    def mover_of(kind, **options):
        head = build_head("dist_cosface", 20, DIM, row_dtype="bfloat16", seed=1)
        optimizer = kind(learning_rate=1e-6, parameters=head.parameters(), **options)
        return head, optim.take_rows(optimizer, dict(head.named_parameters()))["weight"]

    by_value = {"grad_clip": paddle.nn.ClipGradByValue(1.0)}
    for kind, options in ((paddle.optimizer.Momentum, {}), (paddle.optimizer.Momentum, by_value)):
        assert [one.dtype for one in mover_of(kind, **options)[1].buffers] == [paddle.bfloat16]
    for name in ("Adam", "AdamW", "Adamax", "Adagrad", "Adadelta", "RMSProp", "Lion"):
        kind = getattr(paddle.optimizer, name, None) or getattr(optim, name)
        assert {one.dtype for one in mover_of(kind)[1].buffers} == {paddle.float32}, name
    head, mover = mover_of(paddle.optimizer.RMSProp, rho=0.9, centered=True)  # divides by a standard deviation
    embedding, label = paddle.randn([16, DIM]), np.arange(16)
    for _ in range(40):  # of nearly the same gradient
        assert np.isfinite(head(embedding, label).loss)
        head.backward(mover)
    assert np.isfinite(widened(head.weight).numpy()).all()


@pytest.mark.parametrize("rows, lower", [(5000, 0), (1000, 4000), (1, 8191)])
def test_fresh_rows_are_the_nearest_to_those_in_float32(rows, lower):
    exact, low = paddle.zeros([rows, DIM]), paddle.zeros([rows, DIM], "bfloat16")
    for matrix in (exact, low):
        initialise_rows(matrix, lower, 7)
    np.testing.assert_array_equal(bits_of(low), bfloat16_of(exact.numpy()).view("int16"))


def test_a_head_draws_its_rows_when_it_is_asked_to():
    head = build_head("dist_arcface", 10, DIM, seed=1, is_drawn=False)
    assert not head.weight.numpy().any()
    head.draw()
    drawn = head.weight.numpy()
    np.testing.assert_array_equal(drawn, build_head("dist_arcface", 10, DIM, seed=1).weight.numpy())
    head.weight.set_value(np.ones_like(drawn))
    head.draw()
    assert (head.weight.numpy() == 1).all(), "only once"
    loaded = build_head("dist_arcface", 10, DIM, seed=1, is_drawn=False)
    loaded.filled()
    loaded.draw()
    assert not loaded.weight.numpy().any()
