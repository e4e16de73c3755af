import paddle
import pytest
from paddle.incubate import LookAhead, ModelAverage

from plsc import optim
from plsc.config import Config
from plsc.errors import ConfigError

pytestmark = pytest.mark.core


def matrix(**attr):
    return paddle.nn.Linear(3, 2, weight_attr=paddle.ParamAttr(**attr)).weight


def built(chosen, parameters):
    return optim.build_optimizer(Config(optimizer=chosen), parameters, 10)


def groups_of(optimizer):
    return [[id(parameter) for parameter in group["params"]] for group in optimizer._param_groups]


def test_the_groups_of_an_optimizer_object_are_kept():
    own, other, head, unused = matrix(), matrix(), matrix(), matrix()
    chosen = paddle.optimizer.AdamW(
        0.1,
        parameters=[
            {"params": [own], "weight_decay": 0.5, "learning_rate": 0.1},
            {"params": [unused], "weight_decay": 0.25},
        ],
        weight_decay=0.125,
    )
    optimizer = built(chosen, [own, other, head])
    assert groups_of(optimizer) == [[id(own)], [id(other), id(head)]]
    assert [group["weight_decay"] for group in optimizer._param_groups] == [0.5, 0.125]
    assert own.optimize_attr["learning_rate"] == 0.1 and head.optimize_attr["learning_rate"] == 1.0
    assert groups_of(chosen) == [[id(own)], [id(unused)]], "the object itself is not changed"


@pytest.mark.parametrize("kind", [paddle.optimizer.AdamW, paddle.optimizer.Momentum])
def test_the_placeholder_in_a_group_stands_for_what_no_group_lists(kind):
    own, other = matrix(), matrix()
    head = matrix(learning_rate=0.5, regularizer=paddle.regularizer.L2Decay(0.75))

    def make(parameters):
        return kind(
            0.1,
            parameters=[{"params": optim.deferred(), "weight_decay": 0.25}, {"params": [own], "learning_rate": 0.1}],
        )

    for chosen in (make(None), make):
        optimizer = built(chosen, [own, other, head])
        assert groups_of(optimizer) == [[id(other), id(head)], [id(own)]]
        first = optimizer._param_groups[0]  # Momentum moves a decay of a group to another key
        assert 0.25 in (first["weight_decay"], first.get("regularization_coeff"))
        assert head.optimize_attr["learning_rate"] == 0.5 and head.regularizer._coeff == 0.75
        assert own.optimize_attr["learning_rate"] == 0.1


def test_parameters_that_join_the_groups_keep_the_regularizer_of_their_own():
    own, head = matrix(), matrix(regularizer=paddle.regularizer.L1Decay(0.75))
    chosen = paddle.optimizer.SGD(0.1, parameters=[{"params": [own], "weight_decay": 0.5}], weight_decay=0.25)
    built(chosen, [own, head])
    assert own.regularizer._coeff == 0.5 and isinstance(head.regularizer, paddle.regularizer.L1Decay)


def test_an_object_with_one_list_moves_everything_that_is_trained_and_copies_no_weights():
    own, head = matrix(), matrix()
    for listed in ([own], optim.deferred()):
        optimizer = built(paddle.optimizer.Adam(0.1, parameters=listed), [own, head])
        assert [id(p) for p in optimizer._parameter_list] == [id(own), id(head)]
    wrapped = built(LookAhead(paddle.optimizer.SGD(0.1, parameters=optim.deferred())), [own, head])
    assert len(wrapped._parameter_list) == len(wrapped.inner_optimizer._parameter_list) == 2


@pytest.mark.parametrize("wrap", [lambda one: one, LookAhead])
def test_an_object_that_has_been_used_before_begins_with_fresh_moments(wrap):
    layer, head = paddle.nn.Linear(2, 2), matrix()
    chosen = wrap(paddle.optimizer.Adam(0.1, parameters=layer.parameters()))

    def step(optimizer):
        layer(paddle.ones([1, 2])).sum().backward()
        optimizer.step()
        optimizer.clear_grad()

    step(chosen)
    optimizer = built(chosen, [*layer.parameters(), head])
    assert optim.optimizer_state(optimizer, {layer.weight.name: "w"}) == {}
    step(optimizer)
    assert optim.optimizer_state(optimizer, {layer.weight.name: "w"})["w"]["beta1_pow_acc"].item() == pytest.approx(
        0.81
    )


