import copy
import textwrap
import threading

import numpy as np
import paddle
import pytest
from function_model import FunctionModel
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc import layers as L
from plsc.errors import ConfigError, PlscError
from plsc.models.base_model import BaseModel

pytestmark = pytest.mark.core


class Small(BaseModel):
    """A model in the style of the old examples: super().__init__() without arguments, then plain attributes."""

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
    # Both dry runs have a label; a training step and two tests follow.
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
            self.inner = FunctionModel(lambda x, is_train: L.fc(x, 3))

        def build_network(self, input, label, is_train):
            x = L.fc(input, 4)
            return L.fc(self.inner(x), 5)

    model = Outer()
    assert model.build((6,)) == 5
    assert {n for n in model.state_dict() if "weight" in n} == {"fc_0.weight", "fc_1.weight", "inner.fc_0.weight"}


def test_layers_outside_a_model_are_refused():
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
        FunctionModel(network)(images())
    with pytest.raises(PlscError, match="build_network"):
        L.fc(images(), 4)


def test_a_later_run_must_make_the_same_calls():
    size, kind = 4, L.fc
    model = FunctionModel(lambda x, is_train: kind(x, size, name="one"))
    model(images())
    size = 5
    with pytest.raises(PlscError, match="'one'.*192, 4.*192, 5.*same"):
        model(images())
    with pytest.raises(PlscError, match="'one'"):
        model(images(size=9))
    kind = lambda x, size, name: L.conv2d(x, size, 3, name=name)  # noqa: E731
    with pytest.raises(PlscError, match="0 conv2d layers named 'one'"):
        model(images())


def test_build_expects_one_embedding_per_image():
    for network, got in (
        (lambda x, is_train: x, r"\[2, 3, 8, 8\]"),
        (lambda x, is_train: [x], "list"),
        (lambda x, is_train: None, "NoneType"),
        (lambda x, is_train: x.flatten(), r"\[384\]"),
    ):
        with pytest.raises(ConfigError, match=f"FunctionModel.build_network.*{got}"):
            FunctionModel(network).build((3, 8, 8))


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
        model(images())  # The running statistics then differ from their initial values.
    model.eval()
    expected = model(images(5)).numpy()
    spec = paddle.static.InputSpec([None, 3, 8, 8], "float32", "image")
    paddle.jit.save(model, str(tmp_path / "model"), input_spec=[spec])
    loaded = paddle.jit.load(str(tmp_path / "model"))
    loaded.eval()
    for number in (5, 1):
        np.testing.assert_allclose(loaded(images(5)[:number]).numpy(), expected[:number], rtol=1e-4, atol=1e-5)


def used_names(model, is_train):
    """Returns the layers that a pass uses, in order."""
    names = []
    for name, layer in model._sub_layers.items():
        layer.register_forward_post_hook(lambda layer, inputs, output, name=name: names.append(name))
    model.train() if is_train else model.eval()
    model(paddle.zeros([2, 4]))
    return names


LINE = "x = x + L.fc(x, 4)"
# For each network how many layers tests use, and how many only training uses.
STATEMENTS = {
    "plain": ("{line}", 1, 0),
    "loop": ("for _ in range(3):\n    {line}", 3, 0),
    "helper": ("x = block(block(x, is_train), is_train)", 2, 2),
    "train only": ("if is_train:\n    {line}\n    {line}", 0, 2),
    "both": ("if is_train:\n    {line}\nelse:\n    {line}", 1, 0),
    "both, other way": ("if not is_train:\n    {line}\n    {line}\nelse:\n    {line}\n    {line}", 2, 0),
    "expression": ("x = L.fc(x, 4) if is_train else L.fc(x, 4)", 1, 0),
}
HELPER = "def block(x, is_train):\n    if is_train:\n        {line}\n    {line}\n    return x\n"


