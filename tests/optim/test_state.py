import json
from inspect import signature

import numpy as np
import paddle
import pytest
from paddle.incubate import LookAhead

from plsc import optim
from plsc.errors import ConfigError

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


SETTINGS = {
    "SGD": {"weight_decay": 0.1},
    "Momentum": {"momentum": 0.5, "use_nesterov": True, "weight_decay": 0.1},
    "Adagrad": {"epsilon": 1e-3, "initial_accumulator_value": 0.5},
    "RMSProp": {"rho": 0.5, "momentum": 0.5, "centered": True},
    "Adam": {"beta1": 0.5, "beta2": 0.75, "epsilon": 1e-3},
    "Adam with tensors": {"beta1": paddle.to_tensor([0.5]), "beta2": paddle.to_tensor([0.75])},
    **({"Adam amsgrad": {"amsgrad": True}} if "amsgrad" in signature(paddle.optimizer.Adam).parameters else {}),
    "AdamW": {"beta1": 0.5, "weight_decay": 0.25, "apply_decay_param_fun": lambda name: name.endswith("w_0")},
    "Lamb": {"lamb_weight_decay": 0.1, "beta1": 0.5},
    "Adamax": {"beta1": 0.5, "beta2": 0.75},
    "Adadelta": {"rho": 0.5, "epsilon": 1e-3},
    "NAdam": {"beta1": 0.5, "momentum_decay": 0.25},
    "RAdam": {"beta1": 0.5, "beta2": 0.75},
    "Rprop": {"learning_rate_range": (0.001, 0.5), "etas": (0.25, 1.5)},
    "ASGD": {"batch_num": 3},
}


def stepped(layer, optimizer, schedules, numbers):
    """Takes steps whose gradients differ and change their signs."""
    for number in numbers:
        layer.weight.grad = paddle.full_like(layer.weight, (-1) ** number * (number + 1.0))
        layer.bias.grad = paddle.full_like(layer.bias, 0.5 - number)
        optim.step(optimizer)
        schedules.step()


@pytest.mark.parametrize("wrap", [lambda one: one, LookAhead])
@pytest.mark.parametrize("name", [name for name in SETTINGS if hasattr(paddle.optimizer, name.split()[0])])
def test_every_optimizer_resumes_to_the_bit(name, wrap):
    """The state passes through JSON and through arrays, and reaches an optimizer that has not taken a step."""

    def made():
        layer = paddle.nn.Linear(3, 2)
        kind = getattr(paddle.optimizer, name.split()[0])
        optimizer = wrap(kind(learning_rate=0.1, parameters=layer.parameters(), **SETTINGS[name]))
        return layer, optimizer, optim.Schedules(optimizer)

    def state(layer, optimizer):
        return optim.optimizer_state(optimizer, {p.name: key for key, p in layer.named_parameters()})

    layer, optimizer, schedules = made()
    stepped(layer, optimizer, schedules, range(3))
    saved = json.loads(json.dumps(schedules.state()))
    resumed = made()
    resumed[0].set_state_dict({key: p.numpy() for key, p in layer.named_parameters()})
    optim.create_state(resumed[1], resumed[0].parameters())
    for key, tensors in state(*resumed[:2]).items():
        for accumulator, tensor in tensors.items():
            tensor.set_value(state(layer, optimizer)[key][accumulator].numpy())
    resumed[2].load(saved)
    stepped(layer, optimizer, schedules, range(3, 6))
    stepped(*resumed, range(3, 6))
    for one, other in zip(layer.parameters(), resumed[0].parameters()):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    assert resumed[2].state() == schedules.state()


@pytest.mark.skipif(not hasattr(paddle.optimizer, "Rprop"), reason="Paddle has no Rprop")
def test_rprop_reads_what_an_earlier_version_saved_of_it():
    layer = paddle.nn.Linear(3, 2)
    optimizer = paddle.optimizer.Rprop(0.1, parameters=layer.parameters())
    schedules = optim.Schedules(optimizer)
    schedules.load([{"steps": 3, "optimizer": {"_sign": False}}])
    stepped(layer, optimizer, schedules, range(2))


def test_a_step_that_paddle_lacks_on_this_device_is_one_line():
    class Lacking(paddle.optimizer.SGD):
        def step(self):
            raise NotImplementedError("'lr_ratio' is unimplemented in CPU.")

    layer = paddle.nn.Linear(3, 2)
    optim.step(Lacking(0.1, parameters=layer.parameters()))  # no gradient yet: there is nothing to do
    layer(paddle.ones([1, 3])).sum().backward()
    with pytest.raises(ConfigError, match="set_optimizer: Lacking cannot take a step on .*: 'lr_ratio' is unimpl"):
        optim.step(Lacking(0.1, parameters=layer.parameters()))
