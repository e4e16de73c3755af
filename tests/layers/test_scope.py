import numpy as np
import paddle
import pytest
from made import Made

from plsc import layers as L
from plsc.errors import ConfigError, PlscError
from plsc.models.base_model import BaseModel

pytestmark = pytest.mark.core


class Small(BaseModel):
    """Written as the old examples are: no arguments to super().__init__(), then plain attributes."""

    def __init__(self):
        super().__init__()
        self.layers = 50
        self.seen = []

    def build_network(self, input, label, is_train):
        self.seen.append((label is None, is_train))
        x = L.conv2d(input, 4, 3, padding=1, bias_attr=False)
        x = L.batch_norm(x, act="relu", is_test=not is_train)
        x = L.prelu(L.conv2d(x, 4, [3, 3], stride=2, padding=1))
        x = L.elementwise_add(x, L.conv2d(x, 4, 1), act="prelu")
        x = L.pool2d(x, 2, pool_type="avg", pool_stride=2)
        x = L.dropout(x, 0.4, is_test=not is_train)
        return L.batch_norm(L.fc(x, 8, act="tanh"), is_test=not is_train)


def images(number=4, size=8):
    return paddle.to_tensor(np.random.RandomState(0).randn(number, 3, size, size).astype("float32"))


def test_names_and_parameters_are_stable_over_builds():
    model = Small()
    assert model.build((3, 8, 8)) == 8
    assert model.training
    names = list(model.state_dict())
    before = [id(p) for p in model.parameters()]
    assert {name.split(".")[0] for name in names} == {
        *(f"conv2d_{i}" for i in range(3)),
        *("batch_norm_0", "batch_norm_1", "prelu_0", "prelu_1", "fc_0"),
    }
    assert "conv2d_0.bias" not in names and "conv2d_1.bias" in names
    model(images(), paddle.zeros([4], dtype="int64"))
    model.eval()
    first = model(images()).numpy()
    np.testing.assert_array_equal(first, model(images()).numpy())
    assert list(model.state_dict()) == names
    assert [id(p) for p in model.parameters()] == before
    # Both dry runs have a label; then come a training step and two tests.
    assert model.seen == [(False, False), (False, True), (False, True), (True, False), (True, False)]
    assert model.layers == 50


def test_a_gradient_reaches_every_parameter():
    model = Small()
    model.build((3, 8, 8))
    (model(images()) * images(4).flatten(1)[:, :8]).sum().backward()
    trainable = {name: p for name, p in model.named_parameters() if not p.stop_gradient}
    assert len(trainable) == 13
    assert [name for name, p in trainable.items() if p.grad is None] == []


def test_weights_load_into_another_instance():
    one, two = Small(), Small()
    for model in (one, two):
        model.build((3, 8, 8))
        model.eval()
    two.set_state_dict(one.state_dict())
    np.testing.assert_array_equal(one(images()).numpy(), two(images()).numpy())


def test_a_model_inside_a_model_has_its_own_names():
    class Outer(BaseModel):
        def __init__(self):
            super().__init__()
            self.inner = Made(lambda x, is_train: L.fc(x, 3))

        def build_network(self, input, label, is_train):
            x = L.fc(input, 4)
            return L.fc(self.inner(x), 5)

    model = Outer()
    assert model.build((6,)) == 5
    assert {n for n in model.state_dict() if "weight" in n} == {"fc_0.weight", "fc_1.weight", "inner.fc_0.weight"}


def test_outside_a_model():
    for call in (
        lambda: L.conv2d(images(), 4, 3),
        lambda: L.fc(images(), 4),
        lambda: L.batch_norm(images()),
        lambda: L.prelu(images()),
    ):
        with pytest.raises(PlscError, match="build_network"):
            call()


def test_the_scope_is_left_after_an_error():
    def network(x, is_train):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        Made(network)(images())
    with pytest.raises(PlscError, match="build_network"):
        L.fc(images(), 4)


def test_a_later_build_must_ask_for_the_same():
    size, kind = 4, L.fc
    model = Made(lambda x, is_train: kind(x, size, name="one"))
    model(images())
    size = 5
    with pytest.raises(PlscError, match="'one'.*192, 4.*192, 5.*same"):
        model(images())
    with pytest.raises(PlscError, match="'one'"):
        model(images(size=9))
    kind = lambda x, size, name: L.conv2d(x, size, 3, name=name)  # noqa: E731
    with pytest.raises(PlscError, match="conv2d.*0 layers named 'one'"):
        model(images())


def test_build_wants_one_embedding_per_image():
    for network, got in (
        (lambda x, is_train: x, r"\[2, 3, 8, 8\]"),
        (lambda x, is_train: [x], "list"),
        (lambda x, is_train: None, "NoneType"),
        (lambda x, is_train: x.flatten(), r"\[384\]"),
    ):
        with pytest.raises(ConfigError, match=f"Made.build_network.*{got}"):
            Made(network).build((3, 8, 8))


def test_build_network_must_be_overridden():
    with pytest.raises(NotImplementedError, match="must override build_network"):
        BaseModel().build((3, 8, 8))


def test_under_data_parallel():
    model = Small()
    model.build((3, 8, 8))
    wrapped = paddle.DataParallel(model)
    assert wrapped(images(), paddle.zeros([4], dtype="int64")).shape == [4, 8]
    assert model.seen[-1] == (False, True)


def test_saved_for_inference_with_any_batch_size(tmp_path):
    model = Small()
    model.build((3, 8, 8))
    for _ in range(3):
        model(images())  # running statistics other than the first
    model.eval()
    expected = model(images(5)).numpy()
    spec = paddle.static.InputSpec([None, 3, 8, 8], "float32", "image")
    paddle.jit.save(model, str(tmp_path / "model"), input_spec=[spec])
    loaded = paddle.jit.load(str(tmp_path / "model"))
    loaded.eval()
    for number in (5, 1):
        np.testing.assert_allclose(loaded(images(5)[:number]).numpy(), expected[:number], rtol=1e-4, atol=1e-5)