@given(
    st.lists(st.sampled_from(sorted(STATEMENTS)), min_size=1, max_size=6),
    st.lists(st.booleans(), min_size=1, max_size=4),
)
@settings(max_examples=40, deadline=None)
def test_names_and_weights_do_not_depend_on_what_runs_first(statements, runs):
    body = "\n".join(STATEMENTS[name][0] + "\n{line}" for name in statements).format(line=LINE)
    source = HELPER.format(line=LINE) + "def network(x, is_train):\n" + textwrap.indent(body, "    ") + "\n    return x"
    scope = {"L": L}
    exec(source, scope)
    models = []
    for order in (runs, [False], [True]):
        paddle.seed(3)
        model = FunctionModel(scope["network"])
        for is_train in order:
            model.train() if is_train else model.eval()
            model(paddle.zeros([2, 4]))
        models.append(model)
    first, *others = [{name: p.numpy() for name, p in model.state_dict().items()} for model in models]
    for other in others:
        assert list(other) == list(first)
        assert all((other[name] == first[name]).all() for name in first)
    tested = sum(STATEMENTS[name][1] + 1 for name in statements)
    extra = sum(STATEMENTS[name][2] for name in statements)
    assert len(models[0]._sub_layers) == tested + extra
    assert used_names(models[0], is_train=False) == [f"fc_{number}" for number in range(tested)]
    names = used_names(models[1], is_train=True)
    assert sorted(names) == sorted(f"fc_{number}" for number in range(tested + extra))
    assert [name for name in names if int(name[3:]) < tested] == [f"fc_{number}" for number in range(tested)]


def test_a_training_branch_does_not_change_the_layers_of_the_test():
    def network(x, is_train):
        if is_train:
            x = x + L.fc(x, 4)
        return L.fc(x, 4)

    model = FunctionModel(network)
    assert model.build((4,)) == 4
    assert used_names(model, is_train=True) == ["fc_1", "fc_0"]
    assert used_names(model, is_train=False) == ["fc_0"]


def test_two_branches_can_share_one_batch_norm():
    def network(x, is_train):
        x = L.fc(x, 4)
        if is_train:
            return L.batch_norm(x, is_test=False, momentum=0.5)
        return L.batch_norm(x, is_test=True)

    model = FunctionModel(network)
    model(paddle.ones([3, 4]))
    before = model.batch_norm_0._mean.numpy()
    model.eval()
    model(paddle.ones([3, 4]))
    assert (before != 0).any() and (model.batch_norm_0._mean.numpy() == before).all()
    assert len(model.state_dict()) == 6


@pytest.mark.parametrize(
    "network, words",
    [
        (lambda x, t: L.fc(L.fc(L.fc(x, 4), 4), 4) if t else L.fc(L.fc(x, 4), 4), "3 layers.*2 for tests.*name="),
        (lambda x, t: x if t else L.fc(x, 4), "'fc_0' only where is_train is False"),
        (lambda x, t: L.fc(x, 4 if t else 5), r"\(4, 5\).*\(4, 4\)"),
        (lambda x, t: L.fc(x, 4, name="a") if t else L.fc(x, 4, name="b"), "'b' only where is_train"),
    ],
)
def test_branches_that_do_not_fit_together(network, words):
    with pytest.raises(PlscError, match=words):
        FunctionModel(network).build((4,))


def test_explicit_names_distinguish_branches():
    model = FunctionModel(lambda x, t: L.fc(L.fc(x, 4, name="extra"), 4, name="last") if t else L.fc(x, 4, name="last"))
    model.build((4,))
    assert set(model._sub_layers) == {"last", "extra"}


def test_calls_that_only_some_runs_make():
    skipped = False
    model = FunctionModel(lambda x, t: L.fc(x if skipped else L.fc(x, 4), 4))
    model.build((4,))
    skipped = True
    with pytest.raises(PlscError, match="2 fc layers without a name were created, and 1 were called"):
        model(paddle.ones([2, 4]))
    named = FunctionModel(lambda x, t: L.fc(x if skipped else L.fc(x, 4, name="optional"), 4))
    skipped = False
    named.build((4,))
    skipped = True
    assert named(paddle.ones([2, 4])).shape == [2, 4]


