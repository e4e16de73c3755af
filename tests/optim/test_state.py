import paddle
import pytest
from paddle.incubate import LookAhead

from plsc import optim

pytestmark = pytest.mark.core


class Mine(paddle.optimizer.Optimizer):
    """An optimizer that keeps its state where nobody knows."""

    def _append_optimize_op(self, block, param_and_grad):
        self.kept = param_and_grad[1].clone()


class Refusing(paddle.optimizer.SGD):
    """An optimizer that has no state before its first step."""

    def _create_accumulators(self, block, parameters):
        raise ValueError("not yet")


COPIES = {
    "SGD": 0, "Momentum": 1, "Adagrad": 1, "RMSProp": 3, "Adam": 2, "AdamW": 2, "Lamb": 2, "Adamax": 2, "Adadelta": 2,
    "NAdam": 5, "RAdam": 5, "Rprop": 2,
}  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in COPIES if hasattr(paddle.optimizer, kind)])
def test_the_state_of_an_optimizer_is_measured(kind):
    layer = paddle.nn.Linear(3, 2)
    optimizer = getattr(paddle.optimizer, kind)(learning_rate=0.1, parameters=layer.parameters())
    assert optim.copies_of_state(optimizer) == COPIES[kind]
    assert not optimizer._accumulators, "the optimizer itself is not changed"


def test_the_state_of_an_optimizer_with_settings_or_of_another_maker_is_measured_or_unknown():
    parameters = paddle.nn.Linear(3, 2).parameters()
    if hasattr(paddle.optimizer, "ASGD"):
        assert optim.copies_of_state(paddle.optimizer.ASGD(0.1, batch_num=4, parameters=parameters)) == 5
    groups = [{"params": parameters[:1]}, {"params": parameters[1:]}]
    assert optim.copies_of_state(paddle.optimizer.Adam(0.1, parameters=groups)) == 2
    assert optim.copies_of_state(LookAhead(paddle.optimizer.Momentum(0.1, parameters=parameters))) == 2
    assert optim.copies_of_state(Mine(0.1, parameters=parameters)) is None
    assert optim.copies_of_state(Refusing(0.1, parameters=parameters)) is None
