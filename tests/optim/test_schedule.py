import dataclasses
import json

import numpy as np
import paddle
import pytest
from paddle.incubate import LookAhead
from paddle.optimizer import lr

from plsc import optim
from plsc.config import Config, Schedule
from plsc.errors import ConfigError
from plsc.optim import Schedules, rate_of
from plsc.optim.schedule import PlateauDecay

pytestmark = pytest.mark.core


class Counting(lr.LRScheduler):
    """A schedule of a user, whose state is in attributes of many types and in an inner schedule."""

    def __init__(self):
        self.seen, self.pair, self.table, self.factor = [], (0, 1.0), {1: "one"}, np.float32(1.0)
        self.inner = lr.StepDecay(0.5, 3)
        super().__init__(0.1)

    def get_lr(self):
        self.seen.append(self.last_epoch)
        self.pair = (self.pair[0] + 1, self.pair[1] / 3)
        self.table[self.last_epoch] = self.pair
        self.factor = self.factor * np.float32(0.9)
        self.inner.step()
        return self.base_lr * self.pair[1] * float(self.factor) * self.inner() + len(self.table)


class Iterating(lr.LRScheduler):
    """A schedule whose state no attribute shows, so that it must be stepped again."""

    def __init__(self):
        self.values = (0.5**number for number in range(1000))
        super().__init__(0.1)

    def get_lr(self):
        return next(self.values)


class Saving(Iterating):
    """A schedule that saves the state which its attributes do not show."""

    def __init__(self):
        self.drawn = []
        super().__init__()

    def get_lr(self):
        self.drawn = [*getattr(self, "drawn", []), 1]
        return super().get_lr()

    def state_dict(self):
        return {"drawn": len(self.drawn)}

    def set_state_dict(self, state):
        self.values = (0.5**number for number in range(state["drawn"], 1000))


MADE = {
    "NoamDecay": lambda: lr.NoamDecay(64, 4, 1.0),
    "PiecewiseDecay": lambda: lr.PiecewiseDecay([3, 9], [0.3, 0.2, 0.1]),
    "NaturalExpDecay": lambda: lr.NaturalExpDecay(0.5, 0.1),
    "InverseTimeDecay": lambda: lr.InverseTimeDecay(0.5, 0.1),
    "PolynomialDecay": lambda: lr.PolynomialDecay(0.5, 4, cycle=True),
    "ExponentialDecay": lambda: lr.ExponentialDecay(0.5, 0.9),
    "MultiStepDecay": lambda: lr.MultiStepDecay(0.5, [3, 9]),
    "StepDecay": lambda: lr.StepDecay(0.5, 3),
    "LambdaDecay": lambda: lr.LambdaDecay(0.5, lambda step: 0.9**step),
    "ReduceOnPlateau": lambda: lr.ReduceOnPlateau(0.5, patience=1, cooldown=1),
    "ReduceOnPlateau max": lambda: lr.ReduceOnPlateau(0.5, mode="max", patience=0),
    "CosineAnnealingDecay": lambda: lr.CosineAnnealingDecay(0.5, 5),
    "MultiplicativeDecay": lambda: lr.MultiplicativeDecay(0.5, lambda step: 0.9 + 0.01 * step),
    "OneCycleLR": lambda: lr.OneCycleLR(0.5, 40),
    "OneCycleLR three phases": lambda: lr.OneCycleLR(0.5, 40, three_phase=True, anneal_strategy="linear"),
    "CyclicLR": lambda: lr.CyclicLR(0.1, 0.5, 3, mode="exp_range", exp_gamma=0.9),
    "LinearLR": lambda: getattr(lr, "LinearLR", lr.StepDecay)(0.5, 9),
    "CosineAnnealingWarmRestarts": lambda: getattr(lr, "CosineAnnealingWarmRestarts", lr.StepDecay)(0.5, 3, 2),
    "Counting": Counting,
    "Iterating": Iterating,
    "Saving": Saving,
}
PLATEAUS = {
    f"PlateauDecay {mode}": lambda mode=mode: PlateauDecay(
        lambda step: 0.5 * 0.9**step, lr.ReduceOnPlateau(1.0, mode=mode, patience=1), 4
    )
    for mode in ("min", "max")
}
WARMED = {f"{name} after warm-up": lambda m=make: lr.LinearWarmup(m(), 4, 0.0, 0.5) for name, make in MADE.items()}