@pytest.mark.parametrize("kind", [paddle.optimizer.AdamW, paddle.optimizer.SGD])
def test_a_function_that_leaves_out_the_head_is_refused_and_what_else_it_leaves_out_is_named(kind, caplog):
    own, other, head = matrix(), matrix(), matrix()
    backbone = {"fc.weight": own, "last.weight": other}
    optimizer = built(lambda parameters: kind(0.1, parameters=[own]), [own, other, head])
    with pytest.raises(ConfigError, match="leaves out the weight of the head"):
        optim.check_parameters(optimizer, backbone, {"weight": head}, False)
    optimizer = built(lambda parameters: kind(0.1, parameters=[own, head]), [own, other, head])
    optim.check_parameters(optimizer, backbone, {"weight": head}, False)
    assert "leaves out 1 of 2 parameters of the backbone, which stay as they are: last.weight" in caplog.text


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda p: paddle.optimizer.LBFGS(0.1, parameters=p), "LBFGS.step needs 'closure'"),
        (lambda p: ModelAverage(0.15, parameters=p), "ModelAverage moves no weights"),
        (lambda p: LookAhead(paddle.optimizer.SGD(0.1, parameters=[{"params": p}])), "LookAhead cannot wrap"),
        (lambda p: "SGD", "the function returned str"),
        (paddle.optimizer.Adam, r"Adam is a class.*lambda parameters: Adam\(.*deferred\(\)"),
        (lambda p: paddle.optimizer.Adam("fast", parameters=p), "TypeError: learning rate should be float"),
        (lambda p: paddle.optimizer.Adam(None, parameters=p), "AssertionError: assert learning_rate is not None"),
        (lambda p: paddle.optimizer.SGD(0.1, parameters=[{"params": p}] * 2), "in more than one parameter group"),
        (lambda p: paddle.optimizer.Adam(0.1, parameters=p + p), "lists the parameter .* more than once"),
        (lambda p: paddle.optimizer.Adam(0.1, parameters=[{"params": p + p}]), "more than once"),
        (lambda: None, "the function of the parameters failed .TypeError: .*takes 0 positional"),
    ],
)
def test_what_cannot_train_is_refused_in_one_line(make, words):
    with pytest.raises(ConfigError, match=f"^set_optimizer: .*{words}") as caught:
        built(make, [matrix()])
    assert "\n" not in str(caught.value)


def test_an_error_of_the_users_own_function_keeps_its_cause_and_one_of_paddle_is_one_line():
    with pytest.raises(ConfigError, match="ZeroDivisionError: division by zero") as caught:
        built(lambda p: paddle.optimizer.SGD(1 / 0, parameters=p), [matrix()])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ConfigError, match="TypeError: learning rate") as caught:
        built(lambda p: paddle.optimizer.SGD("fast", parameters=p), [matrix()])
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_objects_that_fit_nothing_that_is_trained_or_cannot_be_copied_are_refused():
    own, frozen = matrix(), matrix(trainable=False)
    for listed in ([matrix()], [{"params": [matrix()]}]):
        with pytest.raises(ConfigError, match="Adam lists 1 parameters, none of which is trained"):
            built(paddle.optimizer.Adam(0.1, parameters=listed), [own])
    assert built(paddle.optimizer.Adam(0.1, parameters=[frozen]), [own])._parameter_list[0] is own
    groups = [{"params": optim.deferred()}, {"params": optim.deferred(), "learning_rate": 0.1}]
    with pytest.raises(ConfigError, match="2 parameter groups have the placeholder"):
        built(paddle.optimizer.Adam(0.1, parameters=groups), [own])
    chosen = paddle.optimizer.Adam(0.1, parameters=optim.deferred())
    chosen.values = iter(number for number in range(3))
    with pytest.raises(ConfigError, match="Adam cannot be copied; give a function .*generator"):
        built(chosen, [own])


@pytest.mark.parametrize("wrap", [lambda one: one, LookAhead])
def test_an_optimizer_that_scales_by_the_norm_of_a_tensor_is_refused_on_shards_of_it(wrap):
    own, head = matrix(), matrix()
    optimizer = built(lambda parameters: wrap(paddle.optimizer.Lamb(parameters=parameters)), [own, head])
    optim.check_parameters(optimizer, {"own": own}, {"weight": head}, False)
    with pytest.raises(ConfigError, match="use AdamW or Momentum, or keep the whole matrix"):
        optim.check_parameters(optimizer, {"own": own}, {"weight": head}, True)
