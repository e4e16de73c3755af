import numpy as np
import paddle
import pytest

from plsc import optim
from plsc.config import Config
from plsc.errors import ConfigError

pytestmark = pytest.mark.core


def parameter(**attr):
    return paddle.nn.Linear(3, 2, weight_attr=paddle.ParamAttr(**attr)).weight


def clips_of(optimizer, backbone, head, gradient_clip=0.0, is_split=False):
    config = Config(gradient_clip=gradient_clip)
    return optim.take_clips(config, optimizer, backbone, {"weight": head}, is_split)


def sgd(parameters, clip=None):
    return paddle.optimizer.SGD(0.1, parameters=parameters, grad_clip=clip)


def test_clipping_is_set_in_one_place():
    one, head = parameter(), parameter()
    everything = optim.NormClip(2.0, (0,), ("weight",))
    assert clips_of(sgd([one, head]), [one], head, 2.0) == [everything] and clips_of(sgd([one]), [one], head) == []
    clipped = sgd([one, head], paddle.nn.ClipGradByGlobalNorm(2.0))
    with pytest.raises(ConfigError, match="set_gradient_clip"):
        clips_of(clipped, [one], head, 2.0)
    assert clips_of(clipped, [one], head) == [everything] and clipped._grad_clip is None


def test_parameters_with_need_clip_false_and_those_the_optimizer_leaves_out_are_in_no_clip():
    one, free, left_out, head = parameter(), parameter(need_clip=False), parameter(), parameter(need_clip=False)
    for optimizer, norm in (
        (sgd([one, free, head]), 1.0),
        (sgd([one, free, head], paddle.nn.ClipGradByGlobalNorm(1.0)), 0),
    ):
        assert clips_of(optimizer, [left_out, free, one], head, norm) == [optim.NormClip(1.0, (2,), ())]


def test_norms_of_single_gradients_are_left_to_paddle_unless_ranks_hold_parts_of_the_head():
    one, head = parameter(), parameter()
    clip = paddle.nn.ClipGradByNorm(1.0)
    whole = sgd([one, head], clip)
    assert clips_of(whole, [one], head) == [] and whole._grad_clip is clip
    split = sgd([one, head], clip)
    expected = [optim.NormClip(1.0, (0,), ()), optim.NormClip(1.0, (), ("weight",))]
    assert clips_of(split, [one], head, is_split=True) == expected and split._grad_clip is None


def test_a_clip_that_plsc_does_not_know_is_named_where_it_sees_a_part_of_the_head(caplog):
    class MyClip(paddle.nn.ClipGradByNorm.__base__):
        pass

    one, head = parameter(), parameter()
    for is_split in (False, True):
        assert clips_of(sgd([one, head], MyClip()), [one], head, is_split=is_split) == []
    assert [record.message.split()[1] for record in caplog.records] == ["MyClip"]


def test_gradients_are_clipped_as_paddle_does():
    one, two = parameter(), parameter()
    for each, value in ((one, 3.0), (two, 4.0)):
        each.grad = paddle.full_like(each, value)
    expected = [g.numpy() for _, g in paddle.nn.ClipGradByGlobalNorm(1.5)([(one, one.grad), (two, two.grad)])]
    factor = optim.clip_factor(1.5, sum(optim.squares_of([one, parameter(), two])))
    optim.scale_gradients([one, two], factor)
    for each, value in zip((one, two), expected):
        np.testing.assert_allclose(each.grad.numpy(), value, rtol=1e-6)
    assert optim.clip_factor(1e9, 4.0) == 1.0