def sgd(rate):
    return paddle.optimizer.SGD(rate, parameters=paddle.nn.Linear(2, 2).parameters())


def train(schedules, optimizer, steps):
    """Returns the rates of these steps; there is a test after each third step, with rising losses and scores."""
    rates = []
    for step in steps:
        rates.append(rate_of(optimizer))
        schedules.step()
        if step % 3 == 2:
            schedules.end_epoch(0.1 * step, 0.5)
    return rates


@pytest.mark.parametrize("name, make", [*MADE.items(), *WARMED.items(), *PLATEAUS.items()])
@pytest.mark.parametrize("stop", [1, 3, 8])
def test_every_schedule_resumes_to_the_bit(name, make, stop):
    whole = sgd(make())
    expected = train(Schedules(whole), whole, range(16))
    stopped = sgd(make())
    before = Schedules(stopped)
    train(before, stopped, range(stop))
    saved = json.loads(json.dumps(before.state()))
    resumed = sgd(make())
    after = Schedules(resumed)
    after.load(saved)
    assert after.state() == saved
    assert train(after, resumed, range(stop, 16)) == expected[stop:]
    assert len(set(expected)) > 1


def test_the_rates_are_those_of_paddle():
    for name, make in MADE.items():
        if not name.startswith("ReduceOnPlateau"):
            optimizer, schedule = sgd(make()), make()
            expected = [(schedule(), schedule.step())[0] for _ in range(10)]
            assert train(Schedules(optimizer), optimizer, range(10)) == expected, name


def test_a_plateau_follows_the_loss_or_the_score_of_the_tests_and_not_the_steps():
    losses = sgd(lr.ReduceOnPlateau(0.5, patience=0, factor=0.5))
    scores = sgd(lr.ReduceOnPlateau(0.5, mode="max", patience=0, factor=0.5))
    for optimizer in (losses, scores):
        schedules, rates = Schedules(optimizer), []
        for loss, score in [(1.0, 0.5), (0.5, 0.4), (0.6, 0.6), (None, None)]:
            for _ in range(5):
                schedules.step()
            schedules.end_epoch(loss, score)
            rates.append(rate_of(optimizer))
        assert rates == ([0.5, 0.5, 0.25, 0.25] if optimizer is losses else [0.5, 0.25, 0.25, 0.25])
    with pytest.raises(ConfigError, match=r"ReduceOnPlateau\(mode='max'\) follows the score of the tests"):
        Schedules(scores, with_test=False)


