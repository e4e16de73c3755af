"""Optimizers and schedules of users in whole trainings, in one process."""

import dataclasses
import json
import logging
import threading

import numpy as np
import paddle
import pytest
from paddle.incubate import LookAhead

from plsc import Callback, Entry, optim
from plsc.checkpoint import writer
from plsc.errors import ConfigError, TrainingError

pytestmark = pytest.mark.core


def entry(output=None, epochs=1, batches=3):
    """Returns a training of a small network, with batches of 4 images and the same weights each time."""
    paddle.seed(1)
    ins = Entry()
    ins.set_model(paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(768, 4)))
    ins.set_emb_size(4)
    ins.set_class_num(5)
    ins.set_image_shape((3, 16, 16))
    ins.set_with_test(False)
    ins.set_model_save_dir(str(output) if output else None)
    ins.set_train_epochs(epochs)
    ins.set_train_batch_size(4)
    rng = np.random.default_rng(0)
    ins.train_reader = [
        (rng.normal(size=(4, 3, 16, 16)).astype("float32"), rng.integers(0, 5, 4)) for _ in range(batches)
    ]
    return ins


class SetsTheRate(Callback):
    def on_step_end(self, run):
        if run.progress.step == 2:
            run.optimizer.set_lr(0.001)


HAS_RPROP = hasattr(paddle.optimizer, "Rprop")
OPTIMIZERS = {
    "LookAhead around a schedule": lambda: LookAhead(
        paddle.optimizer.Momentum(paddle.optimizer.lr.StepDecay(0.1, 3), parameters=optim.deferred()), k=2
    ),
    "a plateau": lambda: paddle.optimizer.Adadelta(
        paddle.optimizer.lr.ReduceOnPlateau(0.5, patience=0, threshold=0.5), parameters=optim.deferred()
    ),
    "a rate set by a callback": lambda: paddle.optimizer.SGD(0.1, parameters=optim.deferred()),
    "a function with groups": lambda: (
        lambda parameters: paddle.optimizer.AdamW(
            0.01, parameters=[{"params": parameters[:1], "learning_rate": 0.1}, {"params": parameters[1:]}]
        )
    ),
    "the plateau of the settings": lambda: None,
    "Lion": lambda: optim.Lion(0.01, parameters=optim.deferred(), weight_decay=0.1),
    **({"Rprop": lambda: paddle.optimizer.Rprop(0.01, parameters=optim.deferred())} if HAS_RPROP else {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_users_optimizer_resumes_to_the_last_bit(name, tmp_path):
    def train(epochs, output):
        ins = entry(output, epochs)
        ins.set_resume(True)
        if "settings" in name:
            ins.set_lr(256.0)  # so large that the loss rises
            ins.set_schedule("plateau", metric="loss", patience=0)
        else:
            ins.set_optimizer(OPTIMIZERS[name]())
        if "callback" in name:
            ins.add_callback(SetsTheRate())
        ins.train()
        return json.loads((output / str(epochs - 1) / "meta.json").read_text())

    expected = train(4, tmp_path / "straight")
    train(2, tmp_path / "stopped")
    found = train(4, tmp_path / "stopped")
    for key in ("learning_rate", "schedule", "sha256"):
        assert found[key] == expected[key], key
    rates = {
        "settings": 0.001,
        "Lion": 0.01,
        "callback": 0.001,
        "LookAhead": 1e-5,
        "plateau": 0.005,
        "groups": 0.01,
        "Rprop": 0.01,
    }
    assert found["learning_rate"] == pytest.approx(next(rate for word, rate in rates.items() if word in name))


@pytest.mark.parametrize(
    "kind", [kind for kind in ("NAdam", "RAdam", "Rprop", "ASGD", "Adadelta") if hasattr(paddle.optimizer, kind)]
)
def test_every_optimizer_trains_and_its_state_is_in_the_forecast(kind, caplog):
    ins = entry()
    ins.set_optimizer(lambda parameters: getattr(paddle.optimizer, kind)(0.01, parameters=parameters))
    with caplog.at_level(logging.INFO, "plsc"):
        assert ins.train()["steps"] == 3
    assert "momentum" in caplog.text and "not known" not in caplog.text


def test_an_optimizer_of_unknown_state_and_a_model_that_cannot_be_measured_train_all_the_same(caplog):
    class Mine(paddle.optimizer.Optimizer):
        def _append_optimize_op(self, block, param_and_grad):
            paddle.assign(param_and_grad[0] - self.get_lr() * param_and_grad[1], param_and_grad[0])

    ins = entry()
    ins.set_optimizer(Mine(0.1, parameters=optim.deferred()))
    with caplog.at_level(logging.INFO, "plsc"):
        assert ins.train()["steps"] == 3
    assert "without the state of Mine, whose size is not known" in caplog.text

    class Choosy(paddle.nn.Sequential):
        def forward(self, images):
            assert images.shape[0] != 3, "three are a crowd"
            return super().forward(images)

    ins = entry()
    ins.set_model(Choosy(paddle.nn.Flatten(), paddle.nn.Linear(768, 4)))
    with caplog.at_level(logging.INFO, "plsc"):
        assert ins.train()["steps"] == 3
    assert "memory per rank unknown: a forward pass in evaluation mode raised AssertionError" in caplog.text


def test_what_the_optimizer_leaves_out_stays_and_its_gradients_do_not_count():
    ins = entry(epochs=2)
    model = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(768, 8), paddle.nn.Linear(8, 4))
    ins.set_model(model)
    before = model[1].weight.numpy()
    left_out = {id(parameter) for parameter in model[1].parameters()}
    ins.set_optimizer(
        lambda parameters: paddle.optimizer.Momentum(0.1, parameters=[p for p in parameters if id(p) not in left_out])
    )
    ins.set_gradient_clip(0.5)
    ins.train()
    assert (model[1].weight.numpy() == before).all()
    assert not model[1].weight.grad.numpy().any(), "gradients do not add up over the steps"
    ins.set_optimizer(lambda parameters: paddle.optimizer.Momentum(0.1, parameters=parameters[:4]))
    with pytest.raises(ConfigError, match="leaves out the weight of the head"):
        ins.train()


def test_weights_that_are_not_finite_are_an_error_and_are_not_saved(tmp_path):
    ins = entry(tmp_path)
    ins.set_lr(1e300)
    with pytest.raises(TrainingError, match=r"step 3: the backbone's 1.weight is not finite, .* \(2 steps after it"):
        ins.train()
    assert not list(tmp_path.glob("[0-9]*"))
    ins = entry()
    ins.set_lr(1e300)
    with pytest.raises(TrainingError, match="the backbone's 1.weight is not finite"):
        ins.train()


def test_an_epoch_without_one_good_step_is_an_error_and_a_skipped_end_is_reported(tmp_path, caplog):
    ins = entry(tmp_path)
    good = ins.train_reader
    bad = [(images * np.float32("nan"), labels) for images, labels in good]
    ins.train_reader = bad
    with pytest.raises(TrainingError, match="epoch 0: all 3 of its steps were skipped, so it trained nothing: rank 0"):
        ins.train()
    assert not (tmp_path / "0").exists()
    ins.train_reader = [good[0], bad[0], bad[1]]
    assert ins.train()["skipped_steps"] == 2
    assert "the last steps of the run were skipped" in caplog.text


def test_a_batch_larger_than_the_data_set_is_reported(caplog):

    class Twelve(paddle.io.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, number):
            return np.full((3, 16, 16), number, "float32"), number % 5

    ins = entry()
    ins.train_reader = Twelve()
    ins.set_train_batch_size(16)
    ins.train()
    assert "a step asks for 16 images and the data set has 12" in caplog.text
    caplog.clear()
    ins.set_train_batch_size(12)
    ins.train()
    assert "a step asks for" not in caplog.text


@dataclasses.dataclass
class StopsAfterTwo(Callback):
    epochs: int = 0

    def on_epoch_end(self, run):
        self.epochs += 1
        if self.epochs == 2:
            run.stop("two epochs are enough")

    def state(self):
        return self.epochs

    def load_state(self, state):
        self.epochs = state


def test_a_callback_begins_a_second_training_as_it_began_the_first():
    ins = entry(epochs=4)
    ins.add_callback(StopsAfterTwo())
    for _ in range(2):
        result = ins.train()
        assert (result["epochs"], result["stopped"]) == (2, "two epochs are enough")


def test_a_save_that_begins_in_a_step_is_not_waited_for_in_it(tmp_path, monkeypatch):
    """The second checkpoint begins in the step in which the ranks learn that the first one is written."""
    allowed, begun, write = threading.Event(), [], writer._write

    def slow(folder, files):
        begun.append(folder.name)
        if folder.name != "step_1":
            assert allowed.wait(30), "the training waited for a checkpoint that had just begun"
        return write(folder, files)

    class Waits(Callback):
        def on_step_end(self, run):
            if run.progress.step == 1:
                run.save("step_1")
            elif run.progress.step == 2:
                while not run.writer.written:  # so that the next step's notes say so
                    pass
            elif run.progress.step == 3:
                run.save("step_3")
            else:
                allowed.set()

    monkeypatch.setattr(writer, "_write", slow)
    ins = entry(tmp_path, batches=4)
    ins.add_callback(Waits())
    ins.train()
    assert begun == ["step_1", "step_3", "0"]
