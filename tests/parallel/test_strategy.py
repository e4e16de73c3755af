"""Strategies of Paddle's fleet: what is used, and that nothing else is accepted."""

import pytest
from paddle.distributed import fleet

from plsc import Entry
from plsc.errors import ConfigError
from plsc.parallel.strategy import Averaging, averaging_of, strategy_of

pytestmark = pytest.mark.core
USED = {"fuse_grad_size_in_MB", "last_comm_group_size_MB", "find_unused_parameters", "heter_ccl_mode"}


def change(message, field):
    """Gives one field of a protobuf message another value than its default."""
    value = getattr(message, field.name)
    if hasattr(value, "DESCRIPTOR"):
        change(value, value.DESCRIPTOR.fields[0])
    elif hasattr(value, "append"):
        value.append("a") if field.message_type is None else value.add()
    elif field.enum_type is not None:
        setattr(message, field.name, field.enum_type.values[-1].number)
    else:
        setattr(message, field.name, not value if isinstance(value, bool) else value + type(value)(1))


@pytest.mark.parametrize("name", [field.name for field in fleet.DistributedStrategy().strategy.DESCRIPTOR.fields])
def test_every_field_of_this_paddle_is_used_or_refused(name):
    strategy = fleet.DistributedStrategy()
    change(strategy.strategy, strategy.strategy.DESCRIPTOR.fields_by_name[name])
    if name in USED:
        Entry().set_strategy(strategy)
    else:
        with pytest.raises(ConfigError, match=f"set_strategy: plsc does not use the strategy's {name}; ") as problem:
            Entry().set_strategy(strategy)
        assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("amp", True, "set_mixed_precision"),
        ("amp_configs", {"init_loss_scaling": 8.0}, "set_mixed_precision"),
        ("gradient_merge", True, "set_gradient_accumulation"),
        ("lars", True, "set_optimizer"),
        ("lamb_configs", {"lamb_weight_decay": 0.5}, "set_optimizer"),
        ("sharding", True, "'dist_' in set_loss_type"),
        ("hybrid_configs", {"mp_degree": 2}, "'dist_' in set_loss_type"),
        ("hybrid_configs", {"dp_degree": 2}, "the number of ranks"),
        ("sync_batch_norm", True, "set_model"),
        ("fuse_all_reduce_ops", False, "fuse_grad_size_in_MB"),
        ("elastic", True, "plsc run --restarts"),
        ("cudnn_exhaustive_search", True, "paddle.set_flags"),
        ("dgc", True, "leave it at its default"),
        ("hybrid_parallel_order", ["pp", "dp"], "leave it at its default"),
        ("fuse_grad_size_in_MB", -1, "fuse_grad_size_in_MB is -1"),
    ],
)
def test_a_refusal_names_what_to_do_instead(field, value, words):
    strategy = fleet.DistributedStrategy()
    setattr(strategy, field, value)
    with pytest.raises(ConfigError, match=f"set_strategy: .*{words}"):
        Entry().set_strategy(strategy)


@pytest.mark.parametrize(("value", "shown"), [({}, "dict"), (None, "NoneType"), (fleet.DistributedStrategy, "type")])
def test_what_is_no_strategy_is_refused(value, shown):
    with pytest.raises(ConfigError, match=rf"set_strategy: expected a paddle.*Strategy, not an object of type {shown}"):
        Entry().set_strategy(value)


def test_degrees_that_mean_data_parallelism_are_accepted():
    strategy = fleet.DistributedStrategy()
    strategy.hybrid_configs = {"dp_degree": 1, "mp_degree": 1, "pp_degree": 1}
    Entry().set_strategy(strategy)


def test_a_strategy_is_used_as_it_was_when_it_was_set():
    strategy, ins = fleet.DistributedStrategy(), Entry()
    strategy.fuse_grad_size_in_MB, strategy.last_comm_group_size_MB = 16, 0.5
    ins.set_strategy(strategy)
    strategy.fuse_grad_size_in_MB, strategy.amp = 4, True
    assert averaging_of(ins._config.strategy, False) == Averaging(16, 0.5, False)
    assert averaging_of(ins._config.strategy, True) == Averaging(16, 0.5, True)


@pytest.mark.parametrize("averaging", [Averaging(), Averaging(16, 0.5, True)])
def test_fleet_gets_what_was_asked_for(averaging):
    strategy = strategy_of(averaging)
    assert strategy.heter_ccl_mode
    assert averaging_of(strategy, False) == averaging