def test_a_dry_run_changes_no_random_state_statistics_or_modes():
    def network(x, is_train):
        x = L.batch_norm(L.dropout(L.fc(x, 4), 0.5, is_test=not is_train), is_test=not is_train)
        return model.own(x)

    model = FunctionModel(network)
    model.own = paddle.nn.BatchNorm1D(4)
    model.own.eval()
    model.build((4,))
    assert model.training and not model.own.training
    for name, tensor in model.state_dict().items():
        if name.endswith("_mean"):
            assert (tensor.numpy() == 0).all(), name


def test_a_repeated_layer_name_gives_two_layers_and_a_parameter_name_one_parameter():
    twice = FunctionModel(lambda x, t: L.fc(L.fc(x, 5, name="res.a"), 5, name="res.a"))
    twice.build((5,))
    assert {name.split(".")[0] for name in twice.state_dict()} == {"res_a", "res_a_1"}
    shared = FunctionModel(lambda x, t: L.fc(L.fc(x, 5, param_attr="w"), 5, param_attr=paddle.ParamAttr(name="w")))
    shared.build((5,))
    assert len(shared.parameters()) == 3 and shared.fc_0.weight is shared.fc_1.weight
    with pytest.raises(PlscError, match=r"parameter 'w' has shape \[5, 4\].*\[4, 3\]"):
        FunctionModel(lambda x, t: L.fc(L.fc(x, 4, param_attr="w"), 3, param_attr="w")).build((5,))
    statistics = FunctionModel(lambda x, t: L.batch_norm(L.batch_norm(x, moving_mean_name="m"), moving_mean_name="m"))
    statistics.build((5,))
    assert statistics.batch_norm_0._mean is statistics.batch_norm_1._mean


def test_a_name_that_the_model_uses_already_is_avoided():
    model = FunctionModel(lambda x, t: L.fc(model.fc_0(x), 5, name="network"))
    model.fc_0 = paddle.nn.Linear(5, 5)
    model.build((5,))
    assert {name.split(".")[0] for name in model.state_dict()} == {"fc_0", "network_1"}


def test_models_in_threads_do_not_mix():
    sizes = range(3, 9)
    models = {
        size: FunctionModel(lambda x, t, size=size: L.fc(L.fc(x, size, param_attr="same"), size)) for size in sizes
    }
    meeting, problems = threading.Barrier(len(sizes)), []

    def work(size):
        try:
            meeting.wait(timeout=60)
            for _ in range(10):
                assert models[size](paddle.ones([2, 7])).shape == [2, size]
        except Exception as problem:
            problems.append(problem)

    workers = [threading.Thread(target=work, args=[size]) for size in sizes]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems and paddle.is_grad_enabled()
    for size in sizes:
        assert [p.shape for p in models[size].parameters()] == [[7, size], [size], [size, size], [size]]
    one = models[3]
    results = []
    workers = [threading.Thread(target=lambda: results.append(one(paddle.ones([2, 7])).shape)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [[2, 3]] * 4


def test_a_copy_is_an_independent_model():
    model = Small()
    model.build((3, 8, 8))
    model.eval()
    twin = copy.deepcopy(model)
    np.testing.assert_array_equal(twin(images()).numpy(), model(images()).numpy())
    assert list(twin.state_dict()) == list(model.state_dict())
    before = model(images()).numpy()
    twin.fc_0.weight.set_value(paddle.zeros_like(twin.fc_0.weight))
    np.testing.assert_array_equal(model(images()).numpy(), before)
    assert (twin(images()).numpy() != before).any()
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}


def test_saving_before_the_layers_exist_is_refused(tmp_path):
    spec = paddle.static.InputSpec([None, 3, 8, 8], "float32", "image")
    with pytest.raises(Exception, match=r"build\(image_shape\)"):
        paddle.jit.save(Small(), str(tmp_path / "model"), input_spec=[spec])


@pytest.mark.parametrize("full_graph", [True, False])
def test_it_runs_as_a_static_graph(full_graph):
    model = FunctionModel(lambda x, t: L.fc(x if t else L.scale(x, 2.0), 5))
    model.build((4,))
    model.eval()
    x = paddle.ones([3, 4])
    expected = model(x).numpy()
    static = paddle.jit.to_static(model, full_graph=full_graph)
    np.testing.assert_allclose(static(x).numpy(), expected, rtol=1e-5)
