import paddle
import pytest

from plsc import optim
from plsc.errors import ConfigError
from plsc.optim import wrapped

pytestmark = pytest.mark.core


def parameter(**attr):
    return paddle.nn.Linear(3, 2, weight_attr=paddle.ParamAttr(**attr)).weight


CLIP = paddle.nn.ClipGradByGlobalNorm(1.0)
L1, L2 = paddle.regularizer.L1Decay(0.1), paddle.regularizer.L2Decay(0.1)


class Mine(paddle.optimizer.Adam):
    """An optimizer of a user, whose rule may need the whole matrix."""


@pytest.mark.parametrize(
    "make",
    [
        lambda p: paddle.optimizer.Lamb(0.1, parameters=[p]),
        lambda p: Mine(0.1, parameters=[p]),
        lambda p: paddle.incubate.LookAhead(paddle.optimizer.SGD(0.1, parameters=[p])),
        lambda p: paddle.optimizer.Momentum(0.1, parameters=[p], grad_clip=CLIP),
        lambda p: paddle.optimizer.AdamW(0.1, parameters=[{"params": [p], "grad_clip": CLIP}]),
    ],
)
def test_optimizers_that_need_the_whole_gradient_keep_the_parameter(make):
    one = parameter()
    optimizer = make(one)
    assert optim.take_rows(optimizer, {"weight": one}) == {}
    assert wrapped.parameters_of(optimizer)


def test_the_decay_of_a_parameter_wins():
    optimizer = paddle.optimizer.Momentum(0.1, parameters=[parameter()], weight_decay=0.5)
    assert optim.row_update(optimizer, parameter()).decay == 0.5
    assert optim.row_update(optimizer, parameter(regularizer=L2)).decay == pytest.approx(0.1)
    assert isinstance(optim.row_update(optimizer, parameter(regularizer=L1)), optim.RowOptimizer)


def test_the_optimizer_keeps_what_row_updates_do_not_take():
    kept, taken = parameter(), parameter()
    optimizer = paddle.optimizer.SGD(0.1, parameters=[kept, taken])
    assert set(optim.take_rows(optimizer, {"weight": taken})) == {"weight"}
    assert len(optimizer._parameter_list) == 1 and optimizer._parameter_list[0] is kept


def test_a_group_of_which_nothing_is_left_goes():
    kept, taken = parameter(), parameter()
    optimizer = paddle.optimizer.AdamW(0.1, parameters=[{"params": [kept]}, {"params": [taken], "learning_rate": 0.5}])
    assert set(optim.take_rows(optimizer, {"weight": taken})) == {"weight"}
    assert [one is kept for one in wrapped.parameters_of(optimizer)] == [True]
    kept.grad = paddle.ones_like(kept)
    before = kept.numpy()
    optim.step(optimizer)
    assert (kept.numpy() != before).all()


def test_an_optimizer_that_the_device_lacks_is_named_in_chunks_too(monkeypatch):
    def refuse(*_):
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr(paddle.optimizer.AdamW, "_append_optimize_op", refuse)
    one = parameter()
    update = optim.take_rows(paddle.optimizer.AdamW(0.1, parameters=[one]), {"weight": one})["weight"]
    with pytest.raises(ConfigError, match="AdamW cannot take a step on cpu: no such kernel"):
        update.begin()