def test_a_plateau_after_a_warm_up_begins_when_the_warm_up_ends():
    optimizer = sgd(lr.LinearWarmup(lr.ReduceOnPlateau(0.5, patience=0, factor=0.5), 4, 0.0, 0.5))
    rates = train(Schedules(optimizer), optimizer, range(12))
    assert rates == [0.0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_a_rate_set_by_hand_survives_a_resume_and_one_that_the_script_changed_is_taken_from_it():
    optimizer = sgd(0.5)
    schedules = Schedules(optimizer)
    unchanged = schedules.state()
    optimizer.set_lr(0.25)
    for saved, expected in ((unchanged, 0.125), (schedules.state(), 0.25)):
        resumed = sgd(0.125)
        Schedules(resumed).load(json.loads(json.dumps(saved)))
        assert rate_of(resumed) == expected


@pytest.mark.parametrize("metric", ["test", "loss"])
def test_the_plateau_of_the_settings_multiplies_todays_rate(metric):
    """It begins after the warm-up, stops at the floor, and a resumed run multiplies the rate of its own settings."""
    schedule = Schedule("plateau", warmup_steps=4, floor=0.25, patience=0, metric=metric)
    config = Config(train_batch_size=1024, lr=0.5, lr_decay_factor=0.5, schedule=schedule)

    def made(config):
        return optim.build_optimizer(config, [paddle.nn.Linear(2, 2).weight], 3)

    optimizer = made(config)
    schedules, rates = Schedules(optimizer), []
    for epoch, good in enumerate([0, 1, 0, 1, 0, 0]):  # of the first epoch nothing is known: it warms up
        for _ in range(3):
            rates.append(rate_of(optimizer))
            schedules.step()
        better = good + 0.1 * epoch
        schedules.end_epoch(2 - better, better) if metric == "test" else schedules.end_epoch(2 - better, 0.5)
        if epoch == 2:
            resumed = made(dataclasses.replace(config, lr=0.4))
            after = Schedules(resumed)
            after.load(json.loads(json.dumps(schedules.state())))
            assert rate_of(resumed) == 0.2
    assert rates == [0.125, 0.25, 0.375, *[0.5] * 6, *[0.25] * 3, *[0.25] * 3, *[0.125] * 3]


def test_settings_of_a_schedule_are_those_of_the_resumed_script():
    schedules = Schedules(sgd(lr.StepDecay(0.5, step_size=2)))
    for _ in range(3):
        schedules.step()
    resumed = sgd(lr.StepDecay(1.0, step_size=4))
    after = Schedules(resumed)
    after.load(schedules.state())
    after.step()
    assert resumed._learning_rate.last_epoch == 4 and rate_of(resumed) == 0.1


def test_another_schedule_than_that_of_the_checkpoint_begins_after_its_steps(caplog):
    schedules = Schedules(sgd(lr.StepDecay(0.5, 2)))
    for _ in range(3):
        schedules.step()
    resumed = sgd(lr.ExponentialDecay(1.0, 0.5))
    Schedules(resumed).load(schedules.state())
    assert rate_of(resumed) == 0.125 and "followed StepDecay when the checkpoint was saved" in caplog.text


def test_the_state_of_an_earlier_version_is_read():
    resumed = sgd(lr.ExponentialDecay(1.0, 0.5))
    Schedules(resumed).load({"last_epoch": 2, "last_lr": 0.25})
    resumed._learning_rate.step()
    assert rate_of(resumed) == 0.125
    Schedules(sgd(0.5)).load({})


def test_a_schedule_object_that_two_trainings_share_begins_again():
    shared = lr.LinearWarmup(lr.StepDecay(0.5, 2), 2, 0.0, 0.5)
    first, second = sgd(shared), sgd(shared)
    rates = train(Schedules(first), first, range(8))
    assert train(Schedules(second), second, range(8)) == rates


def test_the_schedule_inside_lookahead_moves_and_its_counters_are_kept():
    def make():
        return LookAhead(sgd(lr.StepDecay(0.5, 2)), k=2)

    optimizer = make()
    schedules = Schedules(optimizer)
    assert train(schedules, optimizer, range(4)) == [0.5, 0.5, 0.05, 0.05]
    optimizer._increment_global_var()
    resumed = make()
    after = Schedules(resumed)
    after.load(json.loads(json.dumps(schedules.state())))
    assert rate_of(resumed) == rate_of(optimizer) and resumed._global_step_var.item() == 1


def test_a_rate_that_is_no_number_is_named():
    schedule = type("Text", (lr.LRScheduler,), {"get_lr": lambda self: "fast"})(0.5)
    with pytest.raises(ConfigError, match="set_optimizer: the learning rate of Text is 'fast', expected a number"):
        rate_of(sgd(schedule))


def test_small_tensors_of_a_schedule_come_back_as_tensors():
    first, second = lr.StepDecay(0.5, 2), lr.StepDecay(0.5, 2)
    schedules = Schedules(sgd(first))
    first.bounds = paddle.to_tensor([[0.25, 0.5]])
    resumed = sgd(second)
    Schedules(resumed).load(json.loads(json.dumps(schedules.state())))
    assert isinstance(second.bounds, paddle.Tensor) and second.bounds.tolist() == [[0.25, 0.5]]


def test_a_schedule_that_cannot_go_further_or_cannot_be_saved_is_named():
    schedules = Schedules(sgd(lr.OneCycleLR(0.5, 2)))
    schedules.step()
    schedules.step()
    with pytest.raises(ConfigError, match="OneCycleLR cannot go further"):
        schedules.step()
    schedule = type("Bad", (Saving,), {"state_dict": lambda self: {"it": {1, 2}}})()
    with pytest.raises(ConfigError, match="the state of Bad cannot be saved"):
        Schedules(sgd(schedule)).state()
