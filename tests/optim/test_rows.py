import paddle
import pytest

from plsc import optim

pytestmark = pytest.mark.core


def parameter(**attr):
    return paddle.nn.Linear(3, 2, weight_attr=paddle.ParamAttr(**attr)).weight


CLIP = paddle.nn.ClipGradByGlobalNorm(1.0)
L1, L2 = paddle.regularizer.L1Decay(0.1), paddle.regularizer.L2Decay(0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: paddle.optimizer.Adam(0.1, parameters=[p]),
        lambda p: paddle.optimizer.AdamW(0.1, parameters=[p]),
        lambda p: paddle.optimizer.Momentum(0.1, parameters=[p], grad_clip=CLIP),
        lambda p: paddle.optimizer.Momentum(0.1, parameters=[p], weight_decay=L1),
        lambda p: paddle.optimizer.SGD(0.1, parameters=[p], weight_decay=L1),
        lambda p: paddle.optimizer.Momentum(0.1, parameters=[p], rescale_grad=0.5),
        lambda p: paddle.optimizer.Momentum(0.1, parameters=[{"params": [p]}]),
    ],
)
def test_optimizers_that_need_the_whole_gradient_keep_the_parameter(make):
    one = parameter()
    optimizer = make(one)
    assert optim.take_rows(optimizer, {"weight": one}) == {}
    assert optimizer._parameter_list


def test_the_decay_of_a_parameter_wins():
    optimizer = paddle.optimizer.Momentum(0.1, parameters=[parameter()], weight_decay=0.5)
    assert optim.row_update(optimizer, parameter()).decay == 0.5
    assert optim.row_update(optimizer, parameter(regularizer=L2)).decay == pytest.approx(0.1)
    assert optim.row_update(optimizer, parameter(regularizer=L1)) is None


def test_the_optimizer_keeps_what_row_updates_do_not_take():
    kept, taken = parameter(), parameter()
    optimizer = paddle.optimizer.SGD(0.1, parameters=[kept, taken])
    assert set(optim.take_rows(optimizer, {"weight": taken})) == {"weight"}
    assert len(optimizer._parameter_list) == 1 and optimizer._parameter_list[0] is kept
